"""How good a policy is: whole episodes, their undiscounted returns, and the standard error of the mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from klimb.collect.whole_episodes import MAX_STEPS, EpisodeStep, OnEpisodes, WholeEpisodes
from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment, make
from klimb.errors import ConfigError, WrongObject
from klimb.policies.policy import Policy, policy_of


class Evaluation(NamedTuple):
    """What whole episodes resulted in.

    returns: undiscounted, of each episode, `[episodes]`. lengths: their steps. mean: of the returns. standard_error: of
    that mean.
    """

    returns: np.ndarray
    lengths: np.ndarray
    mean: float
    standard_error: float


def evaluate(
    policy: PyTree,
    env: str | Any,
    *,
    episodes: int,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    on_episodes: OnEpisodes | None = None,
) -> Evaluation:
    """Run `episodes` whole episodes: the distribution's mode at every step, or samples.

    policy: a callable pytree, or a `klimb.Run` of one seed. env: a name (see `klimb.make`) or an environment.
    episodes: how many, at least 1.
    seed: of the environments and of the policy's draws. deterministic: take the mode instead of sampling.
    max_steps: steps after which an episode is taken for one that never ends.
    on_episodes: called with two numbers at the start and whenever episodes have ended: those that have, and `episodes`.

    Returns the returns and lengths of all episodes, with their mean return.
    Raises ConfigError for fewer than one episode, WrongObject for what is not a policy, PolicyFileError when the policy
    does not fit the environment, and EnvironmentFault when an episode has not ended after `max_steps`, or the
    environment fails.
    """
    if isinstance(policy, str | CompiledEnvironment | HostEnvironment) and isinstance(env, Policy):
        raise WrongObject("the policy comes before the environment: klimb.evaluate(policy, env, episodes=…)")
    evaluator = Evaluator(make(env), episodes=episodes, deterministic=deterministic, max_steps=max_steps)
    return evaluator(policy_of(policy), seed, on_episodes)


class Evaluator:
    """Evaluates policies as `evaluate` does; programs are compiled once for all policies of one structure.

    environment: where. episodes, deterministic, max_steps, errors: as for `evaluate`.
    """

    def __init__(
        self, environment: Environment, *, episodes: int, deterministic: bool, max_steps: int = MAX_STEPS
    ) -> None:
        if episodes < 1:
            raise ConfigError(f"episodes = {episodes}; an evaluation needs at least 1")
        self._run = WholeEpisodes(
            environment, _outcome, episodes=episodes, deterministic=deterministic, max_steps=max_steps
        )

    def __call__(self, policy: PyTree, seed: int, on_episodes: OnEpisodes | None = None) -> Evaluation:
        """The evaluation of one policy. policy, seed, on_episodes: as for `evaluate`."""
        reward, ended = self._run(policy, seed, on_episodes)
        last = np.flatnonzero(ended)
        lengths = np.diff(last, prepend=-1)
        returns = np.add.reduceat(reward.astype(np.float64), last - lengths + 1)
        count = len(returns)
        error = float(np.std(returns, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
        return Evaluation(returns, lengths, float(np.mean(returns)), error)


def _outcome(step: EpisodeStep) -> tuple:
    return step.reward, step.terminated | step.truncated
