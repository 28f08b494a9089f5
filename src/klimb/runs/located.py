"""What a path to a run or a policy means: a directory, a policy of the zoo, or one on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klimb.files import as_path
from klimb.runs import hub, zoo


def located(given: Any) -> Path:
    """The directory that is meant.

    given: a path; zoo:NAME for a policy that comes with klimb; or hf://USER/NAME@REVISION for one on the Hugging Face
    Hub, which is downloaded. Raises RunError where there is none, WrongObject for what is not a path.
    """
    if zoo.is_zoo(given):
        return zoo.directory_of(given)
    if hub.is_hub(given):
        return hub.downloaded(given)
    return as_path(given)


def is_elsewhere(given: Any) -> bool:
    """Whether nothing can be written to what is meant: a policy of the zoo, or on the Hub. given: as for `located`."""
    return zoo.is_zoo(given) or hub.is_hub(given)
