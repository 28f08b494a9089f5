"""Counts consecutive steps that fail numerically."""

from __future__ import annotations

import numpy as np

from klimb.runs.metrics import Record
from klimb.types import Status

FAULTS = (Status.NONFINITE, Status.CG_BREAKDOWN)
"""Failures that more data does not cure. NO_IMPROVEMENT is not one of them: it is normal at convergence."""


class Rejections:
    """Counts, for each seed, how many steps in a row have failed. limit: number at which the training stops."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row: np.ndarray = np.zeros(1, int)
        self._last = Status.NONFINITE

    def restore(self, records: list[Record]) -> None:
        """Continue the count of a resumed run from its records. A run that reached the limit starts at 0 again."""
        members = Status.__members__
        for record in records:
            names = record.get("status")
            names = names if isinstance(names, list) else [names]
            self.count(np.array([[members.get(str(name), Status.ACCEPTED) for name in names]]))
        if self.limit_reached:
            self._in_a_row = np.zeros(1, int)

    @property
    def remaining(self) -> int:
        """The smallest number of further failures that reaches the limit, at least 1: no call should be longer."""
        return max(1, self._limit - int(self._in_a_row.min()))

    def count(self, status: np.ndarray) -> None:
        """Add the statuses of some iterations, `[iterations, seeds]`."""
        for row in status:
            failed = np.isin(row, FAULTS)
            self._in_a_row = np.where(failed, self._in_a_row + 1, 0)
            # A seed that only waits for the others does not learn any more.
            self._in_a_row = np.where(row == Status.FINISHED, self._limit, self._in_a_row)
            if failed.any():
                self._last = Status(int(row[failed][-1]))

    @property
    def limit_reached(self) -> bool:
        """Whether every seed has reached the limit: a training continues as long as one seed still learns."""
        return bool((self._in_a_row >= self._limit).all())

    @property
    def message(self) -> str:
        """The number of failures, their cause and the remedy, in one line."""
        count = int(self._in_a_row.min())
        return f"{count} steps in a row were rejected as {self._last.name}: {self._last.message}"
