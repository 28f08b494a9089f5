"""TensorBoard's event files: the numbers of a run by group, and every seed as a run of TensorBoard's own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klimb.files import kind_of_link, make_directory, open_new
from klimb.types import Status

GROUPS: dict[str, tuple[str, ...]] = {
    "return": ("episode_return", "episode_length", "episodes", "env_faults", "late_rows"),
    "step": (
        *("status", "surrogate_gain", "entropy", "ess", "kl_old_new", "kl_new_old", "kl_max", "kl_old_new_max"),
        *("kl_new_old_max", "kl_normalizer", "tv", "tv_max"),
    ),
    "certificate": (
        *("predicted_improvement", "predicted_improvement_se", "realised_improvement", "realised_improvement_se"),
        *("sampled_improvement_bound", "step_excess", "state_mismatch_bound", "tv_bound", "tv_max_bound"),
        *("kl_old_new_se", "kl_new_old_se", "tv_se"),
    ),
    "critic": ("explained_variance", "value_loss"),
    "speed": ("iteration", "wall_time", "steps_per_second"),
}
"""The metrics of each group. Those called `eval_…` are in `evaluation`, all others in `rule`; a tag is GROUP/METRIC.
`env_steps` is TensorBoard's axis."""

SEPARATE_SEEDS = 16
"""Maximum number of seeds with event files of their own; of more, the lowest, median and highest values are written."""

logger = logging.getLogger("klimb")

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def tag(metric: str) -> str:
    """What TensorBoard calls a metric: its group and its name.

    metric: its name in `metrics.jsonl`.
    """
    group = "evaluation" if metric.startswith("eval_") else _GROUP_OF.get(metric, "rule")
    return f"{group}/{metric}"


class Board:
    """Writes records of a run as TensorBoard's events; of several seeds, into a folder for each.

    After a write error nothing more is written: all numbers are in `metrics.jsonl` too.
    """

    def __init__(self, directory: Path, seeds: Sequence[int], *, resumed_after: Mapping[str, Any] | None) -> None:
        """Open the files.

        directory: of the run. seeds: of the run. resumed_after: the last record that a resumed run has kept, or {}:
        what was written of later ones is withdrawn, since they are repeated. None for a new run.
        """
        self._columns = _columns(seeds)
        self._files: dict[str, _EventFile] = {}
        with self._closing_on_error():
            for folder in self._columns:
                self._files[folder] = _EventFile(directory / folder)
                if resumed_after is not None:
                    self._files[folder].withdraw(_step(resumed_after) + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record. It has one number of a metric, or one for each seed."""
        with self._closing_on_error():
            for folder, file in self._files.items():
                numbers = {
                    tag(name): number
                    for name, value in record.items()
                    if name != "env_steps" and (number := self._columns[folder](_numbers(name, value))) is not None
                }
                file.add(numbers, _step(record))

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


def _step(record: Mapping[str, Any]) -> int:
    """Where a record stands on the axis: at its environment steps, or, where none are made, its iteration; {} at 0."""
    steps = record.get("env_steps") or record.get("iteration", 0)
    # A record that is read back may hold anything.
    return steps if type(steps) is int and 0 <= steps < 2**53 else 0


Numbers = list[float | None]
"""Of a metric, one for each seed or one for all; None where a seed has none."""


def _columns(seeds: Sequence[int]) -> dict[str, Callable[[Numbers], float | None]]:
    """The folders of the event files, and what of a metric's numbers goes into each."""
    if len(seeds) == 1:
        return {"": lambda numbers: numbers[0]}
    if len(seeds) > SEPARATE_SEEDS:
        return {"lowest": _over_seeds(min), "median": _over_seeds(statistics.median), "highest": _over_seeds(max)}
    return {f"seed_{seed}": _of_seed(k) for k, seed in enumerate(seeds)}


def _of_seed(k: int) -> Callable[[Numbers], float | None]:
    return lambda numbers: numbers[k] if len(numbers) > 1 else numbers[0]


def _over_seeds(statistic: Callable[[list[float]], float]) -> Callable[[Numbers], float | None]:
    def column(numbers: Numbers) -> float | None:
        present = [number for number in numbers if number is not None]
        return statistic(present) if present else None

    return column


def _numbers(name: str, value: Any) -> Numbers:
    values = value if isinstance(value, list) else [value]
    return [None if one is None else float(Status[one] if name == "status" else one) for one in values]


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
