"""Environments of the gymnax library (Lange 2022), such as MinAtar and bsuite, as compiled environments."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from typing import Any

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.errors import EnvironmentNotFound, MissingExtra, UnsupportedSpace


# Compared by identity: a gymnax environment has no equality, and its parameters may hold arrays.
@dataclass(frozen=True, eq=False)
class GymnaxEnvironment(CompiledEnvironment):
    """A gymnax environment and its parameters.

    Only gymnax's `step_env` and `is_truncated` are called, never its `step`, which resets by itself.
    Observations are float32; those of a Discrete space are given one-hot, so that every policy can read them.
    """

    id: str
    env: Any
    params: Any

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        space = _gymnasium_space(self.env.observation_space(self.params), f"{self.id}'s observation")
        if isinstance(space, gymnasium.spaces.Discrete):
            return gymnasium.spaces.Box(0.0, 1.0, (int(space.n),), np.float32)
        return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box | gymnasium.spaces.Discrete:
        return _gymnasium_space(self.env.action_space(self.params), f"{self.id}'s action")

    @property
    def max_episode_steps(self) -> int:
        return int(self.params.max_steps_in_episode)

    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Float[Array, " *obs_shape"]]:
        obs, state = self.env.reset_env(key, self.params)
        return _strong(state), self._observe(obs)

    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Transition:
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        return Transition(
            state=_strong(state),
            obs=self._observe(obs),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(self.env.is_truncated(state, self.params), bool),
        )

    def _observe(self, obs: Array) -> Float[Array, " *obs_shape"]:
        space = self.env.observation_space(self.params)
        if hasattr(space, "n"):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        return jnp.asarray(obs, jnp.float32)


# One object a name, so that making an environment twice does not compile twice.
@functools.cache
def make_gymnax(name: str) -> GymnaxEnvironment:
    """The gymnax environment `name`, e.g. `Breakout-MinAtar`, with its default parameters.

    Raises MissingExtra without gymnax, and EnvironmentNotFound for a name that gymnax does not know.
    """
    try:
        import gymnax
    except ImportError as error:
        raise MissingExtra(
            f"gymnax:{name} needs gymnax, which cannot be imported ({error}): pip install 'klimb[gymnax]'"
        ) from error
    if name not in gymnax.registered_envs:
        nearest = difflib.get_close_matches(name, gymnax.registered_envs, n=3, cutoff=0)
        raise EnvironmentNotFound(f"gymnax has no environment {name!r}; nearest: {', '.join(nearest)}")
    env, params = gymnax.make(name)
    return GymnaxEnvironment(id=f"gymnax:{name}", env=env, params=params)


def _gymnasium_space(space: Any, what: str) -> gymnasium.spaces.Box | gymnasium.spaces.Discrete:
    if hasattr(space, "n"):
        return gymnasium.spaces.Discrete(int(space.n))
    if not hasattr(space, "low"):
        raise UnsupportedSpace(f"{what} space is {space!r}; only Box and Discrete spaces are supported")
    low, high = (np.broadcast_to(np.asarray(b, space.dtype), space.shape) for b in (space.low, space.high))
    return gymnasium.spaces.Box(low, high, dtype=space.dtype)


def _strong(state: PyTree) -> PyTree:
    """The state without weak types: gymnax counts time from a Python 0, so jit would compile twice."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)
