"""The metrics of a run: what they mean, and their file, with one JSON object per iteration."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klimb.errors import one_line
from klimb.files import TooLarge, exists, open_to_append, read_lines
from klimb.runs.tensorboard import Board
from klimb.types import Metric, Status

LARGEST = float(np.finfo(np.float32).max)
"""No metric is larger: it is computed in float32."""
Record = dict[str, Any]
FILE_NAME = "metrics.jsonl"
MAX_LINE = 2**26
"""Bytes of the longest record that is read: of tens of thousands of seeds."""

logger = logging.getLogger("klimb")

METRICS: dict[str, Metric] = {
    "iteration": Metric("Iteration", "iterations done"),
    "env_steps": Metric(
        "Environment steps",
        "environment steps taken so far, per seed, including the rollout that sets the first observation statistics",
    ),
    "wall_time": Metric(
        "Wall time", "seconds of training so far, compilation included, over all parts of a resumed run"
    ),
    "steps_per_second": Metric(
        "Speed",
        "environment steps per second, all seeds together, averaged over the iterations of one program call",
    ),
    "episode_return": Metric("Episode return", "mean undiscounted return of the episodes that ended in the iteration"),
    "episode_length": Metric("Episode length", "mean number of steps of the episodes that ended in the iteration"),
    "episodes": Metric("Episodes", "number of episodes that ended in the iteration"),
    "env_faults": Metric(
        "Environment faults",
        "host environments: number of restarts in the iteration because an environment raised, hung, ended its "
        "process or returned invalid values",
    ),
    "late_rows": Metric(
        "Late rows",
        "with `straggler_timeout`: number of steps of the iteration that late workers did not make; these rows are not "
        "valid",
    ),
    "surrogate_gain": Metric(
        "Surrogate gain",
        "mean of (π_new/π_old − 1) Â, in the units of the advantages that the rule is given (normalised by default)",
    ),
    "predicted_improvement": Metric("Predicted improvement", "the surrogate gain in reward per step"),
    "predicted_improvement_se": Metric(
        "Predicted improvement, standard error",
        "standard error of the predicted improvement, in reward per step",
    ),
    "realised_improvement": Metric(
        "Realised improvement",
        "measured gain of the previous iteration's step, in reward per step: mean one-step TD residual on this batch "
        "minus that on the previous batch, under the same critic; with --overlap, of the step one iteration earlier",
    ),
    "realised_improvement_se": Metric(
        "Realised improvement, standard error",
        "standard error of the realised improvement, in reward per step",
    ),
    "kl_old_new": Metric("KL(old‖new)", "mean over states of KL(π_old‖π_new), in nats"),
    "kl_new_old": Metric("KL(new‖old)", "mean over states of KL(π_new‖π_old), in nats"),
    "kl_old_new_se": Metric(
        "KL(old‖new), standard error",
        "standard error of the mean, with each environment of the rollout as one sample, in nats",
    ),
    "kl_new_old_se": Metric(
        "KL(new‖old), standard error",
        "standard error of the mean, with each environment of the rollout as one sample, in nats",
    ),
    "kl_max": Metric("Largest KL", "largest KL over states, in the direction that the rule constrains, in nats"),
    "kl_old_new_max": Metric("Largest KL(old‖new)", "largest KL(π_old‖π_new) over states, in nats"),
    "kl_new_old_max": Metric("Largest KL(new‖old)", "largest KL(π_new‖π_old) over states, in nats"),
    "kl_normalizer": Metric(
        "KL of the normaliser",
        "mean over states of the KL between π_new before and after the update of the observation statistics, in nats; "
        "0 unless observations were clipped",
    ),
    "tv": Metric(
        "Total variation",
        "mean over states of the total variation between π_old and π_new, 0 to 1; sampled for Gaussians of several "
        "dimensions",
    ),
    "tv_max": Metric(
        "Largest total variation",
        "largest total variation over states, 0 to 1; an upper bound for Gaussians of several dimensions",
    ),
    "tv_se": Metric(
        "Total variation, standard error",
        "standard error of the mean, with each environment of the rollout as one sample",
    ),
    "tv_bound": Metric(
        "Bound on the total variation",
        "upper bound on the mean total variation implied by the KL (Pinsker or Bretagnolle–Huber, state by state)",
    ),
    "tv_max_bound": Metric(
        "Bound on the largest total variation",
        "upper bound on the largest total variation implied by the KL (Pinsker or Bretagnolle–Huber)",
    ),
    "state_mismatch_bound": Metric(
        "State mismatch bound",
        "upper bound on the total variation between the discounted state distributions before and after the step, with "
        "the largest values over sampled states",
    ),
    "sampled_improvement_bound": Metric(
        "Sampled lower bound",
        "lower bound on the improvement, in reward per step, with the largest values over sampled states in place of "
        "those over all states, so it is not a guarantee; nearly always negative",
    ),
    "step_excess": Metric(
        "Step excess",
        "ratio of the step's length to that of the longest step whose sampled lower bound is not negative",
    ),
    "entropy": Metric("Entropy", "mean entropy of the new policy, in nats"),
    "ess": Metric(
        "Effective sample size",
        "effective sample size of the batch, weighted by the ratio of π_new to the policies that collected it, as a "
        "fraction; 1 if the policy collected the batch itself and did not change",
    ),
    "status": Metric(
        "Status",
        "`ACCEPTED`; why the step was rejected (`KL_TOO_LARGE`, `NO_IMPROVEMENT`, `NONFINITE`, `CG_BREAKDOWN`); "
        "`CRITIC_WARMUP` if no step was tried; `FINISHED` if the seed has made its `env_steps` and waits for the "
        "others (`--batch episodes`)",
    ),
    "explained_variance": Metric(
        "Explained variance",
        "share of the variance of the value targets that the critic explained before it was fitted to them; 1 is all, "
        "0 is no better than predicting their mean",
    ),
    "value_loss": Metric(
        "Value loss",
        "mean squared error of the critic in the last epoch of its fit, divided by the variance of the targets",
    ),
    "eval_return": Metric(
        "Evaluation return",
        "mean undiscounted return of the evaluation's episodes under the deterministic policy, which takes the mode; "
        "with --eval-every, in the iterations after which the policy was evaluated",
    ),
    "eval_return_se": Metric("Evaluation return, standard error", "standard error of the mean over episodes"),
    "eval_return_min": Metric("Evaluation return, lowest", "return of the worst episode of the evaluation"),
    "eval_return_max": Metric("Evaluation return, highest", "return of the best episode of the evaluation"),
    "eval_length": Metric("Evaluation length", "mean number of steps of the evaluation's episodes"),
    "eval_sampled_return": Metric(
        "Evaluation return, sampled",
        "mean undiscounted return of as many other episodes of the evaluation, with sampled actions",
    ),
    "eval_sampled_return_se": Metric(
        "Evaluation return, sampled, standard error",
        "standard error of the mean over episodes, with sampled actions",
    ),
    "eval_sampled_return_min": Metric(
        "Evaluation return, sampled, lowest", "return of the worst episode with sampled actions"
    ),
    "eval_sampled_return_max": Metric(
        "Evaluation return, sampled, highest", "return of the best episode with sampled actions"
    ),
    "eval_sampled_length": Metric(
        "Evaluation length, sampled", "mean number of steps of the evaluation's episodes with sampled actions"
    ),
}
"""The metrics common to all rules. A rule's own metrics are in its `Traits`."""


_RENAMED = {"guaranteed_improvement": "sampled_improvement_bound"}
"""Metrics that files of earlier versions have under another name."""


def to_records(metrics: dict[str, np.ndarray], *, wall_time: list[float], steps_per_second: float) -> list[Record]:
    """One record per iteration: a number per metric with one seed, a list with several.

    metrics: `[iterations, seeds]` each. wall_time: seconds of training at the end of each iteration.
    steps_per_second: environment steps of all seeds together, per second.
    Non-finite numbers become None (null in JSON); statuses become their names.
    """
    count, num_seeds = metrics["iteration"].shape
    common = {"iteration", "env_steps"}
    records = []
    for i in range(count):
        record: Record = {
            "iteration": int(metrics["iteration"][i, 0]),
            "env_steps": round(metrics["env_steps"][i].mean()),
            "wall_time": round(wall_time[i], 4),
            "steps_per_second": round(steps_per_second, 1),
        }
        for name in metrics.keys() - common:
            values = [_plain(name, value) for value in metrics[name][i]]
            record[name] = values[0] if num_seeds == 1 else values
        head = list(record)[:4]
        records.append({name: record[name] for name in [*head, *sorted(record.keys() - set(head))]})
    return records


def per_seed(values: Sequence[float]) -> Any:
    """The values of a metric as they stand in a record: one number for one seed, a list for several.

    values: one per seed; those that are not finite become None.
    """
    numbers = [float(value) if math.isfinite(value) else None for value in values]
    return numbers[0] if len(numbers) == 1 else numbers


def _plain(name: str, value: Any) -> Any:
    if name == "status":
        return Status(int(value)).name
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def per_seed_of(record: Record, name: str, num_seeds: int) -> list[float | None]:
    """The values of a metric in a record that was read, one per seed. None for what is missing or no finite number.

    record: which may be a stranger's. name: of the metric. num_seeds: of the run.
    """
    cell = record.get(name)
    cells = cell if isinstance(cell, list) else [cell]
    if len(cells) != num_seeds:
        return [None] * num_seeds
    # Compared before the conversion: Python compares integers of any size, float() overflows.
    return [float(x) if isinstance(x, int | float) and -LARGEST <= x <= LARGEST else None for x in cells]


def read_metrics(path: Path) -> list[Record]:
    """All complete records of the metrics file `path`. Skips a last line still being written and damaged lines.

    Metrics have their present names, in files of earlier versions too. Logs a warning when lines are damaged. Raises
    OSError when the file can't be read.
    """
    records, damaged = [], 0
    for record, complete in _lines(path):
        if record is not None:
            records.append(record)
        else:
            damaged += complete
    if damaged:
        logger.warning("%s: %d damaged lines are skipped", one_line(path), damaged)
    return records


def _lines(path: Path) -> Iterator[tuple[Record | None, bool]]:
    """For every line its record, or None where it holds none, and whether the line is complete."""
    try:
        for line in read_lines(path, MAX_LINE):
            yield _parsed(line), line.endswith(b"\n")
    except TooLarge:  # the rest of the file is one damaged line
        yield None, True


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(record, dict) and type(record.get("iteration")) is int):
        return None
    for name in _RENAMED.keys() & record.keys():
        record[_RENAMED[name]] = record.pop(name)
    return record


def _size_until(path: Path, iteration: int) -> tuple[int, Record | None]:
    """The size of the file up to and including the record of an iteration, and the last record that is within it."""
    end, size, last = 0, 0, None
    with contextlib.suppress(TooLarge):
        for line in read_lines(path, MAX_LINE):
            end += len(line)
            record = _parsed(line)
            if record is not None and record["iteration"] <= iteration and line.endswith(b"\n"):
                size, last = end, record
    return size, last


class MetricsLog:
    """Appends records to `metrics.jsonl`, and to TensorBoard's event files in the same directory."""

    def __init__(self, directory: Path, *, keep_until: int | None = None, seeds: Sequence[int] = (0,)) -> None:
        """Open the files. Raises OSError when that fails.

        directory: of the run. keep_until: records after this iteration are dropped, because it is resumed from there.
        seeds: of the run; records hold a value for each where there are several.
        """
        path = directory / FILE_NAME
        resumed = keep_until is not None and exists(path)
        self._file = os.fdopen(open_to_append(path), "ab", buffering=0)
        kept = None
        if resumed and keep_until is not None:
            size, kept = _size_until(path, keep_until)
            # Later iterations are about to be repeated. In place, so that `tail -f` keeps working; a process killed
            # before this leaves complete lines.
            os.ftruncate(self._file.fileno(), size)
        self._size = os.fstat(self._file.fileno()).st_size
        self._waiting = b""
        self._board = Board(directory, seeds, resumed_after=kept if keep_until is None else kept or {})

    def append(self, records: list[Record]) -> None:
        """Write records, as complete lines. TensorBoard gets the last of them only, to keep its file small.

        Raises OSError when they can't be written. The file then ends with a complete line, and the records wait for the
        next call.
        """
        self._waiting += b"".join(_line(record) for record in records)
        self._board.add(records[-1])
        self.write_waiting()

    def write_waiting(self) -> None:
        """Write the records that could not be written before. Raises OSError as `append` does."""
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
        """Write all records through to the disk. Raises OSError as `append` does."""
        self.write_waiting()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def _line(record: Record) -> bytes:
    return (json.dumps(record, separators=(",", ":")) + "\n").encode()
