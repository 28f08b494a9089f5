"""Which files of a run, or of a sweep, are klimb's own: no output of a command may replace them."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from klimb.errors import RunError, one_line
from klimb.files import exists, is_file

BEST, DEMONSTRATOR = "best", "demonstrator"
CONFIG, SWEEP = "config.toml", "sweep.toml"
OWN_FILES = (
    *(CONFIG, "metrics.jsonl", "provenance.json", "evaluation.json", "ended.json", "faults.log", ".lock"),
    *("policy*.json", "policy*.safetensors", SWEEP),
)
"""Names of what klimb keeps in the directory of a run or a sweep, besides the directories there."""
OWN_DIRECTORIES = ("checkpoints", BEST, DEMONSTRATOR)


def require_no_file_of_a_run(path: Path) -> None:
    """RunError when an output would replace a file that klimb needs to read or resume a run.

    path: of the output.
    """
    folder = path.parent
    inside = folder.name in OWN_DIRECTORIES and is_file(folder.parent / CONFIG)
    own = is_file(folder / CONFIG) or is_file(folder / SWEEP)
    is_own = inside or (own and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in OWN_FILES))
    if is_own and exists(path):
        run = folder.parent if inside else folder
        raise RunError(f"{one_line(path)} is a file of the run {one_line(run)}: choose another one with -o FILE")
