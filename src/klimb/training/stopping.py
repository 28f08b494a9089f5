"""Ends a training before its `env_steps`: once a return is reached, or when returns have not risen for a while."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from klimb.runs.config import TrainOptions
from klimb.runs.metrics import Record, per_seed_of

WINDOW = 100
"""Training episodes that a mean return is taken over."""


class WindowedReturn:
    """The mean return of a seed's last `WINDOW` training episodes.

    Exactly: of the fewest last iterations in which together that many episodes ended.
    """

    def __init__(self) -> None:
        self._iterations: deque[tuple[float, float]] = deque()
        self._episodes = 0.0

    def add(self, episodes: int | float | None, mean_return: int | float | None) -> float | None:
        """Add an iteration; the mean now, or None while fewer episodes have ended.

        episodes: that ended in it. mean_return: of those; None or not finite where it does not exist.
        """
        if episodes and mean_return is not None and math.isfinite(mean_return):
            self._iterations.append((float(episodes), float(episodes) * float(mean_return)))
            self._episodes += float(episodes)
            while self._episodes - self._iterations[0][0] >= WINDOW:
                self._episodes -= self._iterations.popleft()[0]
        if self._episodes < WINDOW:
            return None
        return math.fsum(total for _, total in self._iterations) / self._episodes


class Stopping:
    """Whether a run has reached `until_return`, or waited out its `patience`: `reason`, which is kept once it is there.

    What is compared is the deterministic evaluation's mean return with `eval_every`, else `WindowedReturn`. A seed has
    reached the return when it did so once; the run has when all seeds have. The run has waited long enough when all
    seeds have, at the same time. It is a function of the records, so that a run that is resumed stops where it would
    have.

    options: of the run.
    """

    def __init__(self, options: TrainOptions) -> None:
        self._until, self._patience = options.until_return, options.patience
        self._evaluates, seeds = options.eval_every > 0, options.num_seeds
        self._windows = [WindowedReturn() for _ in range(seeds)]
        self._best = np.full(seeds, -np.inf)
        self._waited = np.zeros(seeds, int)
        self._reached = np.zeros(seeds, bool)
        self.reason: Literal["until_return", "patience"] | None = None

    @property
    def by_iteration(self) -> bool:
        """Whether any iteration may be the last one, because training returns are what counts."""
        return not self._evaluates and (self._until is not None or self._patience is not None)

    def restore(self, records: list[Record]) -> None:
        """Go on from the records of a run that is resumed."""
        seeds = len(self._best)
        for record in records:
            self.add(*(per_seed_of(record, name, seeds) for name in ("episodes", "episode_return", "eval_return")))

    def add(self, episodes: Sequence[Any], returns: Sequence[Any], evaluated: Sequence[Any] = ()) -> None:
        """Add an iteration, each column with one value per seed; empty columns, and None, for what does not exist.

        episodes: that ended in it. returns: their mean return. evaluated: mean return of the evaluation after it.
        """
        if self.reason is not None:
            return
        if self._evaluates:
            values: Sequence[float | None] = evaluated
        else:
            values = [window.add(*row) for window, row in zip(self._windows, zip(episodes, returns))]  # noqa: B905
        if len(values) != len(self._best):
            return
        for seed, value in enumerate(values):
            if value is None or not math.isfinite(value):
                continue
            self._reached[seed] |= self._until is not None and value >= self._until
            self._waited[seed] = 0 if value > self._best[seed] else self._waited[seed] + 1
            self._best[seed] = max(self._best[seed], value)
        if self._reached.all():
            self.reason = "until_return"
        elif self._patience is not None and (self._waited >= self._patience).all():
            self.reason = "patience"

    @property
    def message(self) -> str:
        """The reason in one line, without the iteration."""
        every = f" for each of the {len(self._best)} seeds" if len(self._best) > 1 else ""
        if self.reason == "until_return":
            what = "the evaluation return" if self._evaluates else f"the mean return of the last {WINDOW} episodes"
            return f"{what} reached until_return = {self._until:g}{every}"
        what = f"{'evaluation' if self._evaluates else 'iteration'}{'' if self._patience == 1 else 's in a row'}"
        return f"{self._patience} {what} brought no higher return{every} (patience)"
