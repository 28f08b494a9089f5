"""A lock that lets only one process write into a run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import IO

from klimb.errors import RunError, one_line
from klimb.files import open_regular, open_to_append

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger("klimb")


class RunLock:
    """An exclusive lock, held from construction until `release` or the end of the process, even if it crashes."""

    def __init__(self, directory: Path) -> None:
        """Lock the run directory. RunError when another process, or another training in this one, holds the lock."""
        self._file: IO[str] | None = None
        path = directory / ".lock"
        try:
            file = os.fdopen(open_to_append(path), "a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {one_line(path)}: {error.strerror}") from None
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = one_line(file.read(200), 200).strip() or "another process"
            file.close()
            raise RunError(f"{directory} is being written by {holder}: wait for it, or stop it first") from None
        except OSError as error:
            logger.warning(
                "%s can't be locked (%s): make sure that no other process writes there", path, error.strerror
            )
        file.truncate(0)
        # The holder's name is for the error message only: a full disk is no reason to stop.
        with contextlib.suppress(OSError):
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        self._file = file

    @classmethod
    def holder(cls, directory: Path) -> str | None:
        """The process that holds the lock of a run directory, in words; None where none does, or it is not known."""
        path = directory / ".lock"
        try:
            with open_regular(path) as file:
                name = one_line(file.read(200).decode("utf-8", "replace"), 200).strip()
                if not name or fcntl is None:  # released, or never locked
                    return None
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return name
        except (OSError, ValueError):
            return None
        return None

    def release(self) -> None:
        """Release the lock. Does nothing when it was released before."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                self._file.close()
            self._file = None
