"""What a run says of itself: one JSON object an iteration, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from klimb.errors import one_line
from klimb.runs.files import require_regular
from klimb.types import Metric, Status

Record = dict[str, Any]
FILE_NAME = "metrics.jsonl"

logger = logging.getLogger("klimb")

METRICS: dict[str, Metric] = {
    "iteration": Metric("Iterations", "iterations done"),
    "env_steps": Metric("Environment steps", "environment steps taken, each seed"),
    "wall_time": Metric("Time", "seconds since the start, compilation included, over all parts of a resumed run"),
    "steps_per_second": Metric(
        "Speed", "environment steps per second of all seeds together, in the call that the iteration was part of"
    ),
    "episode_return": Metric("Return", "mean undiscounted return of the episodes that ended"),
    "episode_length": Metric("Episode length", "mean length of the episodes that ended, in steps"),
    "episodes": Metric("Episodes", "how many episodes ended"),
    "env_faults": Metric(
        "Environment faults", "how often a host environment was restarted because it raised, hung or ended its process"
    ),
    "surrogate_gain": Metric("Surrogate gain", "mean (π_new/π_old − 1) Â, in the units the rule saw"),
    "predicted_improvement": Metric("Predicted improvement", "the surrogate gain in reward per step"),
    "predicted_improvement_se": Metric("Standard error", "of the predicted improvement"),
    "realised_improvement": Metric(
        "Realised improvement", "what the step of the previous iteration brought, in reward per step"
    ),
    "realised_improvement_se": Metric("Standard error", "of the realised improvement"),
    "kl_old_new": Metric("KL(π_old‖π_new)", "mean over states, in nats"),
    "kl_new_old": Metric("KL(π_new‖π_old)", "mean over states, in nats"),
    "kl_max": Metric("Maximum KL", "over states, in the direction that the rule constrains"),
    "kl_old_new_max": Metric("Maximum KL(π_old‖π_new)", "over states, in nats"),
    "kl_new_old_max": Metric("Maximum KL(π_new‖π_old)", "over states, in nats"),
    "tv": Metric("Total variation", "mean over states, 0 to 1; sampled for Gaussians of several dimensions"),
    "tv_max": Metric(
        "Maximum total variation", "over states, 0 to 1; an upper bound for Gaussians of several dimensions"
    ),
    "kl_old_new_se": Metric("Standard error", "of kl_old_new, over the environments of the rollout"),
    "kl_new_old_se": Metric("Standard error", "of kl_new_old, over the environments of the rollout"),
    "tv_se": Metric("Standard error", "of tv, over the environments of the rollout"),
    "tv_bound": Metric("Bound on total variation", "on its mean, from the KLs (Pinsker, Bretagnolle–Huber)"),
    "tv_max_bound": Metric("Bound on maximum total variation", "from the KLs of the worst state"),
    "state_mismatch_bound": Metric(
        "Bound on the state mismatch", "on the total variation of discounted state distributions before and after"
    ),
    "guaranteed_improvement": Metric("Guaranteed improvement", "lower bound on the improvement, in reward per step"),
    "step_excess": Metric("Step excess", "length of the step, in lengths of the longest step with a guarantee"),
    "entropy": Metric("Entropy", "mean entropy of the new policy, in nats"),
    "ess": Metric(
        "Effective sample size", "of the ratios of π_new to the policy that collected the batch, as a fraction"
    ),
    "status": Metric("Status", "ACCEPTED, CRITIC_WARMUP, or why the step was rejected"),
    "explained_variance": Metric(
        "Explained variance", "of the value targets, by the critic before it was fitted to them"
    ),
    "value_loss": Metric("Critic loss", "squared error in the last epoch of the fit, in variances of the targets"),
}
"""The metrics of every run, with their titles and meanings. A rule has more: `klimb.Traits.metrics`."""


def to_records(metrics: dict[str, np.ndarray], *, wall_time: list[float], steps_per_second: float) -> list[Record]:
    """Records from arrays `[iterations, seeds]`: a number a metric with one seed, a list with several.

    Non-finite numbers become None (null in JSON); statuses become their names.
    """
    count, num_seeds = metrics["iteration"].shape
    common = {"iteration", "env_steps"}
    records = []
    for i in range(count):
        record: Record = {
            "iteration": int(metrics["iteration"][i, 0]),
            "env_steps": int(metrics["env_steps"][i, 0]),
            "wall_time": round(wall_time[i], 4),
            "steps_per_second": round(steps_per_second, 1),
        }
        for name in metrics.keys() - common:
            values = [_plain(name, value) for value in metrics[name][i]]
            record[name] = values[0] if num_seeds == 1 else values
        head = list(record)[:4]
        records.append({name: record[name] for name in [*head, *sorted(record.keys() - set(head))]})
    return records


def _plain(name: str, value: Any) -> Any:
    if name == "status":
        return Status(int(value)).name
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(path: Path) -> list[Record]:
    """All whole records of a metrics file. A last line still being written is left out, and so are damaged ones."""
    records, damaged = [], 0
    for record, whole in _lines(path):
        if record is not None:
            records.append(record)
        else:
            damaged += whole
    if damaged:
        logger.warning("%s: %d damaged lines are left out", one_line(path), damaged)
    return records


def _lines(path: Path) -> Iterator[tuple[Record | None, bool]]:
    """Every line's record, None where it holds none, and whether it is a whole line."""
    require_regular(path)
    with path.open("rb") as file:
        for line in file:
            yield _parsed(line), line.endswith(b"\n")


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("iteration")) is int
    return record if whole else None


def _cut_back(path: Path, iteration: int) -> None:
    """Drop what comes after the record of an iteration: it is about to be made again."""
    require_regular(path)
    end, kept = 0, 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            record = _parsed(line)
            if record is not None and record["iteration"] <= iteration and line.endswith(b"\n"):
                kept = end
    # In place: whoever follows the file keeps following, and a kill in between leaves whole lines.
    os.truncate(path, kept)


class MetricsLog:
    """Appends records to `metrics.jsonl`, and to TensorBoard event files in the same directory."""

    def __init__(self, directory: Path, *, keep_until: int | None = None) -> None:
        """`keep_until` drops the records after that iteration: they are about to be made again."""
        path = directory / FILE_NAME
        if keep_until is not None and path.exists():
            _cut_back(path, keep_until)
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._waiting = b""
        self._board = _Board(directory)

    def append(self, records: list[Record]) -> None:
        """Write records, whole lines at a time. TensorBoard, which is for looking, gets the last of them.

        Raises OSError when they can't be written. The file then ends with a whole line, and they wait for the next try.
        """
        self._waiting += b"".join(_line(record) for record in records)
        self._board.add(records[-1])
        self.write_waiting()

    def write_waiting(self) -> None:
        """Try again to write what could not be written. Raises OSError as `append` does."""
        if not self._waiting:
            return
        try:
            if self._file.write(self._waiting) != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(self._waiting)
        self._waiting = b""

    def flush(self) -> None:
        """Whatever has been appended is on the disk. Raises OSError as `append` does."""
        self.write_waiting()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def _line(record: Record) -> bytes:
    return (json.dumps(record, separators=(",", ":")) + "\n").encode()


class _Board:
    """TensorBoard's event file. What can't be written is given up: every number is in the metrics."""

    def __init__(self, directory: Path) -> None:
        # TensorBoard costs half a second to import: only runs that are written pay for it. Its `SummaryWriter` hands
        # everything to a thread, and waits for ever when that has died of a full disk.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        self._writer: Any = None
        path = directory / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        with self._giving_up():
            self._writer = RecordWriter(str(path))
            self._write(Event(file_version="brain.Event:2", wall_time=time.time()))

    def add(self, record: Record) -> None:
        """Write a record."""
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = (scalar for name, value in record.items() for scalar in _scalars(name, value))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in scalars])
        with self._giving_up():
            self._write(Event(summary=summary, wall_time=time.time(), step=record["env_steps"]))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("TensorBoard's events can't be written (%s): there will be no more of them", error.strerror)
            self.close()
            self._writer = None


def _scalars(name: str, value: Any) -> list[tuple[str, float | int]]:
    """(tag, number) for TensorBoard: one tag, or one a seed."""
    values = value if isinstance(value, list) else [value]
    tags = [name] if not isinstance(value, list) else [f"{name}/seed_{i}" for i in range(len(values))]
    numbers = [float(Status[v]) if name == "status" else v for v in values]
    return [(tag, number) for tag, number in zip(tags, numbers, strict=True) if number is not None]
