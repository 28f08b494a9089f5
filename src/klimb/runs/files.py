"""Files, written atomically: a reader sees the old contents or the new, never a part. They are read up to a limit."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klimb.errors import WrongObject


def as_path(given: Any) -> Path:
    """A path that was given. WrongObject for anything else, such as a run in place of its directory.

    given: what a function that takes a path was called with.
    """
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise WrongObject(f"a {type(given).__name__} is not a path; the directory of a run is run.directory")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file in the same folder, flush it to the disk, then rename it to `path`.

    path: the file. write: is called with the path of the temporary file.
    Raises OSError when that fails; the temporary file is then removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    # If the name exists it may be a link to another file, which must not be written.
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
    """Write `text` in UTF-8 to the file `path`, atomically. Raises OSError when it can't be written."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush_directory(path: Path) -> None:
    """Flush the directory `path` to the disk, without which a new file's name may be lost in a power cut.

    Does nothing where the system can't flush directories.
    """
    with contextlib.suppress(OSError):
        _flush(path)


def require_regular(path: Path) -> None:
    """OSError unless `path` is a regular file: opening a named pipe would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


class TooLarge(ValueError):
    """A file that is larger than any of its kind."""


def read_limited(path: Path, limit: int) -> bytes:
    """The contents of a file, which may be a stranger's: a pipe is not waited for, and no more than a limit is read.

    path: the file. limit: in bytes. Raises OSError when it can't be read, TooLarge when it is longer.
    """
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f"it is larger than {limit} bytes")
    return content


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
