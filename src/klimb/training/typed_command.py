"""The words of the `klimb` command that is being run, for the provenance of its runs. Imports nothing heavy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

_words: ContextVar[tuple[str, ...] | None] = ContextVar("words", default=None)


def typed_command() -> tuple[str, ...] | None:
    """The words of the command, `klimb` first; None where klimb is used from Python."""
    return _words.get()


@contextlib.contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """Everything inside is done by the command line. words: what is typed after `klimb`."""
    token = _words.set(("klimb", *words))
    try:
        yield
    finally:
        _words.reset(token)
