"""How long XLA compiles."""

from __future__ import annotations

import contextlib
from typing import Any

from jax import monitoring

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX calls the time in which a program was compiled, or read from the cache of compiled programs."""


class CompileTimes:
    """Counts the programs that are compiled, and their seconds, from when it is made until it is closed."""

    def __init__(self) -> None:
        self.seconds, self.programs = 0.0, 0
        monitoring.register_event_duration_secs_listener(self._take_in)

    @property
    def line(self) -> str:
        """Both numbers, in one line."""
        return f"compiled {self.programs} programs in {self.seconds:.1f} s"

    def close(self) -> None:
        """Stop counting. Not to be called twice."""
        # Somebody may have cleared all listeners.
        with contextlib.suppress(AssertionError, ValueError):
            monitoring.unregister_event_duration_listener(self._take_in)

    def _take_in(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            self.seconds += duration_secs
            self.programs += 1
