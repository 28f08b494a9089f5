"""`provenance.json`: what a run was trained with and on, one entry for its start and one for each time it was resumed.

Nothing in it names a person, a machine or a place: the file is safe to share.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from klimb.errors import RunError, one_line
from klimb.fields import explain
from klimb.files import exists, read_limited, write_text

PROVENANCE = "provenance.json"
MAX_FILE = 2**20
"""Bytes of the file: about a thousand entries."""

Text = Annotated[str, Field(max_length=4096)]
Number = Annotated[int, Field(ge=0, lt=2**53)]
Value = bool | int | float | Text | list[bool | int | float | Text] | None


@dataclass(frozen=True)
class Accelerator:
    """The devices that JAX computes with: `count` of one kind. platform: `cpu`, `gpu` or `tpu`."""

    platform: Text
    kind: Text
    count: Number


@dataclass(frozen=True)
class Commit:
    """The git commit that was checked out. uncommitted: whether files that git tracks differ from it; None: unknown."""

    hash: Text
    uncommitted: bool | None


@dataclass(frozen=True)
class Change:
    """A setting that changed when the run was resumed: a training option, or a field of the rule.

    name: of the setting. before, after: its values, as in config.toml; None for none.
    """

    name: Text
    before: Value
    after: Value


@dataclass(frozen=True)
class Provenance:
    """One start of a training, or one time that it was resumed.

    event: which of the two. iteration: that it began after. date: of the event, UTC, as ISO 8601. command: what was
    typed; None in Python. klimb, python: versions. packages: versions of others by name. platform: operating system
    and architecture. cores: that the process could use. accelerator: JAX's devices. git: of the current directory;
    None where that is in no git work tree, or there is no git. changes: of the configuration, from here on.
    preset: that the settings were taken from at the start, by its name; None for none.
    """

    event: Literal["start", "resume"]
    iteration: Number
    date: Text
    command: Annotated[list[Text], Field(fail_fast=True)] | None
    klimb: Text
    python: Text
    packages: dict[Text, Text]
    platform: Text
    cores: Number
    accelerator: Accelerator
    git: Commit | None
    changes: Annotated[list[Change], Field(fail_fast=True)] = dataclasses.field(default_factory=list)
    preset: Text | None = None


_ENTRIES = TypeAdapter(Annotated[list[Provenance], Field(fail_fast=True)])


def write_provenance(run_dir: Path, entries: list[Provenance]) -> None:
    """Write the file of a run, atomically. Raises OSError when it can't be written.

    run_dir: of the run. entries: oldest first. Of more than the file may hold, the oldest after the first are left out.
    """
    trees = as_plain(entries)
    while len(text := json.dumps(trees, indent=2) + "\n") > MAX_FILE and len(trees) > 2:
        del trees[1 : max(2, len(trees) // 10)]
    write_text(run_dir / PROVENANCE, text)


def read_provenance(run_dir: Path) -> list[Provenance]:
    """The entries of a run, oldest first; none where the file is missing, as in runs of klimb 0.1.

    run_dir: of the run. Raises RunError when the file can't be read or holds something else.
    """
    path = run_dir / PROVENANCE
    if not exists(path):
        return []
    try:
        return _ENTRIES.validate_json(read_limited(path, MAX_FILE))
    except ValidationError as error:
        reason = explain(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{one_line(path)} is not the provenance of a run ({one_line(reason, 200)}): remove the file")


def as_plain(entries: list[Provenance]) -> list[dict[str, Any]]:
    """Entries as plain data for JSON."""
    return [dataclasses.asdict(entry) for entry in entries]
