"""TensorBoard's event files: the numbers of a run by group, and every seed as a run of TensorBoard's own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klimb.files import kind_of_link, make_directory, open_new
from klimb.runs.series import columns_of, numbers_of, step_of, tag

logger = logging.getLogger("klimb")


class Board:
    """Writes records of a run as TensorBoard's events; of several seeds, into a folder for each.

    After a write error nothing more is written: all numbers are in `metrics.jsonl` too.
    """

    def __init__(self, directory: Path, seeds: Sequence[int], *, resumed_after: Mapping[str, Any] | None) -> None:
        """Open the files.

        directory: of the run. seeds: of the run. resumed_after: the last record that a resumed run has kept, or {}:
        what was written of later ones is withdrawn, since they are repeated. None for a new run.
        """
        self._columns = columns_of(seeds)
        self._files: dict[str, _EventFile] = {}
        with self._closing_on_error():
            for folder in self._columns:
                self._files[folder] = _EventFile(directory / folder)
                if resumed_after is not None:
                    self._files[folder].withdraw(step_of(resumed_after) + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record. It has one number of a metric, or one for each seed."""
        with self._closing_on_error():
            for folder, file in self._files.items():
                numbers = {
                    tag(name): number
                    for name, value in record.items()
                    if name != "env_steps" and (number := self._columns[folder](numbers_of(name, value))) is not None
                }
                file.add(numbers, step_of(record))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("TensorBoard's events can't be written (%s): no more will be written", error.strerror)
            self.close()
            self._files = {}


class _EventFile:
    """An event file, which a reader can follow: every event is written at once."""

    def __init__(self, folder: Path) -> None:
        # Importing TensorBoard's formats takes half a second, so they are imported only for runs that are written.
        # Of tensorboardX's own writers one writes in a thread, which a full disk blocks for ever, and the other waits
        # for the disk after every event.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._session, self._summary, self._checksum = Event, SessionLog, Summary, masked_crc32c
        if kind_of_link(folder) is not None:
            raise OSError(errno.ELOOP, "klimb writes into the run directory alone, and there is a link", str(folder))
        make_directory(folder)
        self._file = open_new(_unused(folder))
        self._write(Event(file_version="brain.Event:2", wall_time=time.time()))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers. numbers: by tag. step: where they stand on the axis."""
        values = [self._summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._write(self._event(summary=self._summary(value=values), wall_time=time.time(), step=step))

    def withdraw(self, step: int) -> None:
        """Have TensorBoard forget what earlier files say of a step and of those after it.

        step: the first one.
        """
        start = self._session(status=self._session.START)
        self._write(self._event(session_log=start, wall_time=time.time(), step=step))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        header = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (header, data)]
        framed = header + checksums[0] + data + checksums[1]
        if self._file.write(framed) != len(framed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unused(folder: Path) -> Path:
    """The name of a new event file, behind those of all earlier ones in the order of names, in which they are read."""
    names = (re.fullmatch(r"events\.out\.tfevents\.(\d{10})\.klimb", path.name) for path in folder.iterdir())
    seconds = [int(name[1]) for name in names if name is not None]
    return folder / f"events.out.tfevents.{max([int(time.time()), *(second + 1 for second in seconds)])}.klimb"
