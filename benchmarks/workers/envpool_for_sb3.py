"""EnvPool's environments as a vectorised environment of SB3, like the adapter in EnvPool's own examples.

Where an episode ends, the environment is reset at once: SB3 expects the first observation of the next one.
"""

import envpool
import numpy as np
from stable_baselines3.common.vec_env import VecEnv


class EnvPoolVec(VecEnv):
    """Some environments of one id. seed: of the first one."""

    def __init__(self, env_id: str, num_envs: int, seed: int) -> None:
        self._pool = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seed)
        super().__init__(num_envs, self._pool.observation_space, self._pool.action_space)
        self._kind = self._pool.action_space.dtype
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, int)

    def reset(self) -> np.ndarray:
        self._returns[:], self._lengths[:] = 0, 0
        return self._pool.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions, self._kind)

    def step_wait(self) -> tuple:
        obs, rewards, terminated, truncated, _ = self._pool.step(self._actions)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        for i in ended:
            # What SB3's Monitor says of an episode.
            episode = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
            infos[i] = {
                "terminal_observation": obs[i].copy(),
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": episode,
            }
        if len(ended):
            self._returns[ended], self._lengths[ended] = 0, 0
            obs = obs.copy()
            obs[ended] = self._pool.reset(ended.astype(np.int32))[0]
        return obs, rewards, dones, infos

    def close(self) -> None:
        self._pool.close()

    def get_attr(self, name: str, indices: object = None) -> list:
        return [getattr(self._pool, name, None)] * self.num_envs

    def set_attr(self, name: str, value: object, indices: object = None) -> None:
        raise NotImplementedError

    def env_method(self, name: str, *arguments: object, indices: object = None, **options: object) -> list:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper: type, indices: object = None) -> list[bool]:
        return [False] * self.num_envs
