"""Evaluations of a run's policies while it trains: after which iterations, with which seeds, and what is recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from klimb.collect.evaluation import Evaluation, Evaluator
from klimb.collect.whole_episodes import OnEpisodes
from klimb.environments.registry import Environment
from klimb.errors import EnvironmentFault
from klimb.runs.config import TrainOptions
from klimb.runs.metrics import per_seed

FIRST_SEED = 2**31
"""Added to the seed of a training: no training has a seed as large, and no evaluation shares its random numbers."""

logger = logging.getLogger("klimb")


class Evaluations:
    """Evaluates policies after the iteration that reaches a multiple of `eval_every` environment steps per seed.

    Seed s is evaluated with the seed s + 2³¹, always the same: on the same episodes but for what the policy does. The
    environments are new copies every time, and the training's random keys are not used. An environment that fails here
    does not stop the training.

    environment: of the run. options: of the run.
    """

    def __init__(self, environment: Environment, options: TrainOptions) -> None:
        self._every = options.eval_every
        self._evaluators = {
            prefix: Evaluator(environment, episodes=options.eval_episodes, deterministic=deterministic)
            for prefix, deterministic in (("eval", True), ("eval_sampled", False))
            if options.eval_every > 0
        }

    def certain(self, env_steps: np.ndarray, most: int) -> int | None:
        """Iterations after which the next evaluation may be due, at least 1; None without evaluations.

        env_steps: so far, of each seed, `[K]`. most: of a seed in one iteration.
        """
        if self._every == 0:
            return None
        steps, count = _total(env_steps), len(env_steps)
        missing = (steps // (count * self._every) + 1) * count * self._every - steps
        # The first iteration may have a rollout before it, whose steps count.
        return -(-missing // (count * most)) if steps > 0 else 1

    def due(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether the mean number of steps has reached a multiple of `eval_every`.

        before, after: environment steps of each seed before and after the last iterations, `[K]`.
        """
        size = len(after) * self._every
        return size > 0 and _total(after) // size > _total(before) // size

    def evaluate(
        self, policies: Sequence[Any], seeds: Sequence[int], iteration: int, on_episodes: OnEpisodes | None = None
    ) -> dict[str, list[float]]:
        """Metrics by name, one value per seed; NaN for all where the environment has failed, which is logged.

        policies: one per seed. seeds: the training's. iteration: that they are after, for the message.
        on_episodes: sees the episodes of each policy end.
        """
        columns: dict[str, list[float]] = {}
        for prefix, evaluator in self._evaluators.items():
            try:
                pairs = zip(policies, seeds, strict=True)
                results = [evaluator(policy, FIRST_SEED + seed, on_episodes) for policy, seed in pairs]
                rows = [_figures(result) for result in results]
            except EnvironmentFault as fault:
                logger.warning("the evaluation after iteration %d has failed: %s", iteration, fault)
                rows = [dict.fromkeys(_SUFFIXES, float("nan")) for _ in policies]
            columns |= {f"{prefix}_{name}": [row[name] for row in rows] for name in _SUFFIXES}
        return columns


def as_record(columns: dict[str, list[float]]) -> dict[str, Any]:
    """What `Evaluations.evaluate` gives, as it stands in a record."""
    return {name: per_seed(values) for name, values in columns.items()}


def _figures(result: Evaluation) -> dict[str, float]:
    returns = result.returns
    return {
        "return": result.mean,
        "return_se": result.standard_error,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length": float(result.lengths.mean()),
    }


_SUFFIXES = ("return", "return_se", "return_min", "return_max", "length")


def _total(env_steps: np.ndarray) -> int:
    return int(env_steps.sum(dtype=np.int64))
