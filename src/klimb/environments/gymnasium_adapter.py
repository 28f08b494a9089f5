"""Any Gymnasium environment, many copies in one process, with same-step autoreset."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
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
    recipe: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def from_maker(cls, name: str, make: Callable[[], gym.Env]) -> GymnasiumEnvironment:
        """Makes one copy to read its spaces from."""
        return cls._from_maker(name, make, None)

    @classmethod
    def from_registry(cls, name: str, identifier: str, module: str | None) -> GymnasiumEnvironment:
        """A registered environment; `module` is what has to be imported for `identifier` to be registered."""
        return cls._from_maker(name, lambda: gym.make(identifier), _recipe(identifier, module))

    @classmethod
    def _from_maker(cls, name: str, make: Callable[[], gym.Env], recipe: dict[str, Any] | None) -> GymnasiumEnvironment:
        def flat() -> gym.Env:
            return flattened(make())

        env = flat()
        one_hot = isinstance(env.unwrapped.observation_space, gym.spaces.Discrete)
        space = env.observation_space
        env.close()
        assert isinstance(space, gym.spaces.Box)
        return cls(name, flat, space, env.action_space, one_hot, recipe)

    def vector(self, copies: int) -> GymnasiumVector:
        return GymnasiumVector([self.make() for _ in range(copies)])


def flattened(env: gym.Env) -> gym.Env:
    """The same environment with observations in one-dimensional boxes."""
    space = env.observation_space
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return env
    return gym.wrappers.FlattenObservation(env)


def _recipe(identifier: str, module: str | None) -> dict[str, Any] | None:
    spec = gym.registry[identifier]
    # What was registered by hand as an object, or from the main script, can't be named to another process.
    if not isinstance(spec.entry_point, str) or spec.entry_point.startswith("__main__"):
        return None
    try:
        return {"spec": spec.to_json(), "module": module}
    except (TypeError, ValueError):  # arguments that are no data
        return None


def from_recipe(recipe: dict[str, Any]) -> gym.Env:
    """The environment that a `recipe` describes."""
    if recipe["module"] is not None:
        importlib.import_module(recipe["module"])
    return flattened(gym.make(EnvSpec.from_json(recipe["spec"])))


class GymnasiumVector(HostVector):
    """Copies stepped one after the other. An episode's last observation is kept; the next begins in the same step."""

    def __init__(self, envs: Sequence[gym.Env]) -> None:
        self._envs = list(envs)
        self._valid = np.ones(len(self._envs), bool)

    def reset(self, seed: int) -> Float[np.ndarray, " M *obs"]:
        return self.reset_each(copy_seeds(seed, len(self._envs)))

    def reset_each(self, seeds: np.ndarray) -> Float[np.ndarray, " M *obs"]:
        """Start every copy anew with a seed of its own."""
        first = [env.reset(seed=int(seed))[0] for env, seed in zip(self._envs, seeds, strict=True)]
        return np.array(first, np.float32)

    def step(self, action: np.ndarray) -> HostStep:
        steps = [env.step(one) for env, one in zip(self._envs, action, strict=True)]
        next_obs, reward, terminated, truncated, _ = zip(*steps, strict=True)
        successor = np.array(next_obs, np.float32)
        over, cut = np.array(terminated, bool), np.array(truncated, bool)
        obs, ended = successor, np.flatnonzero(over | cut)
        if len(ended):
            obs = successor.copy()
            for copy in ended:
                obs[copy] = self._envs[copy].reset()[0]
        return HostStep(successor, obs, np.array(reward, np.float32), over, cut & ~over, self._valid)

    def close(self) -> None:
        for env in self._envs:
            env.close()


def copy_seeds(seed: int, copies: int) -> np.ndarray:
    """One seed a copy, spread out from one number so that neighbouring numbers share no episode."""
    return np.random.SeedSequence(seed).generate_state(copies)
