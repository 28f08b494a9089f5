"""Any Gymnasium environment, vectorised in this process with same-step autoreset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import Float

from klimb.environments.host import HostEnvironment, HostStep, HostVector


@dataclass(frozen=True)
class GymnasiumEnvironment(HostEnvironment):
    """A Gymnasium environment by its id (or `module:Id-v0`), or by a function that makes one.

    Observations that are not one-dimensional boxes (discrete, images, dictionaries) are flattened with
    Gymnasium's own wrapper; discrete ones become one-hot rows.
    """

    id: str
    make: Callable[[], gym.Env] = field(repr=False)
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Space
    one_hot: bool = False

    @classmethod
    def from_maker(cls, name: str, make: Callable[[], gym.Env]) -> GymnasiumEnvironment:
        """Makes one copy to read its spaces from."""

        def flat() -> gym.Env:
            env = make()
            space = env.observation_space
            if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
                return env
            return gym.wrappers.FlattenObservation(env)

        env = flat()
        one_hot = isinstance(env.unwrapped.observation_space, gym.spaces.Discrete)
        space = env.observation_space
        env.close()
        assert isinstance(space, gym.spaces.Box)
        return cls(name, flat, space, env.action_space, one_hot)

    def vector(self, copies: int) -> GymnasiumVector:
        return GymnasiumVector(SyncVectorEnv([self.make] * copies, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))


class GymnasiumVector(HostVector):
    """Gymnasium's synchronous vector environment; the observation before a reset is in `final_obs`."""

    def __init__(self, env: VectorEnv[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self._env = env
        self._valid = np.ones(env.num_envs, bool)

    def reset(self, seed: int) -> Float[np.ndarray, " M *obs"]:
        # One generator a copy, spread out from one seed so that neighbouring seeds share no episode.
        words = np.random.SeedSequence(seed).generate_state(self._env.num_envs)
        # Vector environments take a list of seeds, though the type they declare says one.
        first, _ = self._env.reset(seed=[int(word) for word in words])  # type: ignore[arg-type]
        return np.array(first, np.float32)

    def step(self, action: np.ndarray) -> HostStep:
        obs, reward, terminated, truncated, info = self._env.step(action)
        obs = np.array(obs, np.float32)
        next_obs = obs
        ended = terminated | truncated
        if ended.any():
            next_obs = obs.copy()
            for copy in np.flatnonzero(ended):
                next_obs[copy] = info["final_obs"][copy]
        return HostStep(next_obs, obs, reward, terminated, truncated & ~terminated, self._valid)

    def close(self) -> None:
        self._env.close()
