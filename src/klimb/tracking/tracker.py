"""One tracker of one run: it works in a thread of its own, and the training never waits for it, or ends because of it.

A tracker may fail in any call, and may hang in any call: on a network that is not there, or on a locked database.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable

from klimb.errors import one_line
from klimb.tracking.registry import NewSink
from klimb.tracking.secrets import without_secrets
from klimb.tracking.sink import Outcome, Point, Sink, TrackedRun

NO_ANSWER = "it does not answer"
MAX_WAITING = 100_000
"""Points that a slow tracker may lag behind."""


class Tracker:
    """Hands points to a sink, in another thread.

    name: of the tracker, for messages. new_sink: makes the sink. run: that is logged. points: of the run so far; those
    that the tracker has already are left out.
    """

    def __init__(self, name: str, new_sink: NewSink, run: TrackedRun, points: Iterable[Point]) -> None:
        self.name = name
        self.failure: str | None = None
        """Why nothing more is logged; None while all is well."""
        self.added = 0
        """Points that the tracker did not have."""
        self._waiting: queue.SimpleQueue[list[Point] | Outcome] = queue.SimpleQueue()
        self._length = 0
        self._waiting.put(list(points))
        self._left = False
        # A daemon: the process can end while it hangs.
        self._thread = threading.Thread(
            target=self._work, args=(new_sink, run), name=f"klimb-tracker-{name.partition(':')[0]}", daemon=True
        )
        self._thread.start()

    def log(self, points: list[Point]) -> None:
        """Add points, without waiting."""
        if self.failure is not None:
            return
        self._length += len(points)
        if self._length > MAX_WAITING:
            self._fail(f"it is too slow: {self._length} records wait for it")
        self._waiting.put(points)

    def finish(self, outcome: Outcome) -> None:
        """Have the run finished, without waiting. outcome: what has come of it."""
        self._waiting.put(outcome)

    def wait(self, deadline: float | None = None) -> None:
        """Wait until everything is logged. deadline: by the clock `time.monotonic`; None for as long as it takes."""
        while self._thread.is_alive() and not self._left:
            # In short waits: Ctrl-C is answered between them on every system.
            self._thread.join(0.2)
            if deadline is not None and time.monotonic() > deadline and self._thread.is_alive():
                self._fail(NO_ANSWER)

    def _fail(self, cause: str) -> None:
        """Log nothing more; the first cause is kept."""
        self.failure = self.failure or cause
        self._left = True

    def _work(self, new_sink: NewSink, run: TrackedRun) -> None:
        """What the thread does."""
        try:
            sink = new_sink()
            if self._left:  # it has taken too long
                return
            last = sink.begin(run)
            outcome = None
            while outcome is None and not self._left:
                last, outcome = self._advance(sink, last)
            if outcome is not None and not self._left:
                sink.finish(outcome)
        except BaseException as error:  # nothing that it raises is for the training
            self._fail(_cause(error))

    def _advance(self, sink: Sink, last: int | None) -> tuple[int | None, Outcome | None]:
        """Log what is waiting: the last step, and the outcome if it came."""
        fresh, outcome = [], None
        waiting = [self._waiting.get()]
        while not self._waiting.empty():
            waiting.append(self._waiting.get())
        for points in waiting:
            if isinstance(points, Outcome):
                outcome = points
                continue
            self._length = max(0, self._length - len(points))
            for point in points:
                if last is None or point.step > last:
                    fresh.append(point)
                    last = point.step
        if fresh:
            sink.log(fresh)
            self.added += len(fresh)
        return last, outcome


def _cause(error: BaseException) -> str:
    """An error in one line. The type alone says what an error without a message is."""
    text = without_secrets(str(error)).strip()
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)
