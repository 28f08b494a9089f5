"""The protocol of trackers: what is told of a run, of its records, and of its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from klimb.runs.ending import Reason


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins with it.

    id: of the run, the same whenever it is resumed. name: for people. group: name of the sweep or the search that it is
    part of; None for none. directory: of the run; None of one in memory. settings: environment, rule, hyperparameters
    and options, by name, as plain values. provenance: what it is trained with and on, as text. counter: a name that
    every point has a value of.
    """

    id: str
    name: str
    group: str | None
    directory: Path | None
    settings: dict[str, Any]
    provenance: dict[str, str]
    counter: str


class Point(NamedTuple):
    """A record of a run. step: its environment steps, per seed, or its iteration where there are none; it rises from
    point to point. time: seconds since the epoch. values: numbers by name; those that are not finite are left out."""

    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What has come of a run.

    reason: what ended its training; None while nothing has, as between two parts of a search. summary: numbers and
    texts by name. files: policies, configuration and report, where there are any.
    """

    reason: Reason | None
    summary: dict[str, float | str]
    files: Sequence[Path]


@runtime_checkable
class Sink(Protocol):
    """A tracker of one run. All methods are called in one thread, which is not that of the training.

    It may raise anything: the training goes on without it. A class of the user's own is made without arguments.
    """

    def begin(self, run: TrackedRun) -> int | None:
        """Begin with a run, or go on with it. Returns the last step that the tracker has of it; None for none.

        run: that is logged. Points up to this step are not logged again.
        """

    def log(self, points: Sequence[Point]) -> None:
        """Add points. points: one or more, in the order of their steps; all that have come since the last call."""

    def finish(self, outcome: Outcome) -> None:
        """Write what has come of the run, and release everything. It is the last call."""
