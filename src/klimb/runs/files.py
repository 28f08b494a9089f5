"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a temporary name beside `path`, flush it to the disk, then rename: all of it or nothing.

    Raises OSError, with nothing left behind, where that is not possible.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    # Not through a link that somebody else may have put there.
    temporary.unlink(missing_ok=True)
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    flush_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """A whole text file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush_directory(path: Path) -> None:
    """A new name is on the disk only when its directory is. Not every system lets a directory be flushed."""
    with contextlib.suppress(OSError):
        _flush(path)


def require_regular(path: Path) -> None:
    """OSError unless there is a file at `path`: whoever opens a pipe waits for its other end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
