"""EnvPool's environments: many copies stepped in C++ threads."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import gymnasium.spaces
import numpy as np
from jaxtyping import Integer, Num

from klimb.environments.host import HostEnvironment, HostStep, HostVector
from klimb.errors import ConfigError, EnvironmentNotFound, MissingExtra, UnsupportedSpace
from klimb.policies.action_spec import ActionSpec
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.picture_observations import PictureObservations

MAX_SEED = 2**31 - 1
"""EnvPool's seeds are below it."""


@dataclass(frozen=True)
class EnvPoolEnvironment(HostEnvironment):
    """An EnvPool environment by its id, e.g. `HalfCheetah-v5`."""

    packages = ("envpool",)
    id: str
    name: str
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.spaces.Space

    def vector(self, copies: int, *, restart: bool = False) -> EnvPoolVector:
        """A pool of copies. EnvPool can't restart single copies: faults end the training.

        copies: their number. restart: is not used.
        """
        return EnvPoolVector(self.name, copies, self.observations, self.actions)

    def drawn(self) -> gymnasium.Env:
        """EnvPool's drawing needs a screen, and ends the process where there is none."""
        raise ConfigError(
            f"{self.id} is not drawn by EnvPool: give Gymnasium's environment of the same name, which is, with --env "
            f"gymnasium:{self.name} (in Python env=)"
        )


class EnvPoolVector(HostVector):
    """Copies in EnvPool, which resets one step late: the row after an episode's end is a reset, and is not valid."""

    def __init__(self, name: str, copies: int, observations: ObservationSpec, actions: ActionSpec) -> None:
        self._name, self._copies, self._dtype, self._actions = name, copies, observations.dtype, actions
        self._pool: Any = None

    def reset(self, seeds: Integer[np.ndarray, " M"]) -> Num[np.ndarray, " M *obs"]:
        """Create the pool, since EnvPool takes seeds at construction only. Returns the first observations.

        seeds: one per copy.
        """
        self.close()
        self._pool = _open(self._name, [seed % MAX_SEED for seed in seeds.tolist()])
        with _without_space_warnings():
            obs, _ = self._pool.reset()
        self._obs = np.array(obs, self._dtype)
        self._resets = np.zeros(self._copies, bool)
        return self._obs

    def step(self, action: np.ndarray) -> HostStep:
        """Step every copy with its row of `action`."""
        obs, reward, terminated, truncated, _ = self._pool.step(self._actions.unflatten(action))
        valid = ~self._resets
        self._obs = np.array(obs, self._dtype)
        self._resets = terminated | truncated
        return HostStep(self._obs, self._obs, reward, terminated, truncated & ~terminated, valid)

    def close(self) -> None:
        """Close the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def make_envpool(name: str) -> EnvPoolEnvironment:
    """The EnvPool environment `name`.

    Raises MissingExtra if EnvPool is not installed, EnvironmentNotFound for an unknown name, UnsupportedSpace for
    observations that are neither one-dimensional boxes nor pictures.
    """
    envpool = _import(name)
    known = envpool.list_all_envs()
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0))
        raise EnvironmentNotFound(f"EnvPool has no environment {name!r}; nearest: {nearest}")
    pool = _open(name, [0])
    with _without_space_warnings():
        observation, action = pool.observation_space, pool.action_space
    pool.close()
    if not isinstance(observation, gymnasium.spaces.Box):
        raise UnsupportedSpace(f"envpool:{name} has observations {observation}; klimb reads boxes")
    if PictureObservations.from_space(observation) is None:
        low, high = observation.low.astype(np.float32), observation.high.astype(np.float32)
        observation = gymnasium.spaces.Box(low, high)
    if isinstance(action, gymnasium.spaces.Box):
        action = gymnasium.spaces.Box(action.low.astype(np.float32), action.high.astype(np.float32))
    return EnvPoolEnvironment(f"envpool:{name}", name, observation, action)


@contextlib.contextmanager
def _without_space_warnings() -> Iterator[None]:
    """Suppress Gymnasium's warnings about the way in which EnvPool builds its float64 spaces; they are harmless."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import(name: str) -> Any:
    try:
        import envpool
    except ImportError as error:
        raise MissingExtra(
            f"envpool:{name} needs EnvPool, which cannot be imported ({error}): pip install 'klimb[envpool]'"
        ) from error
    return envpool


def _open(name: str, seeds: Sequence[int]) -> Any:
    """A pool of one copy per seed."""
    return _import(name).make(name, env_type="gymnasium", num_envs=len(seeds), seed=seeds)
