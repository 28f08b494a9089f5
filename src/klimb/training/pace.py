"""Wall time of a training, and the number of iterations per call to the device."""

from __future__ import annotations

import time

SECONDS_PER_CALL = 0.5
"""Length of a call that is aimed at, in seconds."""


class Clock:
    """Seconds of training so far, over all parts of a resumed run. before: seconds of the earlier parts."""

    def __init__(self, before: float) -> None:
        self.now, self._last = before, time.perf_counter()

    def lap(self, iterations: int) -> tuple[list[float], float]:
        """The wall time at the end of each iteration of the last call (spaced evenly), and the call's seconds.

        iterations: of the call, at least 1.
        """
        current = time.perf_counter()
        seconds, start = current - self._last, self.now
        self._last, self.now = current, start + seconds
        return [start + seconds * (i + 1) / iterations for i in range(iterations)], seconds

    def pass_over(self) -> None:
        """Count the time since the last lap as wall time of the training, and not as part of the next call."""
        current = time.perf_counter()
        self.now, self._last = self.now + current - self._last, current


class CallSize:
    """`iterations` for the next call: as many as take `SECONDS_PER_CALL`, so that progress is shown often.

    maximum: largest number of iterations per call.
    """

    def __init__(self, maximum: int) -> None:
        self.iterations, self._maximum, self._calls = 1, maximum, 0

    def adapt(self, iterations: int, seconds: float) -> None:
        """Adapt to the speed of a call.

        iterations: that the call ran. seconds: that it took.
        """
        # The time of the first call is mostly compilation.
        self._calls += 1
        if self._calls > 1:
            fitting = int(SECONDS_PER_CALL * iterations / max(seconds, 1e-9))
            self.iterations = max(1, min(fitting, 4 * self.iterations, self._maximum))
