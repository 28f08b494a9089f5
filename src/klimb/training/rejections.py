"""Counts steps that are rejected: in a row, for numerical reasons, and from the first step of a training on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.types import Status

FAULTS = (Status.NONFINITE, Status.CG_BREAKDOWN)
"""Failures that more data does not cure. NO_IMPROVEMENT is not one of them: it is normal at convergence."""
REJECTED = tuple(status for status in Status if status.rejected)
MAX_NAMES = 4
"""Copies that are named in one line."""

logger = logging.getLogger("klimb")


class Rejections:
    """Counts, for each copy, how many steps in a row have failed, and how many have been rejected before the first one
    that is accepted.

    limit: number of failures in a row at which the training stops, and number of rejected steps after which a copy
    without an accepted one is reported. names: of the copies; none where there is only one, or nobody is told.
    """

    def __init__(self, limit: int, names: Sequence[str] = ()) -> None:
        self._limit, self._names = limit, names
        self._in_a_row: np.ndarray = np.zeros(1, int)
        self._last = Status.NONFINITE
        self._before_first = BeforeFirst(limit)

    def restore(self, records: list[Record]) -> None:
        """Continue the count of a resumed run from its records. A run that reached the limit starts at 0 again.

        records: of all copies. A status that is unknown, or missing, counts as accepted.
        """
        members = Status.__members__
        for record in records:
            names = record.get("status")
            names = names if isinstance(names, list) else [names]
            # A damaged record has another number of them, or something else in their place.
            if len(names) in (1, max(1, len(self._names))) and all(isinstance(name, str | None) for name in names):
                self._add(np.array([members.get(str(name), Status.ACCEPTED) for name in names], int))
        if self.limit_reached:
            self._in_a_row = np.zeros(1, int)

    @property
    def remaining(self) -> int:
        """The smallest number of further failures that reaches the limit, at least 1: no call should be longer."""
        return max(1, self._limit - int(self._in_a_row.min()))

    def count(self, status: np.ndarray) -> None:
        """Add the statuses of some iterations, `[iterations, copies]`. A copy that only has rejected steps is reported
        in a warning, once.
        """
        for row in status:
            self._add(row)
            if not self.limit_reached and (idle := self._before_first.newly_idle()).any():
                logger.warning("%s", self._before_first.line(idle, self._names))

    def _add(self, row: np.ndarray) -> None:
        failed = np.isin(row, FAULTS)
        self._in_a_row = np.where(failed, self._in_a_row + 1, 0)
        # A seed that only waits for the others does not learn any more.
        self._in_a_row = np.where(row == Status.FINISHED, self._limit, self._in_a_row)
        if failed.any():
            self._last = Status(int(row[failed][-1]))
        self._before_first.add(row)

    @property
    def limit_reached(self) -> bool:
        """Whether every seed has reached the limit: a training continues as long as one seed still learns."""
        return bool((self._in_a_row >= self._limit).all())

    @property
    def message(self) -> str:
        """The number of failures, their cause and the remedy, in one line."""
        count = int(self._in_a_row.min())
        return f"{count} steps in a row were rejected as {self._last.name}: {self._last.message}"


class BeforeFirst:
    """The steps that were rejected before the first accepted one, of each copy.

    limit: number of them after which a copy is idle: it has done nothing since the training began.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rejected: np.ndarray = np.zeros((len(Status), 1), int)
        self._over: np.ndarray = np.zeros(1, bool)
        """Which copies have an accepted step, or have been reported."""

    def add(self, row: np.ndarray) -> None:
        """Add the statuses of one iteration, one per copy."""
        if self._over.all() and self._over.size >= row.size:
            return
        shape = np.broadcast_shapes(row.shape, self._over.shape)
        self._over = np.broadcast_to(self._over, shape) | (row == Status.ACCEPTED)
        counted = (np.arange(len(Status))[:, None] == row) & np.isin(row, REJECTED) & ~self._over
        self._rejected = self._rejected + counted

    def newly_idle(self) -> np.ndarray:
        """Which copies have become idle since the last call, `[copies]`."""
        idle = ~self._over & (self._rejected.sum(0) >= self._limit)
        self._over = self._over | idle
        return idle

    def line(self, idle: np.ndarray, names: Sequence[str]) -> str:
        """How many steps of which copies were rejected, the statuses, cause and remedy, in one line.

        idle: the copies. names: of all copies; none where they are not known.
        """
        counts = self._rejected[:, idle].sum(1)
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda status: -counts[status])
        statuses = " and ".join(f"{counts[status]} as {Status(status).name}" for status in order)
        tried = int(self._rejected[:, idle].sum(0).max())
        return (
            f"no step has been accepted in {tried} iteration{'' if tried == 1 else 's'}{_of(idle, names)} "
            f"(rejected: {statuses}): {Status(order[0]).message}; where it is so from the first step on, rewards or "
            "action bounds of an extreme size are a cause too; the training goes on"
        )


def _of(idle: np.ndarray, names: Sequence[str]) -> str:
    count, total = int(idle.sum()), len(idle)
    if total == 1:
        return ""
    kind = "seeds" if all(name.startswith("seed ") for name in names) else "trainings"
    if count == total or len(names) != total:
        return f" of {count} of {total} {kind}"
    which = [names[k] for k in np.flatnonzero(idle)[:MAX_NAMES]]
    more = f" and {count - len(which)} more" if count > len(which) else ""
    return f" of {', '.join(which)}{more} ({count} of {total} {kind})"


def copy_names(configs: Sequence[RunConfig], combinations: Sequence[str]) -> list[str]:
    """What the copies of a program are called, in their order: by their seed, in a sweep by combination and seed.

    configs: of its runs. combinations: their names in a sweep; none elsewhere.
    """
    names = []
    for k, config in enumerate(configs):
        options = config.options
        for seed in range(options.seed, options.seed + options.num_seeds):
            words = [combinations[k]] if k < len(combinations) else []
            words += [f"seed {seed}"] if options.num_seeds > 1 or not words else []
            names.append(" ".join(words))
    return names
