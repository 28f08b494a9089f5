"""What Brax's and MuJoCo Playground's environments have in common: a state that holds observation, reward and end."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from klimb.environments.rendering.mujoco import MujocoRenderer, Pose
from klimb.environments.suites.spaces import box
from klimb.environments.suites.suite import Step, SuiteEnvironment, legacy_key, own_containers


class Clocked(NamedTuple):
    """State of a simulation: the library's, the steps since the episode began, and the model's own parameters.

    model: the parts of the physical model that were drawn for this episode; none without domain randomisation.
    """

    inner: Any
    time: Int[Array, ""]
    model: PyTree = ()


class PhysicsEnvironment(SuiteEnvironment):
    """A simulated robot. Its time limit is klimb's, since the libraries have theirs in wrappers.

    id: the name that `klimb.make` takes. env: the library's, without wrappers. max_episode_steps: its time limit, in
    the library's own steps. action_repeat: how many of these a step of klimb's makes with one action; their rewards are
    added up.
    """

    def __init__(self, id: str, env: Any, max_episode_steps: int, action_repeat: int = 1) -> None:
        obs = jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0))).obs
        actions = box((int(env.action_size),), -1, 1)
        self._time_limit, self.action_repeat = max_episode_steps, action_repeat
        steps = -(-max_episode_steps // action_repeat)
        super().__init__(id, env, _space(obs), actions, max_episode_steps=steps)

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""
        return self._seen(Clocked(self.env.reset(legacy_key(key)), jnp.int32(0)))

    def advance(self, key: PRNGKeyArray, state: Clocked, action: Array) -> Step:
        """One step, without a reset.

        key: is not used: the libraries keep one in their states. state: before the step. action: from −1 to 1.
        """
        inner, reward, done = state.inner, 0.0, False
        for _ in range(self.action_repeat):
            inner = self.env.step(own_containers(inner), action)
            reward, done = reward + inner.reward, done | (inner.done > 0.5)
        after = state._replace(inner=inner, time=state.time + self.action_repeat)
        return self._seen(after)._replace(reward=reward, terminated=done, truncated=after.time >= self._time_limit)

    def renderer(self) -> MujocoRenderer:
        """MuJoCo's renderer, in the robot's own time."""
        return MujocoRenderer(self.model(), self.pose, 1 / (float(self.env.dt) * self.action_repeat))

    @abc.abstractmethod
    def model(self) -> Any:
        """MuJoCo's model of the robot, which is drawn."""

    @abc.abstractmethod
    def pose(self, state: Clocked) -> Pose:
        """Where everything is in a state."""

    def _seen(self, state: Clocked) -> Step:
        return Step(state, state.inner.obs)


def _space(obs: PyTree) -> gymnasium.spaces.Space:
    """The space of observations of these shapes: numbers without bounds, as one array or by name."""
    if isinstance(obs, dict):
        return gymnasium.spaces.Dict([(name, _space(part)) for name, part in obs.items()])
    return box(obs.shape, -np.inf, np.inf)
