"""klimb sync RUN TRACKER: what a tracker lacks of a run, a sweep or a search is logged there from its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from klimb.cli.parser import Command, RunWord
from klimb.errors import KlimbError, RunError, one_line
from klimb.files import is_file
from klimb.runs.own_files import BEST
from klimb.runs.sweep_file import is_sweep
from klimb.runs.tune_file import is_search
from klimb.terminal import write_line
from klimb.tracking.registry import sinks_of
from klimb.tracking.sync import sync as sync_run


@dataclass(frozen=True)
class SyncArguments:
    """What is typed after `klimb sync`."""

    run: RunWord
    """Run directory, or the directory of a sweep or a search, all of whose runs are logged."""
    tracker: Annotated[str, Positional, arg(metavar="TRACKER")]
    """wandb, mlflow, mlflow:URI, or module:Class for a tracker of your own."""


def sync(arguments: SyncArguments) -> None:
    """Log runs to a tracker, and print how much it lacked.

    arguments: which runs, and to which tracker.
    """
    sinks_of([arguments.tracker])
    failures = []
    for path in _runs(arguments.run):
        try:
            synced = sync_run(path, arguments.tracker)
        except KlimbError as error:
            # One run that can't be logged does not cost the others.
            failures.append(str(error))
        else:
            write_line(f"{path}: {synced.added} of {synced.records} records were new to {arguments.tracker}")
    if failures:
        raise RunError("; ".join(failures))


def _runs(directory: Path) -> Iterator[Path]:
    """The run itself, or every run of a sweep or a search. RunError when there is none."""
    if not (is_sweep(directory) or is_search(directory)):
        yield directory
        return
    # The best trial of a search is a copy of one of the others.
    runs = [path.parent for path in sorted(directory.glob("*/config.toml")) if path.parent.name != BEST]
    if not runs:
        raise RunError(f"{one_line(directory)} has no runs yet")
    yield from (path for path in runs if is_file(path / "config.toml"))


COMMAND = Command("sync", SyncArguments, sync)
