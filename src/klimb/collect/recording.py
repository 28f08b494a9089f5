"""Recording demonstrations: whole episodes under a policy, with the log-probs of what it did."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.collect.evaluation import MAX_HOST_COPIES, MAX_STEPS, endless, require_fit, shares
from klimb.environments.base import CompiledEnvironment, clip_action
from klimb.environments.host import HostEnvironment, HostVector
from klimb.environments.registry import make
from klimb.policies.actions import action_spec
from klimb.policies.policy import action_distribution

Row = tuple[np.ndarray, ...]
CHUNK = 64


def record(
    policy: PyTree, env: str | Any, *, episodes: int, seed: int = 0, deterministic: bool = False
) -> Demonstrations:
    """`episodes` whole episodes under a policy: its samples with their log-probs, or its modes without.

    A policy that always takes its mode has no density: the log-probs are then NaN, and the demonstrations can be
    cloned but not weighted by importance. Raises ValueError for fewer than one episode, PolicyFileError when the
    policy does not fit the environment, EnvironmentFault when that fails or an episode never ends.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}; demonstrations need at least 1")
    environment = make(env)
    require_fit(policy, environment)
    act = _actor(policy, deterministic)
    if isinstance(environment, CompiledEnvironment):
        rows = _compiled(act, environment, episodes, seed)
    else:
        rows = _host(act, environment, episodes, seed)
    discrete = np.issubdtype(rows[1].dtype, np.integer)
    return Demonstrations(
        obs=rows[0].astype(np.float32),
        action=rows[1].astype(np.int32 if discrete else np.float32),
        log_prob=rows[2].astype(np.float32),
        reward=rows[3].astype(np.float32),
        terminated=rows[4].astype(bool),
        truncated=rows[5].astype(bool) & ~rows[4].astype(bool),
        next_obs=rows[6].astype(np.float32),
        actions=action_spec(environment.action_space),
        environment=environment.id,
        source=f"the recording of {environment.id}",
    )


def _actor(policy: PyTree, deterministic: bool) -> Any:
    """obs `[N, ...]` and a key ↦ (actions in the environment's units, their log-probs)."""

    def act(key: PRNGKeyArray, obs: Array) -> tuple[Array, Array]:
        distribution = action_distribution(policy, obs)
        action = distribution.mode() if deterministic else distribution.sample(key)
        log_prob = distribution.log_prob(action)
        return distribution.to_environment(action), jnp.where(deterministic, jnp.nan, log_prob)

    return act


def _compiled(act: Any, environment: CompiledEnvironment, episodes: int, seed: int) -> Row:
    """All episodes side by side, each in a copy of its own, in chunks of steps until the last has ended."""

    def step(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, tuple]:
        state, obs, alive = carry
        key_act, key_step = jax.random.split(key)
        action, log_prob = act(key_act, obs)
        inside = clip_action(environment.action_space, action)
        after = jax.vmap(environment.step)(jax.random.split(key_step, episodes), state, inside)
        row = (obs, action, log_prob, after.reward, after.terminated, after.truncated, after.obs, alive)
        return (after.state, after.obs, alive & ~(after.terminated | after.truncated)), row

    key, key_reset = jax.random.split(jax.random.key(seed))
    state, obs = jax.vmap(environment.reset)(jax.random.split(key_reset, episodes))
    carry, chunks = (state, obs, jnp.ones(episodes, bool)), []
    advance = eqx.filter_jit(lambda carry, key: jax.lax.scan(step, carry, jax.random.split(key, CHUNK)))
    while bool(carry[2].any()):
        key, key_chunk = jax.random.split(key)
        carry, rows = advance(carry, key_chunk)
        chunks.append(jax.tree.map(np.asarray, rows))
        if len(chunks) * CHUNK > MAX_STEPS:
            raise endless(environment.id)
    *columns, alive = (np.concatenate(column) for column in zip(*chunks, strict=True))
    # One episode after the other.
    order = np.argwhere(alive.T)
    return tuple(column[order[:, 1], order[:, 0]] for column in columns)


def _host(act: Any, environment: HostEnvironment, episodes: int, seed: int) -> Row:
    """Each copy runs its own share of the episodes, so that short ones are not recorded more often."""
    share = shares(episodes, min(episodes, MAX_HOST_COPIES))
    vector = environment.vector(len(share))
    try:
        return _host_episodes(eqx.filter_jit(act), vector, environment, share, seed)
    finally:
        vector.close()


def _host_episodes(act: Any, vector: HostVector, environment: HostEnvironment, share: np.ndarray, seed: int) -> Row:
    running: list[list[tuple]] = [[] for _ in share]
    finished: list[tuple] = []
    key, obs = jax.random.key(seed), vector.reset(seed)
    while share.any():
        key, key_act = jax.random.split(key)
        action, log_prob = (np.asarray(x) for x in act(key_act, obs))
        step = vector.step(np.asarray(clip_action(environment.action_space, jnp.asarray(action))))
        columns = (obs, action, log_prob, step.reward, step.terminated, step.truncated, step.next_obs)
        for copy in np.flatnonzero(step.valid):
            # Copied: the environment may write its next observations into the same memory.
            running[copy].append(tuple(np.array(column[copy]) for column in columns))
        for copy in np.flatnonzero(step.terminated | step.truncated):
            if share[copy] > 0:
                finished += running[copy]
                share[copy] -= 1
            running[copy] = []
        if any(len(rows) > MAX_STEPS for rows, left in zip(running, share, strict=True) if left > 0):
            raise endless(environment.id)
        obs = step.obs
    return tuple(np.stack(column) for column in zip(*finished, strict=True))
