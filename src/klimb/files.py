"""Files: the one place where klimb opens them for reading and writing, and asks whether they are there.

A file may be a stranger's. Only regular files are read, up to a limit: a pipe would be waited for, and a device never
ends. What klimb writes into a directory replaces regular files only, and is written atomically: a reader sees the old
contents or the new, never a part. `tests/test_doors.py` finds code that opens files anywhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import safe_open

from klimb.errors import RunError, WrongObject, one_line

NOT_REGULAR = "it is not a regular file"
SECONDS_TO_REPLACE = 2.0
"""How long a file is tried to be replaced on Windows, where that fails while another process reads it."""


class TooLarge(ValueError):
    """A file that is larger than any of its kind."""


class UnusablePath(RunError, OSError):
    """A path that the file system does not answer for: its name is too long, or its directory must not be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{one_line(path)} can't be used: {reason}")
        self.strerror = reason


def as_path(given: Any) -> Path:
    """A path that was given. WrongObject for anything else, such as a run in place of its directory.

    given: what a function that takes a path was called with.
    """
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise WrongObject(f"a {type(given).__name__} is not a path; the directory of a run is run.directory")


def exists(path: Path) -> bool:
    """Whether there is something of this name. UnusablePath when the file system does not say."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file of this name. UnusablePath when the file system does not say."""
    return stat.S_ISREG(_mode(path) or 0)


def is_directory(path: Path) -> bool:
    """Whether there is a directory of this name. UnusablePath when the file system does not say."""
    return stat.S_ISDIR(_mode(path) or 0)


def is_stream(path: Path) -> bool:
    """Whether there is a pipe or a character device of this name: it is written into, and stays what it is."""
    mode = _mode(path) or 0
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _mode(path: Path) -> int | None:
    """Type and permissions of a file, through links; None where there is none."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnusablePath(path, error.strerror or type(error).__name__) from None
    except ValueError:  # a NUL
        raise UnusablePath(path, "it is not the name of a file") from None


def read_limited(path: Path, limit: int) -> bytes:
    """The contents of a file. Raises OSError when it can't be read or is no regular file, TooLarge when it is longer.

    path: the file. limit: in bytes; no more is read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f"it is larger than {limit} bytes")
    return content


def read_lines(path: Path, limit: int) -> Iterator[bytes]:
    """The lines of a file, with their ends, one by one. Raises OSError as `read_limited`, TooLarge for a longer line.

    path: the file. limit: of a line, in bytes.
    """
    with open_regular(path) as file:
        while line := file.readline(limit + 1):
            if len(line) > limit:
                raise TooLarge(f"it has a line of more than {limit} bytes")
            yield line


def open_regular(path: Path) -> IO[bytes]:
    """A file for reading its bytes. Raises OSError when it can't be read or is no regular file."""
    # Opened without waiting, then looked at: between a look and an open the file may become a pipe.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Any]:
    """A safetensors file, as `safetensors.safe_open` gives it. Raises OSError when it is no regular file.

    path: the file. Raises SafetensorError when it is damaged.
    """
    require_regular(path)
    try:
        opened = safe_open(path, framework="numpy")
    except MemoryError:  # it is mapped whole
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
    with opened as file:
        yield file


def kind_of_link(path: Path) -> str | None:
    """`link`, or `hard link` for a file that has another name as well: who writes into it changes something else.

    None for all else, such as a directory, or what does not exist.
    """
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        return "hard link"
    return "link" if stat.S_ISLNK(found.st_mode) else None


def require_regular(path: Path) -> None:
    """OSError unless `path` is a regular file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder, flush it to the disk, then rename it to `path`.

    path: the file; a directory or a device is not replaced. content: all of it.
    Raises OSError when that fails; the temporary file is then removed.
    """
    _require_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    # If the name exists it may be a link to another file, which must not be written.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Of the descriptor that was written: Windows flushes no file that is open for reading only.
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    flush_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 to the file `path`, atomically. Raises OSError when it can't be written."""
    write_atomically(path, text.encode("utf-8"))


def write_output(path: Path, content: bytes) -> None:
    """Write what a user asked for to where they asked for it: a file, a pipe or a character device.

    path: a regular file is replaced atomically; into a pipe or a device, such as /dev/stdout, it is written as it is.
    content: all of it. Raises OSError when it can't be written.
    """
    if is_stream(path):
        # Without buffer: an error is raised here, and not when the file is closed.
        with path.open("wb", buffering=0) as file:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[file.write(remaining) :]
    else:
        write_atomically(path, content)


def open_to_append(path: Path) -> int:
    """A descriptor for reading a file and appending to it, which is made where there is none.

    path: the file. Raises OSError when it is a link, of either kind, or no regular file: klimb would change a file
    that is somewhere else.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not all on every system
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link to another file") from None
        raise OSError(error.errno, NOT_REGULAR if error.errno == errno.ENXIO else error.strerror) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR)
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, "it is a hard link: another file has the same contents")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_new(path: Path) -> IO[bytes]:
    """A new file to be written without buffer. Raises OSError when there is something of this name.

    path: the file.
    """
    return path.open("xb", buffering=0)


def make_new_directory(path: Path) -> None:
    """Make a directory, and those above it. Raises OSError when that is impossible or there is something already."""
    path.mkdir(parents=True)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, where there is none. Raises OSError when that is impossible."""
    path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises OSError when it can't be removed."""
    path.unlink(missing_ok=True)


def remove_if_possible(path: Path) -> None:
    """Remove a file if it is there and can be removed: somebody may have made a directory of this name."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def flush_directory(path: Path) -> None:
    """Flush the directory `path` to the disk, without which a new file's name may be lost in a power cut.

    Does nothing where the system can't flush directories.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _require_replaceable(path: Path) -> None:
    """OSError when there is something that must not be replaced by a file: a device, a socket or a directory.

    A pipe may be: in a run it is nobody's, and where a user names it, `write_output` writes into it.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is a directory" if stat.S_ISDIR(mode) else NOT_REGULAR)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file to `path`. Raises OSError when that fails; on Windows only after some seconds."""
    end = time.monotonic() + SECONDS_TO_REPLACE
    while True:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end:
                raise
        time.sleep(0.05)
