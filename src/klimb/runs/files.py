"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a temporary name beside `path`, flush it to the disk, then rename: all of it or nothing.

    Raises OSError, with nothing left behind, where that is not possible.
    """
    temporary = path.with_name(f".{path.name}.part")
    # Not through a link that somebody else may have put there.
    temporary.unlink(missing_ok=True)
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The new name is on the disk only when the directory is. Not every system lets a directory be flushed.
    with contextlib.suppress(OSError):
        _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """A whole text file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
