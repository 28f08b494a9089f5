"""Runs in MLflow: hyperparameters as params, records as metrics in batches, provenance as tags, files as artifacts."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from klimb.runs.ending import Reason
from klimb.tracking.sink import Outcome, Point, TrackedRun

IDENTIFIER = "klimb.id"
"""The tag by which a run is found again."""
MAX_METRICS, MAX_PARAMS, MAX_TEXT = 1000, 100, 4000
"""Of one call: MLflow's limits. Of a text, in characters: less than the limit of every server."""
STATUS: dict[Reason, str] = {"failed": "FAILED", "interrupted": "KILLED", "pruned": "KILLED"}
"""MLflow's status by what ended a training; FINISHED for all else."""

_ONE_AT_A_TIME = threading.Lock()
"""Runs of a sweep share a database, which is made when the first of them opens it."""


class MlflowSink:
    """One run of klimb in MLflow. address: of the server or the database; '' for the one that MLflow is set to."""

    def __init__(self, address: str) -> None:
        self._address = address
        # A server may be asked by several threads at once, and one that hangs does not hold up the others.
        remote = (address or os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http")
        self._turn: Any = contextlib.nullcontext() if remote else _ONE_AT_A_TIME
        self._client: Any = None
        self._run_id = ""
        self._last: tuple[int, int] = (0, 0)
        """Step, and time in milliseconds, of the last point."""

    def begin(self, run: TrackedRun) -> int | None:
        """As `Sink.begin`."""
        with self._turn:
            self._client = _client(self._address)
            self._run_id = self._found(run) or self._created(run)
            self._client.update_run(self._run_id, status="RUNNING")
            self._log_settings(run)
            history = self._client.get_metric_history(self._run_id, run.counter)
        if not history:
            return None
        newest = max(history, key=lambda metric: metric.step)
        self._last = (newest.step, newest.timestamp)
        return newest.step

    def log(self, points: Sequence[Point]) -> None:
        """As `Sink.log`."""
        from mlflow.entities import Metric

        # The counter is the last value of a point: what has it, has all of the point.
        metrics = [
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        self._last = (points[-1].step, round(points[-1].time * 1000))
        self._log_metrics(metrics)

    def finish(self, outcome: Outcome) -> None:
        """As `Sink.finish`."""
        from mlflow.entities import Metric

        step, milliseconds = self._last
        numbers = {name: value for name, value in outcome.summary.items() if isinstance(value, float)}
        self._log_metrics([Metric(name, value, milliseconds, step) for name, value in numbers.items()])
        with self._turn:
            for name in outcome.summary.keys() - numbers.keys():
                self._client.set_tag(self._run_id, f"klimb.{name}", str(outcome.summary[name])[:MAX_TEXT])
            for path in outcome.files:
                self._client.log_artifact(self._run_id, str(path))
            if outcome.reason is not None:
                self._client.set_terminated(self._run_id, STATUS.get(outcome.reason, "FINISHED"))

    def _log_metrics(self, metrics: list[Any]) -> None:
        for first in range(0, len(metrics), MAX_METRICS):
            with self._turn:
                self._client.log_batch(self._run_id, metrics=metrics[first : first + MAX_METRICS])

    def _found(self, run: TrackedRun) -> str | None:
        """MLflow's identifier of a run that it has already."""
        found = self._client.search_runs([self._experiment], f"tags.`{IDENTIFIER}` = '{run.id}'", max_results=1)
        return found[0].info.run_id if found else None

    def _created(self, run: TrackedRun) -> str:
        tags = {f"klimb.{name}": value[:MAX_TEXT] for name, value in run.provenance.items()}
        if run.group is not None:
            tags["klimb.group"] = run.group
        made = self._client.create_run(self._experiment, run_name=run.name, tags={**tags, IDENTIFIER: run.id})
        return made.info.run_id

    @property
    def _experiment(self) -> str:
        """MLflow's identifier of the experiment, which is made where there is none of its name."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "klimb"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except Exception:  # another process has made it at this moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _log_settings(self, run: TrackedRun) -> None:
        """Log the hyperparameters. MLflow does not change one: what a resumed run has changed becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        settings = {name: _text(value) for name, value in run.settings.items()}
        new = [Param(name, value) for name, value in settings.items() if name not in known]
        for first in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=new[first : first + MAX_PARAMS])
        for name, value in settings.items():
            if known.get(name, value) != value:
                self._client.set_tag(self._run_id, f"klimb.changed.{name}", value)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)[:MAX_TEXT]


def _client(address: str) -> Any:
    """MLflow's client, which says nothing about what it does, and sends nothing to MLflow's makers."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    quiet = "mlflow" not in sys.modules
    from mlflow import MlflowClient

    if quiet:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(address or None)
