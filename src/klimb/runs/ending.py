"""`ended.json`: what ended a training. A run that is being trained, or was killed, has no such file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from klimb.errors import RunError, one_line
from klimb.fields import explain
from klimb.files import exists, read_limited, write_text

ENDED = "ended.json"
MAX_FILE = 2**16

Reason = Literal["complete", "until_return", "patience", "callback", "interrupted", "failed", "pruned"]
Number = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Ending:
    """What ended a training.

    reason: `complete` when all environment steps were made, or passes over demonstrations are done; `until_return`,
    `patience` or `callback`, which stopped it; `interrupted` by a signal; `failed`; `pruned`
    by a search, because other trials were better. iteration: the last one. env_steps:
    until then, per seed. message: the reason in one line, for people.
    """

    reason: Reason
    iteration: Number
    env_steps: Number
    message: Annotated[str, Field(max_length=4096)]

    @property
    def early(self) -> bool:
        """Whether the training would have gone on."""
        return self.reason != "complete"

    @property
    def final(self) -> bool:
        """Whether nothing is left to be trained."""
        return self.reason in ("complete", "until_return", "patience")


def write_ending(run_dir: Path, ending: Ending) -> None:
    """Write the file of a run, atomically. Raises OSError when it can't be written.

    run_dir: of the run. ending: what ended its training.
    """
    write_text(run_dir / ENDED, json.dumps(dataclasses.asdict(ending), indent=2) + "\n")


def read_ending(run_dir: Path) -> Ending | None:
    """What ended the training of a run; None while it is trained, when it was killed, and for runs of klimb 0.1.

    run_dir: of the run. Raises RunError when the file can't be read or holds something else.
    """
    path = run_dir / ENDED
    if not exists(path):
        return None
    try:
        return TypeAdapter(Ending).validate_json(read_limited(path, MAX_FILE))
    except ValidationError as error:
        reason = explain(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{one_line(path)} does not say what ended a run ({one_line(reason, 200)}): remove the file")
