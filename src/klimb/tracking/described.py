"""What trackers are told of a run: its settings and its provenance when it begins, its outcome at the end."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from klimb._version import __version__
from klimb.errors import ConfigError
from klimb.files import is_file, kind_of_link, read_limited
from klimb.rules import rule_name
from klimb.runs.config import RunConfig, settings_of
from klimb.runs.ending import ENDED, Ending
from klimb.runs.metrics import LARGEST
from klimb.runs.own_files import SWEEP, TUNE
from klimb.runs.provenance import Provenance
from klimb.runs.tracking_file import identifier_of, new_identifier
from klimb.tracking.points import counter_of
from klimb.tracking.sink import Outcome, TrackedRun

FILES = ("config.toml", "policy*.json", "policy*.safetensors", "report.html")
"""Names of the files that are logged at the end."""
EVALUATION = "evaluation.json"
MAX_EVALUATION = 2**26
"""Largest evaluation that is read, in bytes."""


def tracked_run(config: RunConfig, directory: Path | None, provenance: list[Provenance], name: str = "") -> TrackedRun:
    """What a tracker is told of a run.

    config: of the run. directory: of the run; None of one in memory. provenance: oldest first. name: of a run in
    memory; '' for one by its rule and environment. Raises RunError when the directory can't hold its identifier.
    """
    options = config.options
    settings = {"env": config.env, "rule": rule_name(config.rule), **_of_rule(config), **dataclasses.asdict(options)}
    return TrackedRun(
        id=new_identifier() if directory is None else identifier_of(directory),
        name=(name or f"{rule_name(config.rule)}-{config.env}") if directory is None else directory.resolve().name,
        group=None if directory is None else _group(directory),
        directory=directory,
        settings={key: _plain(value) for key, value in settings.items() if key != "log"},
        provenance=_as_text(provenance[-1]) if provenance else {"klimb": __version__},
        counter=counter_of(range(options.seed, options.seed + options.num_seeds)),
    )


def started_at(provenance: list[Provenance]) -> float | None:
    """When the training of a run began, in seconds since the epoch; None where that is not known.

    provenance: oldest first.
    """
    try:
        return datetime.fromisoformat(provenance[0].date).timestamp() if provenance else None
    except (ValueError, OverflowError, OSError):
        return None


def outcome_of(directory: Path | None, ending: Ending | None) -> Outcome:
    """What has come of a run, by its files. directory: of the run, or None. ending: of its training, or None."""
    summary: dict[str, float | str] = {}
    if ending is not None:
        summary = {"ended": ending.reason, "ended_message": ending.message}
        summary |= {"final/iterations": float(ending.iteration), "final/env_steps": float(ending.env_steps)}
    if directory is None:
        return Outcome(None if ending is None else ending.reason, summary, [])
    if ending is not None and ending.final and _is_newer(directory / EVALUATION, directory / ENDED):
        summary |= _evaluation(directory)
    # A link would have another file sent, from outside of the run.
    files = [path for pattern in FILES for path in sorted(directory.glob(pattern)) if kind_of_link(path) is None]
    return Outcome(None if ending is None else ending.reason, summary, [path for path in files if is_file(path)])


def _is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written after another one: an older evaluation is that of the policy before a resume."""
    try:
        return path.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except OSError:
        return False


def _group(directory: Path) -> str | None:
    """The name of the sweep or the search that a run is part of; None of a run alone."""
    parent = directory.resolve().parent
    return parent.name if any(is_file(parent / name) for name in (SWEEP, TUNE)) else None


def _of_rule(config: RunConfig) -> dict[str, Any]:
    """The fields of the rule; none of a rule of the user's own that is no dataclass."""
    try:
        return settings_of(config.rule)
    except ConfigError:
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _as_text(entry: Provenance) -> dict[str, str]:
    """What does not depend on when the run was begun or resumed, as trackers have it with every run."""
    device = entry.accelerator
    text = {
        "klimb": entry.klimb,
        "python": entry.python,
        "platform": entry.platform,
        "cores": str(entry.cores),
        "accelerator": f"{device.count} {device.kind} ({device.platform})",
        "packages": " ".join(f"{name}=={version}" for name, version in entry.packages.items()),
    }
    if entry.command is not None:
        text["command"] = " ".join(entry.command)
    if entry.git is not None:
        text["git"] = entry.git.hash + (" with uncommitted changes" if entry.git.uncommitted else "")
    if entry.preset is not None:
        text["preset"] = entry.preset
    return text


def _evaluation(directory: Path) -> dict[str, float]:
    """The final evaluation, as far as the file says something: mean returns over seeds, and of each."""
    try:
        tree = json.loads(read_limited(directory / EVALUATION, MAX_EVALUATION))
        seeds = tree["seeds"]
        numbers = {"eval_episodes": tree["episodes"], "eval_return": tree["mean"]}
        if len(seeds) == 1:
            numbers["eval_return_se"] = seeds[0]["standard_error"]
        else:
            numbers |= {f"seed_{int(seed['seed'])}/eval_return": seed["mean"] for seed in seeds}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    # Compared before the conversion, which overflows for large integers.
    known = {name: x for name, x in numbers.items() if isinstance(x, int | float) and -LARGEST <= x <= LARGEST}
    return {f"final/{name}": float(number) for name, number in known.items()}
