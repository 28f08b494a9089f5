"""Problems with a table as compiled environments: Gymnasium's toy-text ones, and any `TabularMDP`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.problems import Outcomes, gymnasium_outcomes
from klimb.tabular.transitions import SparseTransition


class Place(NamedTuple):
    """Where an episode is: the state's number, and the steps since the episode began."""

    state: Int[Array, ""]
    time: Int[Array, ""]


@dataclass(frozen=True, eq=False)
class TabularEnvironment(CompiledEnvironment):
    """S states seen as one-hot rows `[S]`, A actions, and a table of what can come of each.

    An episode ends where the table says so, and is cut off after `max_episode_steps` (None: never).
    """

    prefetch_resets = True
    one_hot = True
    id: str
    outcomes: Outcomes
    max_episode_steps: int | None = None

    @classmethod
    def of(cls, mdp: TabularMDP, *, id: str = "tabular", max_episode_steps: int | None = None) -> TabularEnvironment:
        """Any tabular problem. Rewards are the expected ones; an episode ends in an absorbing state."""
        if isinstance(mdp.transition, SparseTransition):
            successor = np.asarray(mdp.transition.successor)
            probability = np.asarray(mdp.transition.probability)
        else:
            probability = np.asarray(mdp.transition)
            successor = np.broadcast_to(np.arange(mdp.num_states), probability.shape)
        reward = np.broadcast_to(np.asarray(mdp.reward)[..., None], probability.shape)
        ends = np.asarray(mdp.absorbing)[successor]
        return cls(id, Outcomes(successor, probability, reward, ends, np.asarray(mdp.initial)), max_episode_steps)

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(0, 1, (len(self.outcomes.initial),), np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        return gymnasium.spaces.Discrete(self.outcomes.reward.shape[1])

    def reset(self, key: PRNGKeyArray) -> tuple[Place, Float[Array, " S"]]:
        state = _draw(key, jnp.asarray(np.cumsum(self.outcomes.initial), jnp.float32))
        return Place(state, jnp.int32(0)), self._see(state)

    def step(self, key: PRNGKeyArray, state: Place, action: Array) -> Transition:
        table, time = self.outcomes, state.time + 1
        cumulative = np.cumsum(table.probability, axis=-1)
        way = _draw(key, jnp.asarray(cumulative, jnp.float32)[state.state, action])
        successor = jnp.asarray(table.successor, jnp.int32)[state.state, action, way]
        return Transition(
            state=Place(successor, time),
            obs=self._see(successor),
            reward=jnp.asarray(table.reward, jnp.float32)[state.state, action, way],
            terminated=jnp.asarray(table.terminated)[state.state, action, way],
            truncated=self._late(time),
        )

    def _see(self, state: Array) -> Float[Array, " S"]:
        return jax.nn.one_hot(state, len(self.outcomes.initial), dtype=jnp.float32)

    def _late(self, time: Int[Array, ""]) -> Bool[Array, ""]:
        return jnp.bool_(False) if self.max_episode_steps is None else time >= self.max_episode_steps


def make_toy_text(name: str) -> TabularEnvironment:
    """One of Gymnasium's, from its own table, with its own time limit."""
    return TabularEnvironment(f"jax:{name}", gymnasium_outcomes(name), gymnasium.spec(name).max_episode_steps)


def _draw(key: PRNGKeyArray, cumulative: Float[Array, " K"]) -> Int[Array, ""]:
    """The first place whose cumulative probability passes a uniform number, and never one of probability 0."""
    uniform = jax.random.uniform(key) * cumulative[-1]
    return jnp.minimum(jnp.sum(cumulative <= uniform), len(cumulative) - 1).astype(jnp.int32)
