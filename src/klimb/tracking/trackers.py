"""All trackers of the runs of a training: begun with it, finished when evaluations and reports are there."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from klimb.errors import KlimbError, RunError, one_line
from klimb.runs.config import RunConfig
from klimb.runs.directory import RunDirectory
from klimb.runs.ending import Ending, read_ending
from klimb.runs.metrics import Record
from klimb.tracking.described import outcome_of, started_at, tracked_run
from klimb.tracking.points import points_of
from klimb.tracking.registry import sinks_of
from klimb.tracking.sink import Outcome
from klimb.tracking.tracker import NO_ANSWER, Tracker

SECONDS_TO_FINISH = 60.0
"""That all trackers may take after the training, before they are left alone."""
SECONDS_AFTER_INTERRUPT = 10.0
"""That all trackers may take after Ctrl-C."""

logger = logging.getLogger("klimb")


class RunTrackers:
    """The trackers of one run.

    names: as `--log` has them. config, directory: of the run; no directory for one in memory. records: of the run so
    far. name: of a run in memory.
    """

    def __init__(
        self,
        names: Sequence[str],
        config: RunConfig,
        directory: RunDirectory | None,
        records: Sequence[Record],
        name: str = "",
    ) -> None:
        new_sinks = sinks_of(names)
        self.path = None if directory is None else directory.path
        self.ending: Ending | None = None
        """What ended the training of a run in memory; of others, their files say it."""
        options = config.options
        self._seeds = range(options.seed, options.seed + options.num_seeds)
        provenance = []
        if directory is not None:
            with contextlib.suppress(RunError):  # damaged: not the business of a tracker
                provenance = directory.provenance()
        self._started = started_at(provenance) or time.time()
        run = tracked_run(config, self.path, provenance, name)
        points = list(points_of(records, self._seeds, self._started))
        self.trackers = [Tracker(name, new_sink, run, points) for name, new_sink in new_sinks.items()]
        self._told: set[str] = set()

    def log(self, records: Sequence[Record]) -> None:
        """Hand over records, without waiting for the trackers."""
        points = list(points_of(records, self._seeds, self._started))
        for tracker in self.trackers:
            tracker.log(points)
        self._tell_of_failures()

    def finish(self) -> None:
        """Hand over what has come of the run, without waiting for the trackers."""
        ending = self.ending
        if self.path is not None:
            with contextlib.suppress(RunError):  # damaged
                ending = read_ending(self.path)
        try:
            outcome = outcome_of(self.path, ending)
        except (KlimbError, OSError):  # its directory is gone
            outcome = Outcome(None if ending is None else ending.reason, {}, [])
        for tracker in self.trackers:
            tracker.finish(outcome)

    def wait(self, deadline: float | None = None) -> None:
        """Wait until all trackers have everything, or have failed. deadline: as for `Tracker.wait`."""
        for tracker in self.trackers:
            tracker.wait(deadline)
        self._tell_of_failures()

    def _tell_of_failures(self) -> None:
        """One line about every tracker that is dropped."""
        for tracker in self.trackers:
            if tracker.failure is not None and tracker.name not in self._told:
                self._told.add(tracker.name)
                if self.path is None:
                    remedy = "the run is in memory alone, from which it can't be added later"
                else:
                    words = ["klimb", "sync", str(self.path), tracker.name]
                    remedy = f"the training does not depend on it; add the rest later: {shlex.join(words)}"
                logger.warning("%s: nothing more is logged there (%s); %s", tracker.name, tracker.failure, remedy)


class Trackers:
    """The trackers of several runs. As a context, it finishes at its end what is still open."""

    def __init__(self) -> None:
        self._open: list[RunTrackers] = []
        self._silent: set[str] = set()
        """Names of trackers that did not answer for a run: the others do not wait for them again."""

    def begin(
        self, config: RunConfig, directory: RunDirectory | None, records: Sequence[Record], name: str = ""
    ) -> RunTrackers | None:
        """The trackers of a run that begins or goes on; None of one that is not logged, or can't be.

        config, directory, records, name: as for `RunTrackers`; the names of the trackers are in the configuration.
        """
        names = [name for name in config.options.log if name not in self._silent]
        if not names:
            return None
        for run in self._open:
            if directory is not None and run.path == directory.path:  # it was paused
                return run
        try:
            trackers = RunTrackers(names, config, directory, records, name)
        except Exception as error:  # such as no more threads: the training goes on
            logger.warning("the run is not logged to %s: %s", ", ".join(names), one_line(error, 200))
            return None
        self._open.append(trackers)
        return trackers

    def complete(self, path: Path) -> None:
        """Finish a run that has its evaluation and its report, wherever it was trained. path: its directory."""
        if all(run.path != path for run in self._open):
            try:
                directory = RunDirectory.open(path)
                records = directory.history() if directory.config.options.log else []
            except (KlimbError, OSError):  # it has failed before it was written
                return
            self.begin(directory.config, directory, records)
        self.finish(path)

    def finish(self, path: Path | None = None, seconds: float | None = None) -> None:
        """Finish runs, and wait for their trackers.

        path: directory of one run; None for all that are open. seconds: after which trackers are left alone; None
        for `SECONDS_TO_FINISH`.
        """
        chosen = [run for run in self._open if path is None or run.path == path]
        self._open = [run for run in self._open if run not in chosen]
        for run in chosen:
            run.finish()
        deadline = time.monotonic() + (SECONDS_TO_FINISH if seconds is None else seconds)
        for run in chosen:
            run.wait(deadline)
            self._silent |= {one.name for one in run.trackers if one.failure == NO_ANSWER}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Who presses Ctrl-C now does not wait for the trackers, and what was trained is returned all the same.
        with contextlib.suppress(KeyboardInterrupt):
            self.finish(seconds=SECONDS_AFTER_INTERRUPT if isinstance(error, KeyboardInterrupt) else None)


@contextlib.contextmanager
def finished_at_end(trackers: Trackers | None) -> Iterator[Trackers]:
    """The trackers of a caller, who finishes them; or others, which are finished at the end. trackers: None: others."""
    if trackers is not None:
        yield trackers
        return
    with Trackers() as own:
        yield own
