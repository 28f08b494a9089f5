"""How long a training has taken, and how many iterations a call to the device gets."""

from __future__ import annotations

import time

SECONDS_PER_CALL = 0.5


class Clock:
    """Seconds of training so far, over all the parts of a resumed run."""

    def __init__(self, before: float) -> None:
        self.now, self._last = before, time.perf_counter()

    def lap(self, iterations: int) -> tuple[list[float], float]:
        """The wall time at the end of each iteration of a call (spread evenly), and the call's seconds."""
        current = time.perf_counter()
        seconds, start = current - self._last, self.now
        self._last, self.now = current, start + seconds
        return [start + seconds * (i + 1) / iterations for i in range(iterations)], seconds


class CallSize:
    """Iterations for the next call: as many as take about half a second, so that progress stays live."""

    def __init__(self, most: int) -> None:
        self.iterations, self._most, self._calls = 1, most, 0

    def adapt(self, iterations: int, seconds: float) -> None:
        # The first call compiles: its time says nothing.
        self._calls += 1
        if self._calls > 1:
            fitting = int(SECONDS_PER_CALL * iterations / max(seconds, 1e-9))
            self.iterations = max(1, min(fitting, 4 * self.iterations, self._most))
