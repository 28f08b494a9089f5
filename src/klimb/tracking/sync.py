"""`sync`: what a run directory has, and a tracker does not, is logged there after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from klimb.errors import RunError, one_line
from klimb.runs.directory import RunDirectory
from klimb.tracking.registry import sinks_of
from klimb.tracking.trackers import RunTrackers


class Synced(NamedTuple):
    """What a tracker was given. records: of the run. added: those of them that it did not have."""

    records: int
    added: int


def sync(run_dir: str | Path, tracker: str) -> Synced:
    """Log a run to a tracker from its files. What is there already is not logged again.

    run_dir: the run. tracker: wandb, mlflow, mlflow:URI, or module:Class of one of the user's own.

    Raises ConfigError for a name that is none; MissingExtra when the tracker's package is not installed; RunError when
    the directory is not a run, when the process that trains it logs to the same tracker, or when the tracker fails.
    """
    sinks_of([tracker])
    directory = RunDirectory.open(run_dir)
    writer = directory.writer
    if writer is not None and tracker in directory.config.options.log:
        raise RunError(
            f"{one_line(directory.path)} is being trained by {writer}, which logs it to {tracker}: sync it afterwards"
        )
    records = directory.history()
    run = RunTrackers([tracker], directory.config, directory, records)
    run.finish()
    (one,) = run.trackers
    one.wait()
    if one.failure is not None:
        raise RunError(f"{one_line(directory.path)} could not be logged to {tracker}: {one.failure}")
    return Synced(len(records), one.added)
