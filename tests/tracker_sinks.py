"""Trackers that remember what they are told, and trackers that fail, for tests: `--log tracker_sinks:NAME`."""

from __future__ import annotations

import threading
from collections import defaultdict

from klimb.tracking.sink import Outcome, Point, TrackedRun

RUNS: dict[str, TrackedRun] = {}
POINTS: dict[str, list[Point]] = defaultdict(list)
OUTCOMES: dict[str, list[Outcome]] = defaultdict(list)
"""What `Remembering` was told, by the identifiers of runs, as a server would have it."""
BEGUN: list[str] = []


def forget() -> None:
    """Begin with an empty server."""
    for told in (RUNS, POINTS, OUTCOMES, BEGUN):
        told.clear()


class Remembering:
    def begin(self, run: TrackedRun) -> int | None:
        BEGUN.append(run.id)
        self.id = run.id
        RUNS[run.id] = run
        return POINTS[run.id][-1].step if POINTS[run.id] else None

    def log(self, points) -> None:
        POINTS[self.id] += points

    def finish(self, outcome: Outcome) -> None:
        OUTCOMES[self.id].append(outcome)


class FailsToBegin(Remembering):
    def begin(self, run: TrackedRun) -> int | None:
        raise OSError("https://joe:hunter2@somewhere does not answer\nat all")


class FailsToLog(Remembering):
    def log(self, points) -> None:
        raise SystemExit("password=hunter2 is wrong")


class FailsToFinish(Remembering):
    def log(self, points) -> None:
        pass

    def finish(self, outcome: Outcome) -> None:
        raise ValueError


class Hangs(Remembering):
    released = threading.Event()

    def log(self, points) -> None:
        self.released.wait(60)


class NoTracker:
    def begin(self, run: TrackedRun) -> None:
        pass
