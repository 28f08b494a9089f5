"""How good a policy is: whole episodes, their undiscounted returns, and the standard error of the mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.base import CompiledEnvironment, clip_action
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import make
from klimb.errors import EnvironmentFault, PolicyFileError
from klimb.policies.actions import action_spec
from klimb.policies.distributions import Distribution
from klimb.policies.policy import action_distribution

MAX_HOST_COPIES = 16
MAX_STEPS = 100_000
"""Steps after which an episode is taken for one that never ends."""


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths (steps) of `[episodes]` whole episodes; standard error of the mean return."""

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
) -> Evaluation:
    """Run `episodes` whole episodes: the distribution's mode at every step, or samples.

    `env` is a name or an environment. Raises ValueError for fewer than one episode, PolicyFileError when the
    policy does not fit the environment's observations, and EnvironmentFault when an episode has not ended after
    `max_steps`, or the environment fails.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}; an evaluation needs at least 1")
    environment = make(env)
    require_fit(policy, environment)
    if isinstance(environment, CompiledEnvironment):
        returns, lengths = _evaluate_compiled(policy, environment, episodes, seed, deterministic, max_steps)
    else:
        returns, lengths = _evaluate_host(policy, environment, episodes, seed, deterministic, max_steps)
    if lengths.size and lengths.max() > max_steps:
        raise endless(environment.id, max_steps)
    error = float(np.std(returns, ddof=1) / np.sqrt(episodes)) if episodes > 1 else float("nan")
    return Evaluation(returns, lengths, float(np.mean(returns)), error)


def require_fit(policy: PyTree, environment: CompiledEnvironment | HostEnvironment) -> None:
    """PolicyFileError when a policy was made for other observations or actions than the environment's."""
    expected = getattr(getattr(policy, "normalizer", None), "mean", None)
    shape = environment.observation_space.shape
    if expected is not None and expected.shape != shape:
        raise PolicyFileError(
            f"the policy reads observations of shape {expected.shape}, {environment.id} gives {shape}: "
            "it was trained on another environment"
        )
    actions, theirs = getattr(policy, "actions", None), action_spec(environment.action_space)
    if actions is not None and actions != theirs:
        raise PolicyFileError(
            f"the policy has the actions {actions}, {environment.id} takes {theirs}: "
            "it was trained on another environment"
        )


def endless(name: str, steps: int = MAX_STEPS) -> EnvironmentFault:
    """Of an episode that never ends."""
    return EnvironmentFault(
        f"an episode of {name} has not ended after {steps} steps: give it an end (in Gymnasium, max_episode_steps when "
        "it is registered)"
    )


def shares(episodes: int, copies: int) -> np.ndarray:
    """How many of the episodes each copy runs."""
    share = np.full(copies, episodes // copies)
    share[: episodes % copies] += 1
    return share


def _decide(distribution: Distribution, key: PRNGKeyArray, deterministic: bool) -> Array:
    """The action as the environment gets it."""
    return distribution.to_environment(distribution.mode() if deterministic else distribution.sample(key))


def _evaluate_compiled(
    policy: PyTree, environment: CompiledEnvironment, episodes: int, seed: int, deterministic: bool, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """All episodes side by side in one program, until the last of them has ended."""

    @eqx.filter_jit
    def run(policy: PyTree, key: PRNGKeyArray) -> tuple[Array, Array]:
        key, key_reset = jax.random.split(key)
        state, obs = jax.vmap(environment.reset)(jax.random.split(key_reset, episodes))
        zeros = jnp.zeros(episodes)

        def running(carry: tuple) -> Array:
            *_, alive, _, length = carry
            return jnp.any(alive) & jnp.all(length <= max_steps)

        def step(carry: tuple) -> tuple:
            key, state, obs, alive, total, length = carry
            key, key_act, key_step = jax.random.split(key, 3)
            action = _decide(action_distribution(policy, obs), key_act, deterministic)
            after = jax.vmap(environment.step)(
                jax.random.split(key_step, episodes), state, clip_action(environment.action_space, action)
            )
            total = total + jnp.where(alive, after.reward, 0)
            length = length + alive
            return key, after.state, after.obs, alive & ~(after.terminated | after.truncated), total, length

        start = (key, state, obs, jnp.ones(episodes, bool), zeros, jnp.zeros(episodes, jnp.int32))
        *_, total, length = jax.lax.while_loop(running, step, start)
        return total, length

    total, length = run(policy, jax.random.key(seed))
    return np.asarray(total, np.float64), np.asarray(length)


def _evaluate_host(
    policy: PyTree, environment: HostEnvironment, episodes: int, seed: int, deterministic: bool, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each copy runs its own share of the episodes, so that short ones are not counted more often."""
    copies = min(episodes, MAX_HOST_COPIES)
    share = shares(episodes, copies)
    act = eqx.filter_jit(lambda policy, obs, key: _decide(action_distribution(policy, obs), key, deterministic))
    vector = environment.vector(copies)
    key = jax.random.key(seed)
    returns, lengths = [], []
    total, length = np.zeros(copies), np.zeros(copies, int)
    try:
        obs = vector.reset(seed)
        while share.any():
            key, key_act = jax.random.split(key)
            action = np.asarray(act(policy, obs, key_act))
            if isinstance(environment.action_space, gymnasium.spaces.Box):
                action = np.clip(action, environment.action_space.low, environment.action_space.high)
            step = vector.step(action)
            total += np.where(step.valid, step.reward, 0)
            length += step.valid
            for copy in np.flatnonzero(step.terminated | step.truncated):
                if share[copy] > 0:
                    returns.append(total[copy])
                    lengths.append(length[copy])
                    share[copy] -= 1
                total[copy], length[copy] = 0, 0
            obs = step.obs
            # Copies that have run their share go on, and count no more.
            stuck = (length > max_steps) & (share > 0)
            if stuck.any():
                return np.append(returns, total[stuck]), np.append(lengths, length[stuck])
    finally:
        vector.close()
    return np.array(returns), np.array(lengths)
