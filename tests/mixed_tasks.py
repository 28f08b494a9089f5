"""A task with actions of two kinds, masks and observations of several parts: open the right one of three valves.

Each step shows which valve it is and how far it is to be opened. A step's reward is 1 − |opening − wanted| for the
right valve, and 0 for another one. The mask allows the right valve and one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import klimb

VALVES, STEPS = 3, 10
ACTIONS = spaces.Dict(valve=spaces.Discrete(VALVES, start=1), opening=spaces.Box(0, 1, (1,)))
BEST, RANDOM = STEPS, STEPS / VALVES * (2 / 3)
"""Returns of the best policy, and of uniform actions without a mask: E|x − y| of two uniform numbers is ⅓."""


class Valves(gymnasium.Env):
    """mask: where it is given: info, method, observation, or nowhere. A valve that it forbids raises."""

    action_space = ACTIONS

    def __init__(self, mask: str = "nowhere") -> None:
        parts = {"valve": spaces.Discrete(VALVES), "wanted": spaces.Box(0, 1, (1,))}
        if mask == "observation":
            parts["action_mask"] = spaces.MultiBinary(VALVES)
        if mask == "method":
            self.action_masks = lambda: self.allowed.astype(bool)
        self.observation_space, self.mask = spaces.Dict(parts), mask

    def shown(self):
        self.valve = int(self.np_random.integers(VALVES))
        self.wanted = self.np_random.random(1, np.float32)
        self.allowed = np.ones(VALVES, np.int8)
        self.allowed[(self.valve + 1 + self.np_random.integers(VALVES - 1)) % VALVES] = 0
        obs = {"valve": self.valve, "wanted": self.wanted}
        if self.mask == "observation":
            obs["action_mask"] = self.allowed
        return obs, {"action_mask": self.allowed} if self.mask == "info" else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.shown()

    def step(self, action):
        chosen = action["valve"] - 1
        if self.mask != "nowhere" and not self.allowed[chosen]:
            raise RuntimeError(f"valve {chosen} is shut")
        reward = float(1 - abs(action["opening"][0] - self.wanted[0])) if chosen == self.valve else 0.0
        self.time += 1
        obs, info = self.shown()
        return obs, reward, False, self.time == STEPS, info


def valves(mask: str = "nowhere") -> klimb.GymnasiumEnvironment:
    return klimb.GymnasiumEnvironment.from_maker("valves", lambda: Valves(mask))


class Shown(NamedTuple):
    valve: jax.Array
    wanted: jax.Array
    allowed: jax.Array
    time: jax.Array


@dataclass(frozen=True)
class CompiledValves(klimb.CompiledEnvironment):
    """The same, compiled: one-hot valve, wanted opening, and the mask at the end."""

    id = "tests:Valves-v0"
    masked: bool = True
    action_space = ACTIONS
    max_episode_steps = STEPS

    @property
    def observation_space(self):
        return spaces.Box(0, 1, (VALVES + 1 + VALVES * self.masked,))

    def show(self, key, time):
        first, second, third = jax.random.split(key, 3)
        valve = jax.random.randint(first, (), 0, VALVES)
        forbidden = (valve + jax.random.randint(second, (), 1, VALVES)) % VALVES
        wanted = jax.random.uniform(third, (1,))
        state = Shown(valve, wanted, 1.0 - jax.nn.one_hot(forbidden, VALVES), time)
        obs = [jax.nn.one_hot(valve, VALVES), wanted]
        return state, jnp.concatenate([*obs, state.allowed] if self.masked else obs)

    def reset(self, key):
        return self.show(key, jnp.int32(0))

    def step(self, key, state, action):
        chosen = action["valve"] - 1
        right = (chosen == state.valve) & ((state.allowed[chosen] > 0) | (not self.masked))
        reward = jnp.where(right, 1 - jnp.abs(action["opening"][0] - state.wanted[0]), 0.0)
        following, obs = self.show(key, state.time + 1)
        ends = following.time >= STEPS
        return klimb.Transition(following, obs, reward, jnp.array(False), ends)
