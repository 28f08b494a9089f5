"""Consoles of rich, which draw tables and panels, through the rules of `klimb.terminal`."""

from __future__ import annotations

import functools
import sys
from typing import Any

from rich.console import Console

from klimb.errors import printable
from klimb.terminal import LastingStream


def result_console() -> Console:
    """Where tables of results are printed: as wide as they are, so that no cell is cut."""
    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False, width=10_000)


def training_console(*, error: bool = False, quiet: bool = False) -> Console:
    """Where a training is shown. After the first line that can't be printed, it shows nothing more.

    error: on standard error, and not on standard output. quiet: print nothing.
    """
    stream, name = (sys.stderr, "standard error") if error else (sys.stdout, "standard output")
    return Console(file=None if stream is None else _lasting(stream, name), stderr=error, quiet=quiet)


@functools.lru_cache(maxsize=2)
def _lasting(stream: Any, name: str) -> Any:
    """The same for all consoles on a stream: it is said once that it can't be written."""
    return LastingStream(stream, name)


def print_line(console: Console, line: str) -> None:
    """Print one line as it is, however long.

    console: where to. line: of plain text.
    """
    console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)
