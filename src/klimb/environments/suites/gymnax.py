"""Environments of the gymnax library (Lange 2022), such as MinAtar and bsuite."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.rendering.renderer import Renderer
from klimb.environments.rendering.replay import GymnasiumReplay
from klimb.environments.suites.spaces import gymnasium_space
from klimb.environments.suites.suite import Step, SuiteEnvironment, import_library, refused_download, require_known

CLASSIC_CONTROL = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Pendulum-v1": ("theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
    "MountainCarContinuous-v0": ("position", "velocity"),
}
"""Environments that Gymnasium draws, and the fields of their states in gymnax."""
DOWNLOADING = ("MNISTBandit-bsuite",)
"""Environments that fetch data over the network when they are made."""


class GymnaxEnvironment(SuiteEnvironment):
    """A gymnax environment and its parameters.

    Only gymnax's `step_env` and `is_truncated` are called, never its `step`, which resets.

    id: the name that `klimb.make` takes. env, params: gymnax's.
    """

    packages = ("gymnax",)
    # Resets are a few draws, so that first states are not kept.
    bank_resets = False

    def __init__(self, id: str, env: Any, params: Any) -> None:
        self.params = params
        super().__init__(
            id,
            env,
            gymnasium_space(env.observation_space(params), f"{id}'s observation"),
            gymnasium_space(env.action_space(params), f"{id}'s action"),
            max_episode_steps=int(params.max_steps_in_episode),
        )

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""
        obs, state = self.env.reset_env(key, self.params)
        return Step(state, obs)

    def advance(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """One step, without gymnax's own reset.

        key: for its randomness. state: gymnax's. action: in the action space.
        """
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        truncated = self.env.is_truncated(state, self.params)
        return Step(state, obs, reward=reward, terminated=terminated, truncated=truncated)

    def renderer(self) -> Renderer:
        """Gymnasium's own drawing of classic control, or else as for all compiled environments."""
        name = self.id.removeprefix("gymnax:")
        if name not in CLASSIC_CONTROL:
            return super().renderer()
        return GymnasiumReplay(name, partial(_write, CLASSIC_CONTROL[name]))


def _write(fields: tuple[str, ...], state: PyTree, reference: Any) -> None:
    """Put Gymnasium's environment into a state of gymnax. fields: of gymnax's state, in the order of Gymnasium's."""
    reference.state = np.array([getattr(state, name) for name in fields], np.float64)


def make_gymnax(name: str) -> GymnaxEnvironment:
    """The gymnax environment `name`, e.g. `Breakout-MinAtar`, with its default parameters.

    Raises MissingExtra if gymnax is not installed, EnvironmentNotFound for an unknown name, and UnsupportedSpace.
    """
    gymnax = import_library("gymnax", f"gymnax:{name}", "gymnax")
    require_known(name, gymnax.registered_envs, "gymnax")
    if name in DOWNLOADING:
        raise refused_download(f"gymnax:{name}", "its pictures", "gymnax.GymnaxEnvironment")
    return GymnaxEnvironment(f"gymnax:{name}", *gymnax.make(name))
