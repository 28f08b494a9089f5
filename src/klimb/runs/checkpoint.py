"""Checkpoints: the whole state of an iteration in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from jaxtyping import PyTree

from klimb.errors import RunError
from klimb.runs.arrays import load_arrays, save_arrays

FORMAT = "klimb-checkpoint-1"


def save_checkpoint(directory: Path, state: PyTree, *, iteration: int, wall_time: float, keep: int) -> Path:
    """Write `<iteration>.safetensors`, then delete all but the newest `keep`. `wall_time` is in seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{iteration:09d}.safetensors"
    meta = {"format": FORMAT, "klimb": json.dumps({"iteration": iteration, "wall_time": wall_time})}
    save_arrays(path, state, meta)
    for old in _newest_first(directory)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(directory: Path, template: PyTree) -> tuple[PyTree, int, float]:
    """(state, iteration, wall time) of the newest checkpoint that is whole; `template` gives the structure.

    Raises RunError when there is none, with what was wrong with each that was tried.
    """
    tried = []
    for path in _newest_first(directory):
        try:
            state, metadata = load_arrays(path, template)
            meta = json.loads(metadata["klimb"])
            return state, int(meta["iteration"]), float(meta["wall_time"])
        except (ValueError, KeyError, TypeError) as error:
            tried.append(f"{path.name}: {error}")
    found = "; ".join(tried) if tried else "the folder holds none"
    raise RunError(f"{directory} has no usable checkpoint ({found})")


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.safetensors"), reverse=True)
