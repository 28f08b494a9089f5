"""Drawing by replay: a Gymnasium environment that does the same is put into each state, and draws it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from klimb.environments.rendering.renderer import Renderer, as_picture


class GymnasiumReplay(Renderer):
    """Gymnasium's own drawing of the same environment.

    name: its id in Gymnasium's registry. write: puts the environment, unwrapped, into a state, whose arrays are
    NumPy's. Raises Gymnasium's error when a package that draws is not installed.
    """

    def __init__(self, name: str, write: Callable[[PyTree, gymnasium.Env], None]) -> None:
        with _without_warnings():
            self._env: Any = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True).unwrapped
            self._env.reset(seed=0)
        self._write, self.steps_per_second = write, float(self._env.metadata.get("render_fps", self.steps_per_second))

    def picture(self, state: PyTree, obs: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of a state. obs: is not used."""
        self._write(jax.tree.map(np.asarray, state), self._env)
        with _without_warnings():
            return as_picture(self._env.render())

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _without_warnings() -> warnings.catch_warnings:
    """pygame imports a module with a warning of its own."""
    return warnings.catch_warnings(action="ignore")
