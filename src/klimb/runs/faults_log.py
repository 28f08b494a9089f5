"""`faults.log`: what went wrong in a run's environments, with the tracebacks of their own code."""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path

from klimb.errors import one_line, printable
from klimb.files import open_to_append

FILE_NAME = "faults.log"
MAX_BYTES = 2**22
"""Size from which on nothing more is written; the metric `env_faults` still counts."""

logger = logging.getLogger("klimb")


class FaultsLog:
    """Appends entries to the file of a run, and says where it is. The same traceback is written once.

    folder: the run directory; None to log tracebacks as warnings instead.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE_NAME
        self._known: set[str] = set()

    def add(self, what: str, traceback: str | None) -> None:
        """Add one entry. A file that can't be written is warned of, and nothing is raised.

        what: happened, in one line. traceback: as text; None where there is none.
        """
        traceback = None if traceback is None else printable(traceback)
        is_new = traceback is not None and traceback not in self._known
        if self._path is None:
            if traceback is not None and is_new:
                self._known.add(traceback)
                logger.warning("%s", traceback.rstrip())
            return
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        rest = f"\n{traceback.rstrip()}\n" if traceback is not None and is_new else ""
        same = "; the traceback is as before" if traceback is not None and not is_new else ""
        try:
            descriptor = open_to_append(self._path)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
                if os.fstat(descriptor).st_size > MAX_BYTES:
                    return
                file.write(f"{date}  {one_line(what, 1000)}{same}{rest}\n")
        except OSError as error:
            logger.warning("%s can't be written (%s)%s", self._path, error.strerror, rest.rstrip())
        else:
            if is_new:
                logger.warning("the traceback is in %s", self._path)
        if traceback is not None:
            self._known.add(traceback)
