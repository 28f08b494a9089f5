"""The environment protocol: what a compiled environment must offer, and the time limit all of them share."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium.spaces
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observations import ObservationSpec, observation_spec


class Transition(NamedTuple):
    """What one step of one environment returns. Scalars and `obs_shape` only; collectors add the [N] axis.

    `obs` is always the true successor: nothing here resets. An episode is over when `terminated` (the task
    ended: its value is zero from here on) or `truncated` (the clock ran out: its value is not zero).
    """

    state: PyTree
    obs: Float[Array, " *obs_shape"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


class CompiledEnvironment(abc.ABC):
    """An environment written in JAX: `reset` and `step` are pure, traceable and hold no state of their own.

    Collectors vmap both over N environments and over seeds, and reset in one place only (`klimb.collect`).
    """

    id: str
    """How the environment is named to users, e.g. `jax:CartPole-v1`."""

    one_hot: bool = False
    """Whether observations are one-hot rows, which no policy scales."""

    prefetch_resets: bool = False
    """Whether a fresh state is so small that one can be made ahead for every step of a rollout."""

    @property
    @abc.abstractmethod
    def observation_space(self) -> gymnasium.spaces.Box: ...

    @property
    @abc.abstractmethod
    def action_space(self) -> gymnasium.spaces.Space: ...

    @property
    def observations(self) -> ObservationSpec:
        """What the observation space means to klimb. UnsupportedSpace when that is nothing."""
        return observation_spec(self.observation_space, one_hot=self.one_hot)

    @property
    def actions(self) -> ActionSpec:
        """What the action space means to klimb. UnsupportedSpace when that is nothing."""
        return action_spec(self.action_space)

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Array]:
        """(state, obs) at the start of an episode."""

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Transition:
        """One step from `state`; `action` is in the action space (the collector clips it to a Box's bounds)."""


class Clocked(NamedTuple):
    """State of a `ClassicControl` environment: the physics, and the steps since the episode began."""

    physics: Float[Array, " D"]
    time: Int[Array, ""]


@dataclass(frozen=True)
class ClassicControl(CompiledEnvironment):
    """Classic control from its parts: initial state, dynamics, reward, observation, end of the task.

    The parts are differentiable functions of plain arrays, so that planning and model-based methods can use
    them without the episode around them. The time limit is added here, once.
    """

    prefetch_resets = True
    max_episode_steps: int
    """Steps after which an episode is truncated."""

    @abc.abstractmethod
    def initial(self, key: PRNGKeyArray) -> Float[Array, " D"]:
        """A random first physics state."""

    @abc.abstractmethod
    def dynamics(self, physics: Float[Array, " D"], action: Array) -> Float[Array, " D"]:
        """The physics state one time step later."""

    @abc.abstractmethod
    def reward(self, physics: Float[Array, " D"], action: Array, successor: Float[Array, " D"]) -> Array:
        """The reward of one step."""

    @abc.abstractmethod
    def observe(self, physics: Float[Array, " D"]) -> Float[Array, " *obs_shape"]:
        """What the policy sees of a physics state."""

    @abc.abstractmethod
    def terminal(self, physics: Float[Array, " D"]) -> Bool[Array, ""]:
        """Whether the task is over in this physics state."""

    def cost(self, physics: Float[Array, " D"], action: Array) -> Float[Array, ""]:
        """What planning minimises: minus the reward of the step that this action makes."""
        return -self.reward(physics, action, self.dynamics(physics, action))

    def unbounded(self) -> ClassicControl:
        """The same with dynamics and reward that do not clip actions, for planners that keep to the bounds themselves.

        On the bound itself, where good plans stay, a clipped function has no derivative.
        """
        return self

    def reset(self, key: PRNGKeyArray) -> tuple[Clocked, Array]:
        physics = self.initial(key)
        return Clocked(physics, jnp.int32(0)), self.observe(physics)

    def step(self, key: PRNGKeyArray, state: Clocked, action: Array) -> Transition:
        successor = self.dynamics(state.physics, action)
        time = state.time + 1
        return Transition(
            state=Clocked(successor, time),
            obs=self.observe(successor),
            reward=self.reward(state.physics, action, successor),
            terminated=self.terminal(successor),
            truncated=time >= self.max_episode_steps,
        )
