"""Trackers by name: which class logs to each, and whether what it needs is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable

from klimb.errors import ConfigError, MissingExtra, one_line
from klimb.modules import load
from klimb.runs.tracker_name import MLFLOW, WANDB, require_tracker
from klimb.tracking.mlflow_sink import MlflowSink
from klimb.tracking.sink import Sink
from klimb.tracking.wandb_sink import WandbSink

NewSink = Callable[[], Sink]


def sinks_of(names: Iterable[str]) -> dict[str, NewSink]:
    """For each name of a tracker what makes a sink for one run. The packages are imported later, by the sinks.

    names: as `--log` has them. Raises ConfigError for one that is none, MissingExtra when its package is not installed.
    """
    return {name: _new_sink(name) for name in names}


def _new_sink(name: str) -> NewSink:
    kind, rest = require_tracker(name)
    if kind == WANDB:
        _require_installed(kind, "W&B", ["wandb"])
        return WandbSink
    if kind == MLFLOW:
        address = rest or os.environ.get("MLFLOW_TRACKING_URI", "")
        remote = address.startswith(("http:", "https:", "databricks"))
        _require_installed(kind, "MLflow", ["mlflow"] if remote else ["mlflow", "sqlalchemy", "alembic"])
        return lambda: MlflowSink(rest)
    cls = load(rest, "tracker")
    missing = [method for method in ("begin", "log", "finish") if not callable(getattr(cls, method, None))]
    if missing or not callable(cls):
        raise ConfigError(
            f"the tracker {one_line(rest, 80)!r} is no class with {' and '.join(missing or ['a constructor'])}: see "
            "docs/trackers.md"
        )
    return cls


def _require_installed(kind: str, title: str, packages: list[str]) -> None:
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise MissingExtra(f"--log {kind} needs {title}: pip install 'klimb[{kind}]'")
