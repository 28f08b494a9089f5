"""Tasks seen in pictures: say on which side a bright dot is. Each of ten steps shows another one, worth 1 if right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import klimb

SIDE, STEPS = 8, 10
BEST, RANDOM = STEPS, STEPS / 2


class Dots(gymnasium.Env):
    """parts: whether observations are dictionaries, with a number that says nothing."""

    action_space = spaces.Discrete(2)

    def __init__(self, shape: tuple[int, ...] = (SIDE, SIDE, 1), parts: bool = False) -> None:
        picture = spaces.Box(0, 255, shape, np.uint8)
        self.observation_space = spaces.Dict(camera=picture, speed=spaces.Box(-1, 1, (1,))) if parts else picture
        self.shape, self.parts = shape, parts

    def shown(self):
        picture = np.zeros(self.shape, np.uint8)
        self.right = int(self.np_random.integers(2))
        row, column = self.np_random.integers(SIDE), self.np_random.integers(SIDE // 2) + self.right * (SIDE // 2)
        picture[row, column] = 255
        return {"camera": picture, "speed": self.np_random.random(1, np.float32)} if self.parts else picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.shown(), {}

    def step(self, action):
        reward = float(action == self.right)
        self.time += 1
        return self.shown(), reward, False, self.time >= STEPS, {}


gymnasium.register("Dots-v0", __name__ + ":Dots")
gymnasium.register("DotsAndSpeed-v0", __name__ + ":Dots", kwargs={"parts": True})


class DotState(NamedTuple):
    right: jax.Array
    time: jax.Array


@dataclass(frozen=True)
class CompiledDots(klimb.CompiledEnvironment):
    """dtype: of the pictures, bytes or floats from 0 to 1."""

    dtype: type = np.uint8
    id = "compiled-dots"
    action_space = spaces.Discrete(2)

    @property
    def observation_space(self):
        return spaces.Box(0, self.bright, (SIDE, SIDE, 1), self.dtype)

    @property
    def bright(self):
        return 255 if self.dtype is np.uint8 else 1

    def shown(self, key):
        key_side, key_place = jax.random.split(key)
        right = jax.random.randint(key_side, (), 0, 2)
        row, column = jax.random.randint(key_place, (2,), 0, jnp.array([SIDE, SIDE // 2]))
        picture = jnp.zeros((SIDE, SIDE, 1), self.dtype).at[row, column + right * (SIDE // 2)].set(self.bright)
        return right, picture

    def reset(self, key):
        right, picture = self.shown(key)
        return DotState(right, jnp.int32(0)), picture

    def step(self, key, state, action):
        right, picture = self.shown(key)
        time = state.time + 1
        reward = (action == state.right).astype(jnp.float32)
        return klimb.Transition(DotState(right, time), picture, reward, jnp.bool_(False), time >= STEPS)
