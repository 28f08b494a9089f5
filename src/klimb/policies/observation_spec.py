"""The interface of observation spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from klimb.errors import ConfigError

MAX_SIZE = 2**20
NestedJson = Callable[[Any], "ObservationSpec"]


class ObservationSpec(abc.ABC):
    """One kind of observation space. Rows of rollouts hold observations as arrays of one shape and dtype.

    A new kind is a frozen dataclass with these methods, and a place in `klimb.policies.observations`.
    """

    kind: ClassVar[str]
    """The kind's name in files."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation in arrays."""

    @property
    def dtype(self) -> type[np.generic]:
        """The dtype of observations in arrays."""
        return np.float32

    @property
    def size(self) -> int:
        """The number of elements of one observation."""
        return int(np.prod(self.shape))

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data with the key `kind`."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> ObservationSpec:
        """The inverse of `to_json`.

        fields: as read from a file. nested: reads the fields of an observation within it. Raises ValueError, which says
        what is wrong, for anything else.
        """

    @abc.abstractmethod
    def flatten(self, obs: Any) -> np.ndarray:
        """Observations as arrays hold them, `[..., *shape]`, in NumPy.

        obs: as the space has them, or as arrays hold them, with any leading axes. Raises ConfigError for anything else.
        """

    @abc.abstractmethod
    def row(self, obs: Any, xp: Any) -> Any:
        """One observation as arrays hold it, `[*shape]`, unchecked: what compiled environments do in their programs.

        obs: as the space has it. xp: the module of array functions, such as jax.numpy.
        """

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Which numbers networks scale by their running mean and standard deviation, of an observation as a vector."""
        return (True,) * self.size

    @property
    def is_scaled(self) -> bool:
        """Whether networks scale any of the numbers."""
        return any(self.scaled)

    @property
    def encoded(self) -> ObservationSpec:
        """What networks read of an observation: all of it, unless a part of it is an action mask."""
        return self

    @property
    def placed(self) -> tuple[tuple[ObservationSpec, int], ...]:
        """The parts that a policy sees of observations that are several in one vector, and where each of them begins;
        none of observations that are one."""
        return ()

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Which numbers of the vector a policy reads; None for those of `encoded`, which are the first ones."""
        return None

    def hiding(self, names: tuple[str, ...]) -> ObservationSpec:
        """The same observations for a policy that does not see some of the parts.

        names: of the parts that only the critic sees. Raises ConfigError where there are none of these names.
        """
        raise ConfigError(
            f"critic_observes = {', '.join(names)} names parts of Dict observations, and these are no dictionaries: "
            "leave it out"
        )

    def mask(self, obs: Any) -> Any:
        """Which choices are allowed, `[..., num_choices]`; None where observations have no action mask.

        obs: `[..., *obs]`, in JAX or NumPy.
        """
        return None
