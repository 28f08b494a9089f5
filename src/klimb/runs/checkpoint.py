"""Checkpoints: the complete training state after an iteration in one safetensors file, written atomically."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from klimb.errors import RunError, shown
from klimb.files import exists, make_directory, remove_if_possible
from klimb.runs.arrays import current_name, load_arrays, save_arrays
from klimb.types import TrainState

FORMAT = "klimb-checkpoint-2"

logger = logging.getLogger("klimb")


class Checkpoint(NamedTuple):
    """A training state, and what is saved with it.

    state: a `TrainState`. iteration: iterations done. wall_time: seconds of training so far. host_states: the
    simulator states of host environments (`Program.host_states`), or None where they can't be saved.
    """

    state: PyTree
    iteration: int
    wall_time: float
    host_states: dict[str, Any] | None = None


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `<iteration>.safetensors`, then delete old checkpoints. Returns the path of the new one.

    directory: is created if missing. checkpoint: to write. keep: number of checkpoints to keep, this one included.
    Checkpoints of later iterations are deleted too: they were damaged, so the run was resumed from an earlier one.
    Raises OSError when the file can't be written; the existing checkpoints are then kept.
    """
    make_directory(directory)
    # Temporary files of a process that was killed while writing.
    for temporary in directory.glob(".*.part"):
        remove_if_possible(temporary)
    path = directory / f"{checkpoint.iteration:09d}.safetensors"
    write_checkpoint(path, checkpoint)
    paths = _newest_first(directory)
    index = paths.index(path)
    for other in paths[:index] + paths[index + keep :]:
        remove_if_possible(other)
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one checkpoint to the file `path`, atomically. Raises OSError when it can't be written.

    path: the file. checkpoint: to write.
    """
    header = {
        "iteration": checkpoint.iteration,
        "wall_time": checkpoint.wall_time,
        "environments": checkpoint.host_states,
    }
    save_arrays(path, checkpoint.state, {"format": FORMAT, "klimb": json.dumps(header)})


def saved_iterations(directory: Path) -> list[int]:
    """The iterations whose checkpoints a directory has, newest first, whether they can be used or not."""
    return [int(path.stem) for path in _newest_first(directory) if path.stem.isdigit()]


def load_checkpoint_of(directory: Path, template: PyTree, iteration: int) -> Checkpoint:
    """The checkpoint of one iteration. RunError when it is damaged or missing.

    directory: of the checkpoints. template: a state of the same structure, shapes and dtypes. iteration: its number.
    """
    path = directory / f"{iteration:09d}.safetensors"
    try:
        return _read(path, template)
    except ValueError as error:
        raise RunError(f"{path} can't be used: {error}") from None


def load_checkpoint(directory: Path, template: PyTree, *, otherwise: Path | None = None) -> Checkpoint:
    """The newest undamaged checkpoint of a directory. Logs a warning when it is not the newest one.

    directory: of the checkpoints. template: a state of the same structure, shapes and dtypes. otherwise: a further
    checkpoint file to try last.
    Raises RunError when none is usable, with what is wrong with each.
    """
    failures = []
    for path in [*_newest_first(directory), *([otherwise] if otherwise is not None and exists(otherwise) else [])]:
        try:
            checkpoint = _read(path, template)
        except ValueError as error:
            failures.append(f"{path.name}: {error}")
            continue
        if failures:
            logger.warning("%s can't be used; resuming from iteration %d", "; ".join(failures), checkpoint.iteration)
        return checkpoint
    causes = "; ".join(failures) if failures else "the folder contains none"
    raise RunError(f"{directory} has no usable checkpoint ({causes})")


def _read(path: Path, template: PyTree) -> Checkpoint:
    """The checkpoint in one file. ValueError when it is damaged, or of another format or run."""
    state, metadata = load_arrays(path, template, require_checksum=True, renamed=current_name)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {str(metadata.get('format'))[:40]!r}; this klimb reads {FORMAT!r}")
    try:
        header = json.loads(metadata["klimb"])
        host_states = header["environments"]
        if not isinstance(host_states, dict | None):
            raise TypeError
        iteration, wall_time = int(header["iteration"]), float(header["wall_time"])
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"its metadata can't be read ({type(error).__name__})") from None
    # What a checksum does not say: whether a training can have written it. Seeds that have ended count no further.
    done = int(np.max(state.iteration)) if isinstance(state, TrainState) else iteration
    if iteration != done or iteration < 0 or not 0 <= wall_time < math.inf:
        raise ValueError(
            f"its metadata do not belong to its state: iteration {shown(iteration)} and {shown(wall_time)} seconds of "
            f"training, and in the state iteration {done}"
        )
    return Checkpoint(state, iteration, wall_time, host_states)


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.safetensors"), reverse=True)
