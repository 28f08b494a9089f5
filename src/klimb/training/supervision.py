"""Evaluations during a training, and what may end it early, for every run of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from klimb.collect.whole_episodes import OnEpisodes
from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.training import peers
from klimb.training.evaluations import Evaluations, as_record
from klimb.training.program import Program
from klimb.training.stopping import Stopping
from klimb.types import TrainState


class Supervision:
    """Advances a program such that evaluations and the end come after the iteration that they belong to.

    program: what is advanced. runs: of each run in it, its configuration and its part of the program's copies. Each run
    is evaluated when it is due by its own steps; the program ends when all of its runs would have ended.
    """

    def __init__(self, program: Program, runs: Sequence[tuple[RunConfig, slice]]) -> None:
        self._program = program
        self._evaluations = Evaluations(program.environment, program.config.options)
        self._parts = [part for _, part in runs]
        self.stoppings = [Stopping(config.options) for config, _ in runs]
        """What ends each run."""

    def restore(self, histories: Sequence[list[Record]]) -> None:
        """Go on from the records of every run, when they are resumed."""
        for stopping, records in zip(self.stoppings, histories, strict=True):
            stopping.restore(records)

    @property
    def ended(self) -> bool:
        """Whether every run has reached what ends it."""
        return all(one.reason is not None for one in self.stoppings)

    def certain(self, env_steps: np.ndarray, limit: int) -> int:
        """Iterations after which the next evaluation may be due, at least 1 and at most `limit`.

        env_steps: so far, of every copy, `[K]`. limit: at least 1.
        """
        most = self._program.source.rows_per_iteration
        numbers = [self._evaluations.certain(env_steps[part], most) for part in self._parts]
        return min([limit, *(number for number in numbers if number is not None)])

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """As `Program.advance`; fewer iterations when the training ends by what happened in one of them."""
        watched = any(one.by_iteration for one in self.stoppings)
        before = jax.tree.map(jnp.copy, state) if watched and iterations > 1 else None
        state, metrics = self._program.advance(state, iterations)
        last = self._last(metrics) if watched else iterations
        if before is not None and last < iterations:
            # How a training is cut into calls changes nothing: these are the same iterations again.
            return self._program.advance(before, last)
        return state, metrics

    def _last(self, metrics: dict[str, np.ndarray]) -> int:
        """The number of iterations after which all runs have ended; all of them where that is not so."""
        episodes, returns = metrics["episodes"], metrics["episode_return"]
        for i in range(len(episodes)):
            for part, stopping in zip(self._parts, self.stoppings, strict=True):
                stopping.add(episodes[i, part].tolist(), returns[i, part].tolist())
            if self.ended:
                return i + 1
        return len(episodes)

    def evaluate(self, state: TrainState, before: np.ndarray, iteration: int, on_episodes: OnEpisodes) -> list[Record]:
        """What the evaluations after an iteration add to the record of each run; nothing where none is due.

        state: after it. before: environment steps of every copy before the last call, `[K]`. iteration: its number.
        on_episodes: sees the episodes end.
        """
        after = np.asarray(state.env_steps)
        due = [self._evaluations.due(before[part], after[part]) for part in self._parts]
        if not any(due):
            return [{} for _ in due]
        policies, seeds = self._program.policies(state), self._program.seeds
        records: list[dict[str, Any]] = []
        for part, stopping, evaluated in zip(self._parts, self.stoppings, due, strict=True):
            columns = {}
            if evaluated:
                # Processors differ in the last digits, and what ends a training has to end it everywhere.
                columns = peers.from_first(
                    self._evaluations.evaluate(policies[part], seeds[part], iteration, on_episodes)
                )
            stopping.add((), (), columns.get("eval_return", ()))
            records.append(as_record(columns))
        return records
