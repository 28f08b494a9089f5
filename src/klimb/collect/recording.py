"""Recording demonstrations: whole episodes under a policy, with the log-probs of what it did."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.collect.whole_episodes import EpisodeStep, OnEpisodes, whole_episodes
from klimb.environments.registry import make
from klimb.errors import ConfigError
from klimb.policies.policy import policy_of


def record(
    policy: PyTree,
    env: str | Any,
    *,
    episodes: int,
    seed: int = 0,
    deterministic: bool = False,
    on_episodes: OnEpisodes | None = None,
) -> Demonstrations:
    """`episodes` whole episodes under a policy: its samples with their log-probs, or its modes without.

    policy: a callable pytree, or a `klimb.Run` of one seed. env: a name (see `klimb.make`) or an environment.
    episodes: how many, at least 1.
    seed: of the environments and of the policy's draws. deterministic: take the mode instead of sampling. A policy
    that always takes its mode has no density: the log-probs are then NaN, and the demonstrations can be cloned but
    not weighted by importance.
    on_episodes: called with two numbers at the start and whenever episodes have ended: those that have, and `episodes`.

    Raises ConfigError for fewer than one episode, WrongObject for what is not a policy, PolicyFileError when the policy
    does not fit the environment, EnvironmentFault when that fails or an episode never ends.
    """
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes}; demonstrations need at least 1")
    environment = make(env)
    columns = whole_episodes(
        policy_of(policy),
        environment,
        _without_state,
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
        on_episodes=on_episodes,
    )
    obs, action, log_prob, reward, terminated, truncated, next_obs = columns
    return Demonstrations(
        obs=obs.astype(environment.observations.dtype),
        action=action.astype(environment.actions.dtype),
        log_prob=log_prob.astype(np.float32),
        reward=reward.astype(np.float32),
        terminated=terminated.astype(bool),
        # An episode that terminates on the clock's last tick has terminated.
        truncated=truncated.astype(bool) & ~terminated.astype(bool),
        next_obs=next_obs.astype(environment.observations.dtype),
        actions=environment.actions,
        environment=environment.id,
        source=f"the recording of {environment.id}",
    )


def _without_state(step: EpisodeStep) -> tuple:
    return step[:-1]
