"""The same task with other rewards: multiplied by a number, or paid only at the end of an episode."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb import CompiledEnvironment, Transition


class Unpaid(NamedTuple):
    """The state of the task, and the rewards of the episode that have not been paid yet."""

    state: PyTree
    owed: Float[Array, ""]


class OtherRewards(CompiledEnvironment):
    """A compiled task with its rewards times `scale`; `sparse`: their sum is paid with the last step of an episode.

    The undiscounted return of an episode is `scale` times the task's own.
    """

    def __init__(self, task: CompiledEnvironment, scale: float = 1.0, *, sparse: bool = False) -> None:
        self._task, self._scale, self._sparse = task, scale, sparse
        self.id = f"{task.id}, rewards × {scale:g}" + (", at the end" if sparse else "")
        self.one_hot, self.prefetch_resets = task.one_hot, task.prefetch_resets

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        return self._task.observation_space

    @property
    def action_space(self) -> gymnasium.spaces.Space:
        return self._task.action_space

    def reset(self, key: PRNGKeyArray) -> tuple[Unpaid, Array]:
        state, obs = self._task.reset(key)
        return Unpaid(state, jnp.zeros(())), obs

    def step(self, key: PRNGKeyArray, state: Unpaid, action: Array) -> Transition:
        after = self._task.step(key, state.state, action)
        owed = state.owed + self._scale * after.reward
        pays = (after.terminated | after.truncated) if self._sparse else jnp.bool_(True)
        return after._replace(state=Unpaid(after.state, jnp.where(pays, 0.0, owed)), reward=jnp.where(pays, owed, 0.0))
