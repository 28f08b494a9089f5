"""Which files of a run, a sweep or a search are klimb's own: no output of a command may replace them."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from klimb.errors import RunError, one_line
from klimb.files import exists, is_file

BEST, DEMONSTRATOR = "best", "demonstrator"
CONFIG, SWEEP = "config.toml", "sweep.toml"
TUNE, TRIALS, JOURNAL = "tune.toml", "trials.json", "optuna-journal.log"
TRACKING = "tracking.json"
OWN_FILES = (
    *(
        CONFIG,
        "metrics.jsonl",
        "provenance.json",
        "evaluation.json",
        "ended.json",
        "faults.log",
        ".lock",
        "tracking.json",
    ),
    *(TRACKING, "policy*.json", "policy*.safetensors", SWEEP, TUNE, TRIALS, JOURNAL),
)
"""Names of what klimb keeps in the directory of a run, a sweep or a search, besides the directories there."""
OWN_DIRECTORIES = ("checkpoints", BEST, DEMONSTRATOR)


def require_no_file_of_a_run(path: Path) -> None:
    """RunError when an output would replace a file that klimb needs to read or resume a run.

    path: of the output.
    """
    folder = path.parent
    inside = folder.name in OWN_DIRECTORIES and any(is_file(folder.parent / name) for name in (CONFIG, TUNE))
    own = any(is_file(folder / name) for name in (CONFIG, SWEEP, TUNE))
    is_own = inside or (own and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in OWN_FILES))
    if is_own and exists(path):
        run = folder.parent if inside else folder
        raise RunError(f"{one_line(path)} is a file of the run {one_line(run)}: choose another one with -o FILE")
