"""What the rows of `make bench-seconds` say: medians, and what is known of them where seeds were not solved."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

Row = dict[str, Any]


class Median(NamedTuple):
    """Of the seconds and the environment steps of a contender on a task.

    bound: whether it is only known that the median is larger, because too many seeds were not solved. solved, trained:
    how many seeds.
    """

    seconds: float
    steps: float
    bound: bool
    solved: int
    trained: int


class Ratio(NamedTuple):
    """klimb's seconds by those of the fastest peer. bound: whether it is only known that the ratio is smaller."""

    value: float
    bound: bool
    ours: str
    peer: str


def taken(one: Median) -> str:
    """Seconds with three digits, as they are printed."""
    digits = 0 if one.seconds >= 100 else 1 if one.seconds >= 10 else 2 if one.seconds >= 1 else 3
    return f"{'> ' if one.bound else ''}{one.seconds:.{digits}f}"


def number(value: float) -> str:
    """A threshold, as it is printed."""
    return f"{value:g}".replace("-", "−")


def is_settled(rows: list[Row], seeds: int) -> bool:
    """Whether it is known that there is no median, because more than half of all seeds were not solved.

    rows: of one contender on one task. seeds: how many the task has.
    """
    return 2 * unsolved(rows) > seeds


def unsolved(rows: list[Row]) -> int:
    """How many seeds reached a limit."""
    return sum(row["seconds"] is None for row in rows)


def median(rows: list[Row], seeds: int) -> Median | None:
    """The median over all seeds of a task; None where seeds are missing that it depends on.

    A seed that was not solved counts with what it had used, and one that was not trained with 0: the median of these
    is a lower bound of the true one. rows: of one contender. seeds: how many the task has.
    """
    if len(rows) < seeds and not is_settled(rows, seeds):
        return None
    skipped = [0.0] * (seeds - len(rows))
    taken = [(row["used_seconds"], row["used_steps"]) for row in rows]
    seconds, steps = (statistics.median([*column, *skipped]) for column in zip(*taken, strict=True))
    missed = unsolved(rows)
    return Median(seconds, steps, 2 * missed >= seeds, len(rows) - missed, len(rows))


def fastest_ratio(medians: dict[str, Median], ours: set[str]) -> Ratio | None:
    """klimb's faster rule against its fastest peer; None where klimb has no median, or there is nobody to compare with.

    medians: by contender. ours: which of them are klimb's.
    """
    own = {name: one for name, one in medians.items() if name in ours and not one.bound}
    peers = {name: one for name, one in medians.items() if name not in ours}
    if not own or not peers:
        return None
    best, peer = (min(those, key=lambda name: those[name].seconds) for those in (own, peers))
    return Ratio(own[best].seconds / peers[peer].seconds, peers[peer].bound, best, peer)
