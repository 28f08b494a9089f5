"""Steps that fail numerically, one after the other."""

from __future__ import annotations

import numpy as np

from klimb.runs.metrics import Record
from klimb.types import Status

FAULTS = (Status.NONFINITE, Status.CG_BREAKDOWN)
"""What no amount of further data mends by itself. A search that finds no better step is not one of them: so ends
every training that has arrived."""


class Rejections:
    """Counts, seed by seed, how many steps in a row have failed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row: np.ndarray = np.zeros(1, int)
        self._last = Status.NONFINITE

    def restore(self, records: list[Record]) -> None:
        """Go on from a run's records. One that was stopped by the limit gets another chance."""
        names = Status.__members__
        for record in records:
            told = record.get("status")
            status = [names.get(str(name), Status.ACCEPTED) for name in (told if isinstance(told, list) else [told])]
            self.count(np.array([status]))
        if self.limit_reached:
            self._in_a_row = np.zeros(1, int)

    @property
    def remaining(self) -> int:
        """How many more there may be: a call of so many iterations ends with the last of them."""
        return max(1, self._most - int(self._in_a_row.min()))

    def count(self, status: np.ndarray) -> None:
        """Take in statuses `[iterations, seeds]`."""
        for row in status:
            failed = np.isin(row, FAULTS)
            self._in_a_row = np.where(failed, self._in_a_row + 1, 0)
            if failed.any():
                self._last = Status(int(row[failed][-1]))

    @property
    def limit_reached(self) -> bool:
        """Whether every seed has failed too often in a row. One that has while others learn spoils nothing."""
        return bool((self._in_a_row >= self._most).all())

    @property
    def message(self) -> str:
        """What has happened, and what to do."""
        count = int(self._in_a_row.min())
        return f"{count} steps in a row were rejected as {self._last.name}: {self._last.message}"
