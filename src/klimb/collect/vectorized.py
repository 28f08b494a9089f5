"""Collecting from host environments: one batched policy call a step, whole rollouts into preallocated arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from klimb.collect.episodes import EpisodeSummary
from klimb.environments.host import HostEnvironment
from klimb.types import Rollout


class VectorCollector:
    """`num_envs` copies of a host environment for each of K seeds, `num_steps` steps of each a rollout.

    Everything it returns has the leading axis of seeds: Rollout leaves are `[K, T, N, ...]`.
    """

    def __init__(
        self,
        environment: HostEnvironment,
        policy_static: PyTree,
        *,
        num_seeds: int,
        num_envs: int,
        num_steps: int,
    ) -> None:
        self.shape = (num_steps, num_seeds, num_envs)
        self.action_space = environment.action_space
        self._observation_shape = environment.observation_space.shape
        self._vector = environment.vector(num_seeds * num_envs)
        self._act = jax.jit(partial(_act, policy_static))
        self._obs: np.ndarray | None = None
        self._time = np.zeros(num_seeds * num_envs, np.int32)
        self._return = np.zeros(num_seeds * num_envs)

    def reset(self, seed: int) -> None:
        """Start all episodes anew. Episodes that were running are not counted as finished."""
        self._obs = self._vector.reset(seed)
        self._time[:] = 0
        self._return[:] = 0

    def collect(self, keys: Key[Array, " K"], policy: PyTree) -> tuple[Rollout, EpisodeSummary]:
        """One rollout of every seed under its frozen policy (array leaves `[K, ...]`); `keys` is `[K]`."""
        assert self._obs is not None, "reset comes before collect"
        num_steps, num_seeds, num_envs = self.shape
        copies = num_seeds * num_envs
        obs = np.empty((num_steps, *self._obs.shape), np.float32)
        next_obs = np.empty_like(obs)
        reward, log_prob = (np.empty((num_steps, copies), np.float32) for _ in range(2))
        terminated, truncated, valid = (np.empty((num_steps, copies), bool) for _ in range(3))
        time = np.empty((num_steps, copies), np.int32)
        actions = []
        finished_return = np.full((num_steps, copies), np.nan)

        # All of a rollout's keys in one call: splitting on the device costs more than a small policy does.
        step_keys = np.asarray(jax.random.key_data(jax.vmap(lambda k: jax.random.split(k, num_steps))(keys)))
        for t in range(num_steps):
            chosen = self._act(policy, self._obs.reshape(num_seeds, num_envs, -1), step_keys[:, t])
            action, chosen_log_prob, taken = chosen
            action = np.asarray(action).reshape(copies, *action.shape[2:])
            taken = action if taken is None else np.asarray(taken).reshape(copies, *taken.shape[2:])
            step = self._vector.step(self._inside(taken))
            obs[t], next_obs[t], time[t] = self._obs, step.next_obs, self._time
            reward[t], terminated[t], truncated[t], valid[t] = step[2:]
            log_prob[t] = np.asarray(chosen_log_prob).reshape(copies)
            actions.append(action)

            ended = step.terminated | step.truncated
            self._return += np.where(step.valid, step.reward, 0)
            finished_return[t, ended] = self._return[ended]
            self._return[ended] = 0
            self._time = np.where(ended | ~step.valid, 0, self._time + 1)
            self._obs = step.obs

        columns = (obs, np.stack(actions), log_prob, reward, terminated, truncated, next_obs, valid, time)
        flat = Rollout(*map(jnp.asarray, columns))
        rollout = jax.tree.map(lambda column: jnp.asarray(self._by_seed(np.asarray(column))), flat)
        return rollout, self._summary(self._by_seed(finished_return), self._by_seed(time))

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        """The shapes of one seed's rollout under a policy."""
        num_steps, _, num_envs = self.shape
        obs = jnp.zeros((num_envs, *self._observation_shape))
        action = jax.eval_shape(lambda o: jax.vmap(policy)(o).sample(jax.random.key(0)), obs)

        def rows(shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.zeros((num_steps, num_envs, *shape), dtype)

        flag, number = rows((), bool), rows((), jnp.float32)
        seen, acted = rows(obs.shape[1:], jnp.float32), rows(action.shape[1:], action.dtype)
        return Rollout(seen, acted, number, number, flag, flag, seen, flag, rows((), jnp.int32))

    def close(self) -> None:
        """Release the environments."""
        self._vector.close()

    def _inside(self, action: np.ndarray) -> np.ndarray:
        if isinstance(self.action_space, gymnasium.spaces.Box):
            return np.clip(action, self.action_space.low, self.action_space.high)
        return action

    def _by_seed(self, x: np.ndarray) -> np.ndarray:
        """`[T, K·N, ...]` → `[K, T, N, ...]`."""
        return np.swapaxes(x.reshape(*self.shape, *x.shape[2:]), 0, 1)

    def _summary(self, finished: Float[np.ndarray, "K T N"], time: np.ndarray) -> EpisodeSummary:
        ended = ~np.isnan(finished)
        count = ended.sum((1, 2))
        n = np.where(count > 0, count, np.nan)
        return EpisodeSummary(
            count=jnp.asarray(count),
            mean_return=jnp.asarray(np.where(ended, finished, 0).sum((1, 2)) / n),
            mean_length=jnp.asarray(np.where(ended, time + 1, 0).sum((1, 2)) / n),
        )


def _act(static: PyTree, policy: PyTree, obs: Array, key_data: Array) -> tuple[Array, Array, Array | None]:
    """Actions and their log-probs for every seed: obs `[K, N, ...]`, key data `[K, 2]`.

    Third, the actions as the environment gets them; None where they are the same, so that they are read once.
    """

    def one_seed(arrays: PyTree, rows: Array, data: Array) -> tuple[Array, Array, Array | None]:
        distribution = jax.vmap(eqx.combine(arrays, static))(rows)
        action = distribution.sample(jax.random.wrap_key_data(data))
        taken = distribution.to_environment(action)
        return action, distribution.log_prob(action), None if taken is action else taken

    return jax.vmap(one_seed)(policy, obs, key_data)
