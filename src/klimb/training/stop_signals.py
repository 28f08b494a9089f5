"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP) during a training."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # Windows has no SIGHUP
)
APART = 1.0
"""Seconds between a signal and the next one that is another: `timeout`, shells and batch systems send one both to a
process and to its group, which arrives as two signals within milliseconds."""
_HANGUP = getattr(signal, "SIGHUP", None)


class StopSignals:
    """Context in which the first SIGINT, SIGTERM or SIGHUP is only recorded, in `received`.

    Signals within `APART` seconds after it are the same one; a later one has its usual effect. A SIGHUP that was
    ignored before, as under `nohup`, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._last = 0.0
        self._over = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python allows signal handlers in the main thread only; in other threads nothing is changed.
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                previous = self._handler(number)
                ignored = number == _HANGUP and previous == signal.SIG_IGN
                # None: a handler that was not set from Python, and can't be set again from there.
                if previous is not None and not ignored:
                    self._previous[number] = previous
                    signal.signal(number, self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True
        # After a signal the handlers stay until the next one: the second of a pair may arrive when the checkpoint has
        # been written, and would end the process before it says how to go on.
        if self.received is None:
            self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._last = number, now
            return
        if now - self._last < APART:
            return
        self._last = now
        previous = self._previous[number]
        if self._over or not callable(previous):
            self._restore()
        if callable(previous):
            previous(number, frame)
        else:
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # Somebody else may have set another one since.
            if _owner(signal.getsignal(number)) is self:
                signal.signal(number, handler)

    @staticmethod
    def _handler(number: int) -> Any:
        """The handler of a signal, or the one before it if it is what an earlier training has left."""
        handler = signal.getsignal(number)
        owner = _owner(handler)
        return owner._previous[number] if owner is not None and owner._over else handler


def _owner(handler: Any) -> StopSignals | None:
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopSignals) else None
