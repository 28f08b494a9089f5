"""The interface of host environments: several copies stepped together in Python, outside JAX."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import gymnasium
import gymnasium.spaces
import numpy as np
from jaxtyping import Bool, Float, Integer, Num

from klimb.errors import ConfigError, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observations import ObservationSpec, observation_spec


class HostStep(NamedTuple):
    """One step of M environment copies.

    next_obs: the true successor. obs: what the policy acts on next: `next_obs`, or the first observation of a new
    episode. reward: of the step. terminated, truncated: whether the episode ended with it, or was cut off there. valid:
    False for rows that are not a step, because they carried out a reset or had a fault.
    """

    next_obs: Num[np.ndarray, " M *obs"]
    obs: Num[np.ndarray, " M *obs"]
    reward: Float[np.ndarray, " M"]
    terminated: Bool[np.ndarray, " M"]
    truncated: Bool[np.ndarray, " M"]
    valid: Bool[np.ndarray, " M"]


class DerivativeSizes(NamedTuple):
    """Sizes of the derivatives of one step. state: of the simulator, S. obs: O. action: D."""

    state: int
    obs: int
    action: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays of one step, in the order of `klimb.types.Derivatives`."""
        coordinates = self.state + self.action
        return (self.state, coordinates), (self.obs, self.state), (self.obs, coordinates), (coordinates,)

    @property
    def numbers(self) -> int:
        """How many numbers these are."""
        return sum(math.prod(shape) for shape in self.shapes)


class Fault(NamedTuple):
    """A fault of one copy, which has been restarted; its row is not valid.

    copy: its number. cause: in one line. traceback: as text, from the environment's own code on; None where nothing was
    raised.
    """

    copy: int
    cause: str
    traceback: str | None = None


class HostVector(abc.ABC):
    """M running copies of one environment."""

    @abc.abstractmethod
    def reset(self, seeds: Integer[np.ndarray, " M"]) -> Num[np.ndarray, " M *obs"]:
        """Start a new episode in every copy. Returns the first observations.

        seeds: one per copy, below 2³². What a copy does may depend on its own seed and its own actions only: a seed of
        a training is then the run that it would be alone.
        """

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> HostStep:
        """Step every copy. Returns what the steps resulted in.

        action: `[M, *act]` as arrays hold actions (`ActionSpec.unflatten`), within the bounds of the action space.
        EnvironmentFault for a fault that ends the training.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close every copy."""

    def take_faults(self) -> list[Fault]:
        """The faults since the last call."""
        return []

    def simulator_states(self) -> Float[np.ndarray, "M S"]:
        """The simulator's state of every copy, in double precision, for `differentiate`.

        Raises NotImplementedError where there are no `derivatives`.
        """
        raise NotImplementedError

    def differentiate(
        self, states: Float[np.ndarray, "R S"], actions: Float[np.ndarray, "R D"]
    ) -> Float[np.ndarray, "R numbers"]:
        """The derivatives of R steps, each row the arrays of `klimb.types.Derivatives` one after the other.

        states: `simulator_states` before them. actions: as the policy sampled them. The copies stay as they are.
        Raises NotImplementedError where there are no `derivatives`.
        """
        raise NotImplementedError

    def capture(self) -> list[dict[str, Any]] | None:
        """The state of every copy as plain data, after a reset or a step; None where it can't be saved."""
        return None

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Put every copy into its captured state.

        states: as `capture` returned them. Raises RunError when a state does not fit this environment, and
        NotImplementedError where `capture` returns None.
        """
        raise NotImplementedError


class HostEnvironment(abc.ABC):
    """An environment that runs in Python: its spaces, and a way to make running copies."""

    id: str
    """The name that `make` takes, e.g. `gymnasium:HalfCheetah-v5`."""

    observation_space: gymnasium.spaces.Box
    """The box of observations."""

    action_space: gymnasium.spaces.Space
    """The space of actions, which may be a Dict or a Tuple."""

    one_hot: bool = False
    """Whether observations are one-hot rows, which are not normalised."""

    masked: bool = False
    """Whether the last numbers of an observation are an action mask: 1 for each choice of the action space that is
    allowed, 0 for each that is not."""

    critic_only: tuple[str, ...] = ()
    """Parts of dictionaries of observations that only the critic sees, unless `critic_observes` names others."""

    packages: tuple[str, ...] = ()
    """Packages that the environment is made of; a run records their versions."""

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated; None where there is no limit, or it is not known."""
        return None

    image_shape: tuple[int, ...] | None = None
    """The shape of observations, or of a part of them, that look like an image and are flattened; else None."""

    derivatives: DerivativeSizes | None = None
    """Sizes of the derivatives of a step, where the simulator gives them by differences; None where it can't."""

    @property
    def observations(self) -> ObservationSpec:
        """What the observation space means to klimb. UnsupportedSpace when that is nothing."""
        choices = self.actions.num_choices if self.masked else 0
        return observation_spec(self.observation_space, one_hot=self.one_hot, choices=choices)

    @property
    def actions(self) -> ActionSpec:
        """What the action space means to klimb. UnsupportedSpace when that is nothing."""
        return action_spec(self.action_space)

    @abc.abstractmethod
    def vector(self, copies: int, *, restart: bool = False) -> HostVector:
        """Running copies.

        copies: their number. restart: whether a copy with a fault is restarted, where that is possible.
        """

    def drawn(self) -> gymnasium.Env:
        """A copy that draws itself: `render()` returns a picture, `[height, width, 3]` bytes.

        Its observations are as arrays hold them (`observations`), its actions as the action space has them.
        ConfigError where there is none, and MissingExtra where a package is missing.
        """
        raise ConfigError(f"{one_line(self.id, 60)} can't draw itself: films need a Gymnasium environment that can")

    @property
    def env_spec(self) -> dict[str, Any] | None:
        """How another process makes the same environment (`make_from_spec` of the Gymnasium adapter), as data for JSON.

        None where it can't: the environment is an object or a function of this process.
        """
        return None
