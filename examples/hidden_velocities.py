"""Control tasks without their velocities: what moves where has to be remembered.

klimb train trpo gymnasium:CartPole-v1 --wrapper hidden_velocities:HiddenVelocities --memory gru
"""

from __future__ import annotations

import gymnasium
import numpy as np

VELOCITIES = {"CartPole-v1": (1, 3), "Pendulum-v1": (2,), "Acrobot-v1": (4, 5), "MountainCarContinuous-v0": (1,)}
"""Which numbers of an observation are velocities, by the name of the task."""


class HiddenVelocities(gymnasium.ObservationWrapper):
    """Observations without the velocities of `VELOCITIES`."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        box, hidden = env.observation_space, VELOCITIES[env.spec.id]
        self._kept = np.setdiff1d(np.arange(box.shape[0]), hidden)
        self.observation_space = gymnasium.spaces.Box(box.low[self._kept], box.high[self._kept], dtype=box.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self._kept]
