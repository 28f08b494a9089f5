"""The figures of a training in progress: what a panel or a line shows of its newest record."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from klimb.improve.rule import is_offline, rule_title, traits_of
from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.training.length import length_of
from klimb.types import Status

Row = dict[str, str]
"""Figures by name, as text, in the order in which they are shown."""


class Part(NamedTuple):
    """One combination of a sweep: its name, its configuration, and its copies among all of the program."""

    name: str
    config: RunConfig
    copies: slice


RECORDS_OF_RETURN = 20
"""Number of newest records with a return over which the return shown is averaged."""


class Figures:
    """Takes in the records of a training, and says what to show of them.

    config: of the run; of a sweep, that of one of its runs. copies: those of the run, where records have the values of
    others as well.
    """

    def __init__(self, config: RunConfig, copies: slice | None = None) -> None:
        self._config, self._copies = config, copies
        self._traits, self._offline = traits_of(config.rule), is_offline(config.rule)
        self._length = length_of(config)
        self._returns: deque[float] = deque(maxlen=RECORDS_OF_RETURN)
        self._rejected = 0
        self._last: Record | None = None
        # Wall time and fraction done of the first record: its iteration is the one that waited for the compiler.
        self._compiled: tuple[float, float] | None = None

    @property
    def titles(self) -> tuple[str, ...]:
        """The rule, the environment and the number of seeds; and shorter ones, the longest first."""
        rule, seeds = rule_title(self._config.rule), self._config.options.num_seeds
        what = f"{rule} on {self._config.env}"
        return (f"{what} · {seeds} seeds", what, rule) if seeds > 1 else (what, rule)

    @property
    def iteration(self) -> int:
        """The iteration of the newest record; 0 before the first."""
        return 0 if self._last is None else int(self._last["iteration"])

    @property
    def wall_time(self) -> float:
        """Seconds of training at the newest record, over all parts of a resumed run."""
        return 0.0 if self._last is None else float(self._last["wall_time"])

    @property
    def fraction_done(self) -> float:
        """The part of the training that is over, 0 to 1."""
        return 0.0 if self._last is None else self._done(self._last)

    def take_in(self, record: Record) -> None:
        """Take in the record of an iteration. record: they come in order, each of them once."""
        self._rejected += sum(Status[status].rejected for status in self._own(record["status"]))
        value = _mean(self._own(record["episode_return"]))
        if value is not None:
            self._returns.append(value)
        self._last = record
        if self._compiled is None:
            self._compiled = record["wall_time"], self._done(record)

    @property
    def row(self) -> Row:
        """The figures of the newest record. Only after the first."""
        record, traits = self._last, self._traits
        assert record is not None
        watched = {
            traits.metrics[name].title.lower(): _short(_mean(self._own(record.get(name)))) for name in traits.watched
        }
        speed = f"{record['steps_per_second']:,.0f}"
        if self._offline:
            epoch = f"{record['iteration']}/{self._config.num_iterations}"
            return {"epoch": epoch, "rows/s": speed, **watched, "time left": self._time_left(record)}
        limit, _, direction = traits.kl
        kl = _mean(self._own(record[f"kl_{direction}"]))
        total = self._length.iterations
        return {
            "iteration": f"{record['iteration']}" + (f"/{total}" if total else ""),
            "env steps": f"{record['env_steps']:,}",
            "steps/s": speed,
            "return": f"{np.mean(self._returns):.1f}" if self._returns else "–",
            "KL": ("–" if kl is None else f"{kl:.4f}") + (f" / {limit:g}" if limit else ""),
            **watched,
            "rejected": str(self._rejected),
            "time left": self._time_left(record),
        }

    @property
    def common(self) -> tuple[str, ...]:
        """The names of the figures that all combinations of a program share."""
        return ("epoch", "rows/s", "time left") if self._offline else ("iteration", "env steps", "steps/s", "time left")

    @property
    def by_importance(self) -> tuple[str, ...]:
        """The names of the figures, the most important one first: where there is little room, the last are left out."""
        watched = tuple(self._traits.metrics[name].title.lower() for name in self._traits.watched)
        if self._offline:
            return ("epoch", *watched, "time left", "rows/s")
        return ("return", "iteration", "time left", *watched, "KL", "env steps", "steps/s", "rejected")

    @property
    def line(self) -> str:
        """The figures of the newest record in one line."""
        return "  ".join(f"{name} {value}" for name, value in self.row.items())

    def _own(self, value: Any) -> list[Any]:
        """The values of the run's copies; of a program with a single copy a record holds its value alone."""
        values = value if isinstance(value, list) else [value]
        return values if self._copies is None or not isinstance(value, list) else values[self._copies]

    def _done(self, record: Record) -> float:
        return float(self._length.fraction_done(record["iteration"], record["env_steps"]))

    def _time_left(self, record: Record) -> str:
        assert self._compiled is not None
        seconds, done = record["wall_time"] - self._compiled[0], self._done(record) - self._compiled[1]
        # With whole episodes the fraction is that of the seeds' mean, and can stand still.
        return "–" if done <= 0 else duration(seconds / done * (1 - self._done(record)))


def duration(seconds: float) -> str:
    """A time as hours, minutes and seconds. seconds: at least 0."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _short(value: float | None) -> str:
    """A number of any size in few characters."""
    return "–" if value is None else f"{value:.4g}"


def _mean(values: list[Any]) -> float | None:
    """Mean over the seeds that have a value."""
    numbers = [number for number in values if number is not None]
    return float(np.mean(numbers)) if numbers else None
