"""One process a run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import IO

from klimb.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: two processes there have nobody to tell them apart
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger("klimb")


class RunLock:
    """Held from when it is made until `release`, or until the process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        """RunError when another process, or another training of this one, holds it."""
        self._file: IO[str] | None = None
        path = directory / ".lock"
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write into {directory}: {error.strerror}") from None
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise RunError(f"{directory} is being written by {holder}: wait for it, or stop it first") from None
        except OSError as error:
            logger.warning("%s can't be locked (%s): see to it that nothing else writes there", path, error.strerror)
        file.truncate(0)
        # Who holds it is only said for the message: on a full disk it stays unsaid.
        with contextlib.suppress(OSError):
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        self._file = file

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                self._file.close()
            self._file = None
