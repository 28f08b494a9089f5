"""What a training tells whoever watches it, and the view that writes lines: to a pipe, a file, or a logger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from klimb.improve.rule import is_offline
from klimb.rules import rule_name
from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.training.length import length_of
from klimb.training.progress.compile_times import CompileTimes
from klimb.training.progress.figures import Figures, Part, duration


class View:
    """What a training tells. This one shows nothing; the others show what they override.

    It is a context, which is entered before anything is prepared and left when the training has ended, or failed.
    """

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def begin(self, config: RunConfig, iteration: int, directories: Sequence[Path], parts: Sequence[Part] = ()) -> None:
        """A training begins.

        config: of the run; of a sweep, that of one of its runs. iteration: those that are done.
        directories: of the runs; none where nothing is written. parts: the combinations of a sweep that are trained
        together.
        """

    def doing(self, what: str) -> None:
        """What goes on now, until the next record. what: in a word or two."""

    def episodes(self, done: int, total: int) -> None:
        """Episodes of an evaluation. done: those that have ended. total: how many there will be."""

    def update(self, records: Sequence[Record]) -> None:
        """New records. records: one per iteration, in order, at least one."""

    def saved(self, iteration: int, directories: Sequence[Path]) -> None:
        """A checkpoint has been written. iteration: those that are done. directories: of the runs; at least one."""

    def end(self, *, finished: bool) -> None:
        """The training is over. finished: whether it went to its end; else an exception says why not."""


MAX_NAMES = 4
"""Combinations of a sweep that are named in one line."""
SILENT = View()


class Views(View):
    """Several views of the same training. views: each is told everything; whoever made them enters and leaves them."""

    def __init__(self, *views: View) -> None:
        self._views = views

    def begin(self, config: RunConfig, iteration: int, directories: Sequence[Path], parts: Sequence[Part] = ()) -> None:
        for view in self._views:
            view.begin(config, iteration, directories, parts)

    def doing(self, what: str) -> None:
        for view in self._views:
            view.doing(what)

    def episodes(self, done: int, total: int) -> None:
        for view in self._views:
            view.episodes(done, total)

    def update(self, records: Sequence[Record]) -> None:
        for view in self._views:
            view.update(records)

    def saved(self, iteration: int, directories: Sequence[Path]) -> None:
        for view in self._views:
            view.saved(iteration, directories)

    def end(self, *, finished: bool) -> None:
        for view in self._views:
            view.end(finished=finished)


class Rhythm:
    """When the next line is due: after 1/20 of the work, but not sooner than 5 s after the last one; and after 60 s.

    clock: seconds since some moment.
    """

    PART, SHORTEST, LONGEST = 1 / 20, 5.0, 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last, self._done = clock, clock(), 0.0

    def due(self, done: float) -> bool:
        """Whether a line is due now; if so, the next one is counted from here. done: fraction of the work, 0 to 1."""
        seconds = self._clock() - self._last
        due = seconds >= self.LONGEST or (seconds >= self.SHORTEST and done - self._done >= self.PART - 1e-9)
        if due:
            self.restart(done)
        return due

    def restart(self, done: float) -> None:
        """Count from now on. done: fraction of the work."""
        self._last, self._done = self._clock(), done


class Lines(View):
    """A line for every iteration and checkpoint, and for what goes on; those that come too often are details.

    write: called with a level of `logging` and a line: INFO, or DEBUG for details. level: the lowest one that is
    written. clock: seconds since some moment.
    """

    def __init__(
        self, write: Callable[[int, str], None], level: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._level, self._clock = write, level, clock
        self._compile_times: CompileTimes | None = None
        self._figures: Figures | None = None
        self._parts: dict[str, Figures] = {}
        self._iterations, self._checkpoints, self._episodes = (Rhythm(clock) for _ in range(3))
        # A training may end, or be stopped, right after an iteration that had no line.
        self._unwritten: list[str] = []

    def __enter__(self) -> Lines:
        if self._level <= logging.DEBUG:
            self._compile_times = CompileTimes()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_compile_times()

    def begin(self, config: RunConfig, iteration: int, directories: Sequence[Path], parts: Sequence[Part] = ()) -> None:
        self._figures = Figures(config)
        self._parts = {part.name: Figures(part.config, part.copies) for part in parts}
        self._say(logging.INFO, beginning(config, iteration, directories, parts))

    def doing(self, what: str) -> None:
        self._say(logging.INFO, f"{what} …")

    def episodes(self, done: int, total: int) -> None:
        if done == 0:
            self._episodes.restart(0.0)
        elif self._episodes.due(done / total):
            self._say(logging.INFO, f"evaluating: {done} of {total} episodes")

    def update(self, records: Sequence[Record]) -> None:
        figures = self._figures
        if figures is None or not self._shows(logging.INFO):
            return
        if figures.iteration == 0 and self._compile_times is not None:
            self._say(logging.DEBUG, self._compile_times.line)
            self._end_compile_times()
        for record in records:
            first = figures.iteration == 0
            for one in (figures, *self._parts.values()):
                one.take_in(record)
            last = record is records[-1]
            due = last and (self._iterations.due(figures.fraction_done) or first or figures.fraction_done == 1)
            written = due or self._shows(logging.DEBUG)
            for line in self._lines(figures) if written else ():
                self._say(logging.INFO if due else logging.DEBUG, line)
            if due:
                self._iterations.restart(figures.fraction_done)
            self._unwritten = self._lines(figures) if last and not written else []

    def saved(self, iteration: int, directories: Sequence[Path]) -> None:
        done = 0.0 if self._figures is None else self._figures.fraction_done
        level = logging.INFO if self._checkpoints.due(done) or done == 1 else logging.DEBUG
        self._say(level, f"checkpoint of iteration {iteration} written to {places(directories)}")

    def end(self, *, finished: bool) -> None:
        for line in self._unwritten:
            self._say(logging.INFO, line)
        self._unwritten = []
        if finished and self._figures is not None and self._figures.iteration > 0:
            spent = duration(self._figures.wall_time)
            self._say(logging.INFO, f"trained: {self._figures.iteration} iterations in {spent}")

    def _lines(self, figures: Figures) -> list[str]:
        """The figures of the newest record: of a sweep, a line for every combination."""
        width = max(map(len, self._parts), default=0)
        return [f"{name:<{width}}  {part.line}" for name, part in self._parts.items()] or [figures.line]

    def _shows(self, level: int) -> bool:
        return level >= self._level

    def _say(self, level: int, line: str) -> None:
        if self._shows(level):
            self._write(level, line)

    def _end_compile_times(self) -> None:
        if self._compile_times is not None:
            self._compile_times.close()
            self._compile_times = None


def beginning(config: RunConfig, iteration: int, directories: Sequence[Path], parts: Sequence[Part] = ()) -> str:
    """What is trained, how long, and where it goes, in one line.

    config, iteration, directories, parts: as for `View.begin`.
    """
    options, offline = config.options, is_offline(config.rule)
    name = "epochs" if offline else "iterations"
    total = length_of(config).iterations
    length = f"{total:,} {name}" if total else f"{options.env_steps:,} environment steps"
    seeds = f", {options.num_seeds} seeds" if options.num_seeds > 1 else ""
    done = f", from iteration {iteration} on" if iteration else ""
    where = f", in {places(directories)}" if directories else ""
    up_to = "up to " if offline else ""
    values = f", {', '.join(part.name for part in parts[:MAX_NAMES])}" if parts else ""
    more = f" and {len(parts) - MAX_NAMES} more" if len(parts) > MAX_NAMES else ""
    return f"training {rule_name(config.rule)} on {config.env}: {up_to}{length}{seeds}{values}{more}{done}{where}"


def places(directories: Sequence[Path]) -> str:
    """Directories in few words: that of a run, or that which has those of a sweep in it.

    directories: at least one.
    """
    return str(directories[0]) if len(directories) == 1 else f"{directories[0].parent}/*"


def log_lines(logger: logging.Logger) -> Lines:
    """The lines that a logger gets: at INFO, and details at DEBUG. logger: any."""
    levels = (logging.DEBUG, logging.INFO, logging.WARNING)
    return Lines(logger.log, next(level for level in levels if level == logging.WARNING or logger.isEnabledFor(level)))
