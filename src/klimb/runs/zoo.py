"""The zoo: trained policies that come with klimb, by names such as zoo:trpo/HalfCheetah-v4."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from klimb.errors import RunError, nearest, one_line, shown
from klimb.fields import explain
from klimb.files import read_limited, write_text

PREFIX = "zoo:"
ROOT = Path(__file__).parent.parent / "zoo"
"""A folder per rule, and in it a folder per environment: `config.toml`, the policy's two files and `zoo.json`."""
FILE_NAME = "zoo.json"
MAX_FILE = 2**16


class ZooEntry(NamedTuple):
    """How good a policy of the zoo is, and where it is from.

    rule, env: of the training. seed: of the policy, whose return is the highest of all seeds'. mean, standard_error: of
    `episodes` deterministic episodes. seeds: mean returns of all seeds of the training, in their order. env_steps: of
    the training. command: that trained all seeds. klimb, commit: what trained them.
    """

    rule: str
    env: str
    seed: int
    mean: float
    standard_error: float
    episodes: int
    seeds: list[float]
    env_steps: int
    command: str
    klimb: str
    commit: str

    def write(self, directory: Path) -> None:
        """Into the folder of the policy."""
        write_text(directory / FILE_NAME, json.dumps(self._asdict(), indent=2) + "\n")


def zoo() -> dict[str, ZooEntry]:
    """All policies of the zoo by name, without the prefix. RunError when a file of it is damaged."""
    return {file.parent.relative_to(ROOT).as_posix(): _read(file) for file in sorted(ROOT.glob(f"*/*/{FILE_NAME}"))}


def _read(file: Path) -> ZooEntry:
    try:
        return TypeAdapter(ZooEntry).validate_json(read_limited(file, MAX_FILE))
    except ValidationError as error:
        reason = explain(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{one_line(file)} is no entry of the zoo ({one_line(reason, 200)}): install klimb again")


def is_zoo(given: Any) -> bool:
    """Whether a path is the name of a policy of the zoo. given: what was typed or passed."""
    return isinstance(given, str | PurePath) and str(given).startswith(PREFIX)


def directory_of(given: str | PurePath) -> Path:
    """The directory of a policy of the zoo. RunError when the zoo has none of this name.

    given: zoo:NAME.
    """
    # A path of Windows has its own slashes.
    text = given.as_posix() if isinstance(given, PurePath) else given
    name, entries = text.removeprefix(PREFIX), zoo()
    if name not in entries:
        raise RunError(f"the zoo has no {shown(name)}{nearest(name, entries)} (klimb list zoo shows what it has)")
    return ROOT / name
