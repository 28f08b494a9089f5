"""Records of a run as points for trackers: with the names that TensorBoard has them under."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from klimb.runs.metrics import Record, per_seed_of
from klimb.runs.series import columns_of, step_of, tag
from klimb.tracking.sink import Point
from klimb.types import Status

COUNTER = "iteration"
NOT_A_CURVE = "env_steps"
"""The axis."""


def counter_of(seeds: Sequence[int]) -> str:
    """The name of a value that all points of a run have. seeds: of the run."""
    return _named(next(iter(columns_of(seeds))), COUNTER)


def points_of(records: Iterable[Record], seeds: Sequence[int], started: float) -> Iterator[Point]:
    """The points of some records, which may be a stranger's.

    records: in their order. seeds: of the run. started: when its training began, in seconds since the epoch.
    """
    columns = columns_of(seeds)
    for record in records:
        values = {}
        for metric in sorted(record.keys() - {NOT_A_CURVE}, key=lambda name: (name == COUNTER, name)):
            numbers = _numbers(record, metric, len(seeds))
            for column, number_in in columns.items():
                if numbers is not None and (number := number_in(numbers)) is not None:
                    values[_named(column, metric)] = number
        # The same whenever the record is read: a tracker may tell by it what it has already.
        (wall_time,) = per_seed_of(record, "wall_time", 1)
        yield Point(step_of(record), started + (wall_time or 0.0), values)


def _named(column: str, metric: str) -> str:
    return f"{column}/{tag(metric)}" if column else tag(metric)


def _numbers(record: Record, metric: str, num_seeds: int) -> list[float | None] | None:
    """The numbers of a metric, one per seed or one for all; None where the record has something else."""
    value: Any = record[metric]
    cells = value if isinstance(value, list) else [value]
    if len(cells) not in (1, num_seeds):
        return None
    if metric == "status":
        cells = [Status[cell] if isinstance(cell, str) and cell in Status.__members__ else None for cell in cells]
    return per_seed_of({metric: cells}, metric, len(cells))
