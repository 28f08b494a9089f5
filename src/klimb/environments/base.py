"""The interface of compiled environments, and classic control with its time limit."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import gymnasium
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, PRNGKeyArray, PyTree, Shaped, UInt8

from klimb.environments.rendering.observed import ObservedPictures
from klimb.environments.rendering.renderer import OwnPictures, Renderer
from klimb.environments.rendering.replay import GymnasiumReplay
from klimb.errors import ConfigError, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observations import ObservationSpec, observation_spec


class Transition(NamedTuple):
    """The result of one step of one environment, without the axis of environments, which collectors add.

    state: of the environment after the step. obs: of the true successor; a step never resets. reward: of the step.
    terminated: the task has ended, so the value of the successor is
    zero. truncated: the time limit is reached, and the value of the successor counts.
    """

    state: PyTree
    obs: Num[Array, " *obs_shape"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


class CompiledEnvironment(abc.ABC):
    """An environment written in JAX: `reset` and `step` are pure, traceable and hold no state of their own.

    Collectors vmap both over N copies (`reset_all`, `step_all`) and over seeds, and reset in one place only
    (`klimb.collect`).
    """

    id: str
    """The name that `make` takes, e.g. `jax:CartPole-v1`."""

    one_hot: bool = False
    """Whether observations are one-hot rows, which are not normalised."""

    masked: bool = False
    """Whether the last numbers of an observation are an action mask: 1 for each choice of the action space that is
    allowed, 0 for each that is not."""

    prefetch_resets: bool = False
    """Whether states are so small that the initial states of a whole rollout can be drawn in advance."""

    bank_resets: bool = False
    """Whether the first states of episodes are drawn before each rollout, and taken from there when an episode ends:
    for environments whose reset costs about as much as a step. Otherwise every copy is reset at every step, and what
    is not needed is thrown away."""

    one_seed_at_once: bool = False
    """Whether seeds are trained one after the other, also where they could be vmapped: for simulators that simulate
    many copies at once, and can't be vmapped a second time."""

    critic_only: tuple[str, ...] = ()
    """Parts of dictionaries of observations that only the critic sees, unless `critic_observes` names others."""

    packages: tuple[str, ...] = ()
    """Packages that the environment is made of; a run records their versions."""

    @property
    def steps_per_second(self) -> float:
        """Steps in a second of the environment's time, at which films of its own pictures (`render`) show it."""
        return 30.0

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated; None where there is no limit, or it is not known."""
        return None

    @property
    @abc.abstractmethod
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of observations."""

    @property
    @abc.abstractmethod
    def action_space(self) -> gymnasium.spaces.Space:
        """The space of actions, which may be a Dict or a Tuple."""

    @property
    def observations(self) -> ObservationSpec:
        """What the observation space means to klimb. UnsupportedSpace when that is nothing."""
        choices = self.actions.num_choices if self.masked else 0
        return observation_spec(self.observation_space, one_hot=self.one_hot, choices=choices)

    @property
    def actions(self) -> ActionSpec:
        """What the action space means to klimb. UnsupportedSpace when that is nothing."""
        return action_spec(self.action_space)

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Array]:
        """(state, obs) at the start of an episode. key: for the randomness of the start."""

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: PyTree, action: PyTree) -> Transition:
        """One step. Does not reset.

        key: for the randomness of the step. state: before the step. action: in the action space (the collector clips it
        to a Box's bounds): an array, or a dictionary or tuple of arrays.
        """

    def reset_all(self, keys: Key[Array, " N"]) -> tuple[PyTree, Num[Array, " N *obs_shape"]]:
        """`reset` of N copies at once. keys: one for each."""
        return jax.vmap(self.reset)(keys)

    def step_all(self, keys: Key[Array, " N"], state: PyTree, action: PyTree) -> Transition:
        """`step` of N copies at once.

        keys: one for each. state: of all, before the step. action: of each.
        """
        return jax.vmap(self.step)(keys, state, action)

    def restarted(self, ended: Bool[Array, " N"], first: PyTree, state: PyTree) -> PyTree:
        """The states of N copies, of which some begin a new episode.

        ended: which. first: states at the start of an episode, of all copies. state: after the last step. A simulator
        whose states hold arrays without the axis of copies has a method of its own.
        """
        return jax.tree.map(partial(where_copies, ended), first, state)

    def of_copy(self, state: PyTree, copy: int) -> PyTree:
        """The state of one of N copies. state: of all. copy: its number."""
        return jax.tree.map(lambda x: x[copy], state)

    def write_reference(self, state: PyTree, reference: gymnasium.Env) -> None:
        """Put a Gymnasium environment that does the same into a state, so that `klimb check-env` can compare them.

        state: of this environment, as NumPy arrays. reference: the Gymnasium environment, unwrapped.
        Raises NotImplementedError for an environment that does not say how.
        """
        raise NotImplementedError

    def render(self, state: PyTree) -> UInt8[np.ndarray, "H W 3"]:
        """A picture of a state, `[height, width, 3]`: red, green and blue from 0 to 255, of the same size every time.

        state: of this environment, on its device. An environment of one's own that can be seen has this method.
        Raises NotImplementedError for one that has not.
        """
        raise NotImplementedError

    def renderer(self) -> Renderer:
        """What draws the states of episodes: this environment's own `render`, or else its observations where they are
        pictures. ConfigError when there is neither.
        """
        if type(self).render is not CompiledEnvironment.render:
            return OwnPictures(self.render, self.steps_per_second)
        seen = ObservedPictures.of(self.observations)
        if seen is None:
            raise ConfigError(
                f"{one_line(self.id, 60)} has no pictures: it has no method render(state), and its observations are "
                "numbers (docs/own-environment.md says how to draw an environment of one's own)"
            )
        return seen


def where_copies(chosen: Bool[Array, " N"], new: Shaped[Array, " N *_"], old: Shaped[Array, " N *_"]) -> Array:
    """The rows of `new` for the chosen copies, and those of `old` for the others.

    chosen: which. new, old: arrays whose first axis is that of copies, with any axes behind it.
    """
    return jnp.where(jnp.reshape(chosen, chosen.shape + (1,) * (old.ndim - 1)), new, old)


class Clocked(NamedTuple):
    """State of a `ClassicControl` environment: the physics, and the steps since the episode began."""

    physics: Float[Array, " D"]
    time: Int[Array, ""]


@dataclass(frozen=True)
class ClassicControl(CompiledEnvironment):
    """Classic control from its parts: initial state, dynamics, reward, observation, termination.

    The parts are differentiable functions of arrays, so that planning and model-based methods can use them without
    the time limit, which is added here.
    """

    prefetch_resets = True
    max_episode_steps: int
    """Steps after which an episode is truncated."""

    @abc.abstractmethod
    def initial(self, key: PRNGKeyArray) -> Float[Array, " D"]:
        """The physics state at the start of an episode. key: for the randomness of the start."""

    @abc.abstractmethod
    def dynamics(self, physics: Float[Array, " D"], action: Array) -> Float[Array, " D"]:
        """The physics state one time step later.

        physics: before the step. action: in the action space.
        """

    @abc.abstractmethod
    def reward(self, physics: Float[Array, " D"], action: Array, successor: Float[Array, " D"]) -> Array:
        """The reward of one step.

        physics: before the step. action: in the action space. successor: the physics state after the step.
        """

    @abc.abstractmethod
    def observe(self, physics: Float[Array, " D"]) -> Float[Array, " *obs_shape"]:
        """The observation of a physics state. physics: the state."""

    @abc.abstractmethod
    def terminal(self, physics: Float[Array, " D"]) -> Bool[Array, ""]:
        """Whether the task has ended in a physics state. physics: the state."""

    def cost(self, physics: Float[Array, " D"], action: Array) -> Float[Array, ""]:
        """Minus the reward of one step, which planning minimises.

        physics: before the step. action: in the action space.
        """
        return -self.reward(physics, action, self.dynamics(physics, action))

    def unbounded(self) -> ClassicControl:
        """The same environment without clipping in dynamics and reward, for planners that enforce the bounds.

        At the bound, where good plans often are, a clipped function has no derivative.
        """
        return self

    def write_reference(self, state: Clocked, reference: gymnasium.Env) -> None:
        """Put Gymnasium's environment of classic control, whose attribute `state` is the physics, into a state.

        state: of this environment. reference: Gymnasium's, unwrapped.
        """
        vars(reference)["state"] = np.asarray(state.physics, np.float64)

    def renderer(self) -> Renderer:
        """Gymnasium's own drawing of the environment of the same name, or else as for all compiled environments."""
        name = self.id.partition(":")[2]
        if type(self).render is CompiledEnvironment.render and name in gymnasium.registry:
            return GymnasiumReplay(name, self.write_reference)
        return super().renderer()

    def reset(self, key: PRNGKeyArray) -> tuple[Clocked, Array]:
        """(state, obs) at the start of an episode. key: for the randomness of the start."""
        physics = self.initial(key)
        return Clocked(physics, jnp.int32(0)), self.observe(physics)

    def step(self, key: PRNGKeyArray, state: Clocked, action: Array) -> Transition:
        """One step, with the time limit.

        key: is not used. state: before the step. action: in the action space.
        """
        successor = self.dynamics(state.physics, action)
        time = state.time + 1
        return Transition(
            state=Clocked(successor, time),
            obs=self.observe(successor),
            reward=self.reward(state.physics, action, successor),
            terminated=self.terminal(successor),
            truncated=time >= self.max_episode_steps,
        )
