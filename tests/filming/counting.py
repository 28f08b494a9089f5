"""Environments whose pictures say which state they show, of both kinds, and a policy for them."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np

import klimb
from klimb.environments.base import CompiledEnvironment, Transition


def picture_of(count: int) -> np.ndarray:
    """The picture of the state after so many steps: one colour."""
    return np.full((16, 24, 3), count, np.uint8)


@dataclass(frozen=True)
class Counting(CompiledEnvironment):
    """Counts steps up to `steps`. The reward of step t is t."""

    steps: int = 3
    id = "counting"

    @property
    def observation_space(self):
        return gymnasium.spaces.Box(0, 255, (1,), np.float32)

    @property
    def action_space(self):
        return gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    @property
    def steps_per_second(self):
        return 20.0

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key, state, action):
        after = state + 1
        obs = jnp.float32(after)[None]
        return Transition(after, obs, after.astype(jnp.float32), after >= self.steps, jnp.bool_(False))

    def render(self, state):
        return picture_of(int(state))


class HostCounting(gymnasium.Env):
    """The same in Gymnasium."""

    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None, steps=3, fps=20):
        self.render_mode, self.steps, self.count = render_mode, steps, 0
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        ended = self.count >= self.steps
        return np.array([self.count], np.float32), float(self.count), ended, False, {}

    def render(self):
        return picture_of(self.count)


class Half(eqx.Module):
    """Acts by a tenth of what it sees, in both components."""

    def __call__(self, obs):
        return klimb.DiagGaussian(jnp.repeat(obs, 2) / 10, jnp.full(2, -1.0))
