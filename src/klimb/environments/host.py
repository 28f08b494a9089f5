"""Host environments: many copies stepped together in Python, outside JAX."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import gymnasium.spaces
import numpy as np
from jaxtyping import Bool, Float

from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observations import ObservationSpec, observation_spec


class HostStep(NamedTuple):
    """One step of M environment copies.

    `next_obs` is the true successor; `obs` is what to act on next: the same, or the first observation of a
    new episode. `valid` is False for rows that only carried out a reset.
    """

    next_obs: Float[np.ndarray, " M *obs"]
    obs: Float[np.ndarray, " M *obs"]
    reward: Float[np.ndarray, " M"]
    terminated: Bool[np.ndarray, " M"]
    truncated: Bool[np.ndarray, " M"]
    valid: Bool[np.ndarray, " M"]


class Fault(NamedTuple):
    """What a copy did wrong, in one line. Its row is not valid, and it has been started anew."""

    copy: int
    cause: str


class HostVector(abc.ABC):
    """M running copies of one environment."""

    @abc.abstractmethod
    def reset(self, seed: int) -> Float[np.ndarray, " M *obs"]:
        """Start every copy anew, with seeds derived from `seed`."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> HostStep:
        """Step every copy; `action` is `[M, *act]`, inside the action space's bounds."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the copies hold."""

    def take_faults(self) -> list[Fault]:
        """The copies' faults since this was last asked."""
        return []

    def capture(self) -> list[dict[str, Any]] | None:
        """The state of every copy as plain data, after a reset or a step; None where it can't be saved."""
        return None

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Put every copy into the state that was captured. RunError when a state is none of this environment."""
        raise NotImplementedError


class HostEnvironment(abc.ABC):
    """An environment that runs in Python: its spaces, and how to make copies of it."""

    id: str
    """How the environment is named to users, e.g. `gymnasium:HalfCheetah-v5`."""

    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.spaces.Space

    one_hot: bool = False
    """Whether observations are one-hot rows, which no policy scales."""

    @property
    def observations(self) -> ObservationSpec:
        """What the observation space means to klimb. UnsupportedSpace when that is nothing."""
        return observation_spec(self.observation_space, one_hot=self.one_hot)

    @property
    def actions(self) -> ActionSpec:
        """What the action space means to klimb. UnsupportedSpace when that is nothing."""
        return action_spec(self.action_space)

    @abc.abstractmethod
    def vector(self, copies: int, *, restart: bool = False) -> HostVector:
        """`copies` running copies. With `restart` a copy with a fault is started anew, where that can be done."""

    @property
    def env_spec(self) -> dict[str, Any] | None:
        """How another process makes the same environment (`gymnasium_adapter.make_from_spec`), as plain data for JSON.

        None where it can't: the environment is an object, or a function, of this process.
        """
        return None
