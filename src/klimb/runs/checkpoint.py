"""Checkpoints: the whole state of an iteration in one safetensors file, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from klimb.errors import RunError
from klimb.runs.arrays import current_name, load_arrays, save_arrays

FORMAT = "klimb-checkpoint-2"

logger = logging.getLogger("klimb")


class Checkpoint(NamedTuple):
    """A state and what goes with it.

    wall_time: seconds of training so far. host_states: where host environments stand (`Program.host_states`), or
    None where that can't be saved.
    """

    state: PyTree
    iteration: int
    wall_time: float
    host_states: dict[str, Any] | None = None


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `<iteration>.safetensors`, then delete all but the newest `keep`.

    Those of later iterations go too: the run has gone on from before them, since they were damaged. Raises OSError
    when it can't be written; the others stay.
    """
    directory.mkdir(exist_ok=True)
    # What a process that was killed in the middle of writing has left.
    for torn in directory.glob(".*.part"):
        torn.unlink(missing_ok=True)
    path = directory / f"{checkpoint.iteration:09d}.safetensors"
    write_checkpoint(path, checkpoint)
    every = _newest_first(directory)
    at = every.index(path)
    for other in every[:at] + every[at + keep :]:
        with contextlib.suppress(OSError):
            other.unlink(missing_ok=True)
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """One file, atomically."""
    told = {
        "iteration": checkpoint.iteration,
        "wall_time": checkpoint.wall_time,
        "environments": checkpoint.host_states,
    }
    save_arrays(path, checkpoint.state, {"format": FORMAT, "klimb": json.dumps(told)})


def load_checkpoint(directory: Path, template: PyTree, *, otherwise: Path | None = None) -> Checkpoint:
    """The newest checkpoint that is whole, else the one of `otherwise`; `template` gives the structure.

    Says so in a line when it is not the newest. Raises RunError when there is none, with what was wrong with each.
    """
    tried = []
    for path in [*_newest_first(directory), *([otherwise] if otherwise is not None and otherwise.exists() else [])]:
        try:
            checkpoint = _read(path, template)
        except ValueError as error:
            tried.append(f"{path.name}: {error}")
            continue
        if tried:
            logger.warning("%s can't be used; going on from iteration %d", "; ".join(tried), checkpoint.iteration)
        return checkpoint
    found = "; ".join(tried) if tried else "the folder holds none"
    raise RunError(f"{directory} has no usable checkpoint ({found})")


def _read(path: Path, template: PyTree) -> Checkpoint:
    """One file's. ValueError when it is damaged, or of another format or run."""
    state, metadata = load_arrays(path, template, require_checksum=True, renamed=current_name)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {str(metadata.get('format'))[:40]!r}; this klimb reads {FORMAT!r}")
    try:
        told = json.loads(metadata["klimb"])
        host_states = told["environments"]
        if not isinstance(host_states, dict | None):
            raise TypeError
        return Checkpoint(state, int(told["iteration"]), float(told["wall_time"]), host_states)
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"what it says of itself can't be read ({type(error).__name__})") from None


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.safetensors"), reverse=True)
