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
from jaxtyping import Array, Num, PRNGKeyArray, PyTree

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.errors import EnvironmentNotFound, MissingExtra, UnsupportedSpace


# Compared by identity: gymnax environments define no equality, and their parameters may hold arrays.
@dataclass(frozen=True, eq=False)
class GymnaxEnvironment(CompiledEnvironment):
    """A gymnax environment and its parameters.

    Only gymnax's `step_env` and `is_truncated` are called, never its `step`, which resets.
    Observations are float32; those of a Discrete space are one-hot rows.
    """

    packages = ("gymnax",)
    id: str
    env: Any
    params: Any

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of observations, float32. Raises UnsupportedSpace for spaces other than Box and Discrete."""
        # Gymnax computes bounds with JAX, and they may be asked for while a program is traced.
        with jax.ensure_compile_time_eval():
            space = _gymnasium_space(self.env.observation_space(self.params), f"{self.id}'s observation")
        if isinstance(space, gymnasium.spaces.Discrete):
            return gymnasium.spaces.Box(0.0, 1.0, (int(space.n),), np.float32)
        return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box | gymnasium.spaces.Discrete:
        """The space of actions. Raises UnsupportedSpace for spaces other than Box and Discrete."""
        with jax.ensure_compile_time_eval():
            return _gymnasium_space(self.env.action_space(self.params), f"{self.id}'s action")

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        return int(self.params.max_steps_in_episode)

    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Num[Array, " *obs_shape"]]:
        """gymnax's state, and the observation, at the start of an episode."""
        obs, state = self.env.reset_env(key, self.params)
        return _without_weak_types(state), self._observe(obs)

    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Transition:
        """One step, without gymnax's own reset.

        key: for the randomness of the step. state: gymnax's. action: in the action space.
        """
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        return Transition(
            state=_without_weak_types(state),
            obs=self._observe(obs),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(self.env.is_truncated(state, self.params), bool),
        )

    def _observe(self, obs: Array) -> Num[Array, " *obs_shape"]:
        space = self.env.observation_space(self.params)
        if hasattr(space, "n"):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        return jnp.asarray(obs, jnp.float32)


# One object per name, so that making an environment twice does not compile it twice.
@functools.cache
def make_gymnax(name: str) -> GymnaxEnvironment:
    """The gymnax environment `name`, e.g. `Breakout-MinAtar`, with its default parameters.

    Raises MissingExtra if gymnax is not installed, and EnvironmentNotFound for an unknown name.
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


def _without_weak_types(state: PyTree) -> PyTree:
    """The state with strong dtypes: gymnax starts its clock at a Python 0, so that jit would compile twice."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)
