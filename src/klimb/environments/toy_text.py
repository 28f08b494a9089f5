"""Tabular problems as compiled environments: Gymnasium's toy-text environments, and any `TabularMDP`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.environments.rendering.renderer import Renderer
from klimb.environments.rendering.replay import GymnasiumReplay
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.problems import Outcomes, gymnasium_outcomes
from klimb.tabular.transitions import SparseTransition


class Place(NamedTuple):
    """State of a `TabularEnvironment`: the number of the table's state, and the steps since the episode began."""

    state: Int[Array, ""]
    time: Int[Array, ""]


@dataclass(frozen=True, eq=False)
class TabularEnvironment(CompiledEnvironment):
    """S states, observed as one-hot rows `[S]`, A actions, and a table of the outcomes of each action in each state.

    outcomes: the table, which also says where an episode ends. max_episode_steps: steps after which an episode is
    truncated; None for never.
    """

    prefetch_resets = True
    one_hot = True
    id: str
    outcomes: Outcomes
    max_episode_steps: int | None = None
    packages: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, mdp: TabularMDP, *, id: str = "tabular", max_episode_steps: int | None = None) -> TabularEnvironment:
        """The environment of a tabular problem. Rewards are the expected ones; an episode ends in an absorbing state.

        mdp: the problem. id: the environment's name. max_episode_steps: steps after which an episode is truncated;
        None for never.
        """
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
        """The box of one-hot rows."""
        return gymnasium.spaces.Box(0, 1, (len(self.outcomes.initial),), np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """The A actions."""
        return gymnasium.spaces.Discrete(self.outcomes.reward.shape[1])

    def reset(self, key: PRNGKeyArray) -> tuple[Place, Float[Array, " S"]]:
        """A state drawn from the initial distribution, and its one-hot row."""
        state = _draw(key, jnp.asarray(np.cumsum(self.outcomes.initial), jnp.float32))
        return Place(state, jnp.int32(0)), self._one_hot(state)

    def step(self, key: PRNGKeyArray, state: Place, action: Array) -> Transition:
        """One step, without a reset.

        key: draws the outcome. state: before the step. action: 0 … A − 1.
        """
        table, time = self.outcomes, state.time + 1
        cumulative = np.cumsum(table.probability, axis=-1)
        outcome = _draw(key, jnp.asarray(cumulative, jnp.float32)[state.state, action])
        successor = jnp.asarray(table.successor, jnp.int32)[state.state, action, outcome]
        return Transition(
            state=Place(successor, time),
            obs=self._one_hot(successor),
            reward=jnp.asarray(table.reward, jnp.float32)[state.state, action, outcome],
            terminated=jnp.asarray(table.terminated)[state.state, action, outcome],
            truncated=self._at_time_limit(time),
        )

    def renderer(self) -> Renderer:
        """Gymnasium's own drawing of the environment of the same name, or else as for all compiled environments."""
        name = self.id.partition(":")[2]
        return GymnasiumReplay(name, _write) if name in gymnasium.registry else super().renderer()

    def _one_hot(self, state: Array) -> Float[Array, " S"]:
        return jax.nn.one_hot(state, len(self.outcomes.initial), dtype=jnp.float32)

    def _at_time_limit(self, time: Int[Array, ""]) -> Bool[Array, ""]:
        return jnp.bool_(False) if self.max_episode_steps is None else time >= self.max_episode_steps


def make_toy_text(name: str) -> TabularEnvironment:
    """Gymnasium's toy-text environment of this name: the same transition table and time limit.

    name: its id.
    """
    limit = gymnasium.spec(name).max_episode_steps
    return TabularEnvironment(f"jax:{name}", gymnasium_outcomes(name), limit, packages=("gymnasium",))


def _write(state: Place, reference: Any) -> None:
    """Put Gymnasium's toy-text environment into a state."""
    reference.s, reference.lastaction = int(state.state), None


def _draw(key: PRNGKeyArray, cumulative: Float[Array, " K"]) -> Int[Array, ""]:
    """The first index whose cumulative probability exceeds a uniform number; never one of probability 0."""
    uniform = jax.random.uniform(key) * cumulative[-1]
    return jnp.minimum(jnp.sum(cumulative <= uniform), len(cumulative) - 1).astype(jnp.int32)
