"""An environment of which one copy is slow, as the source of a module that worker processes import."""

from __future__ import annotations

SLOW_SEED = "KLIMB_TEST_SLOW_SEED"
"""Environment variable: the seed of the slow copy."""
EPISODE = 21
"""Steps of an episode, of reward 1 each: more than those of a rollout."""
MODULE = f'''
import os
import time
import gymnasium as gym
import numpy as np


class Slow(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation(), {{}}

    def step(self, action):
        if self.np_random_seed == int(os.environ["{SLOW_SEED}"]):
            time.sleep(0.03)
        self.steps += 1
        return self.observation(), 1.0, self.steps == {EPISODE}, False, {{}}

    def observation(self):
        return np.full(3, self.steps / {EPISODE}, np.float32)


gym.register("Slow-v0", __name__ + ":Slow")
'''
