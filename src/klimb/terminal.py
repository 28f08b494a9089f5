"""The terminal: the one place where klimb prints, and what becomes of a line that can't be printed.

Text may be a stranger's: control characters are written as escapes. `tests/test_doors.py` finds code that prints
anywhere else. What a command results in has to be printed, or the command fails; a training is worth more than the
lines about it, and goes on without them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from klimb.errors import printable

logger = logging.getLogger("klimb")


class OutputLost(Exception):
    """The result of a command can't be printed; the message is one line."""


def write_line(text: object = "", *, end: str = "\n") -> None:
    """Print a result on standard output. OutputLost when it can't be written, BrokenPipeError when nobody reads it.

    text: of one line or several. end: what follows it.
    """
    with _results():
        print(printable(str(text)), end=end)


def write_page(text: str) -> None:
    """Print a page of klimb's own, with its colours. Raises as `write_line`.

    text: that no stranger had a part in.
    """
    with _results():
        print(text)


def flush() -> None:
    """Write what is still in the buffer of standard output. Raises as `write_line`."""
    if sys.stdout is not None:
        with _results():
            sys.stdout.flush()


def write_error(text: str, *, end: str = "\n") -> None:
    """Print on standard error. Where that is impossible nothing is: there is no other place to say so.

    text: of one line or several. end: what follows it.
    """
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), end=end, file=sys.stderr, flush=True)


class LastingStream:
    """A stream that never fails: a disk that is full, or a reader that is gone, ends no training.

    stream: where to. name: of it, for the warning.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        """Write a text, or drop it. text: any."""
        if not self._lost:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed, or can't encode the text
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or drop it."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Its file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str | None:
        """How it encodes characters; None where it takes text, as in memory."""
        return self._stream.encoding

    def _give_up(self, error: OSError | ValueError) -> None:
        self._lost = True
        reason = getattr(error, "strerror", None) or error
        logger.warning("%s can't be written (%s): what follows is not shown", self._name, reason)


def prepare() -> None:
    """Make ready for printing, in a process of the command line.

    A character that the terminal's encoding lacks is replaced, and warnings contain no control characters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    logger.addFilter(PRINTABLE)


def discard() -> None:
    """Drop what is still in the buffer of standard output, which Python would try to write once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Printable(logging.Filter):
    """Makes messages printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


PRINTABLE = _Printable()


@contextlib.contextmanager
def _results() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it is closed, or can't encode the text
        raise OutputLost(f"standard output can't be written: {getattr(error, 'strerror', None) or error}") from None
