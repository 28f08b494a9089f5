"""Kinds of observation spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace

MAX_SIZE = 2**20


class ObservationSpec(abc.ABC):
    """One kind of observation space. Rows of rollouts hold observations as arrays of one shape and dtype."""

    kind: ClassVar[str]
    """The kind's name in files."""
    dtype: ClassVar[type[np.generic]] = np.float32
    """The dtype of observations in arrays."""
    is_scaled: ClassVar[bool] = True
    """Whether networks scale observations by their running mean and standard deviation."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation in arrays."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data with the key `kind`."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any]) -> ObservationSpec:
        """The inverse of `to_json`.

        fields: as read from a file. Raises ValueError, which says what is wrong, for anything else.
        """

    @property
    def size(self) -> int:
        """The number of elements of one observation."""
        return int(np.prod(self.shape))

    @property
    def encoded(self) -> ObservationSpec:
        """What networks read of an observation: all of it, unless a part of it is an action mask."""
        return self

    def mask(self, obs: Any) -> Any:
        """Which choices are allowed, `[..., num_choices]`; None where observations have no action mask.

        obs: `[..., *obs]`, in JAX or NumPy.
        """
        return None


@dataclass(frozen=True)
class BoxObservations(ObservationSpec):
    """Arrays of real numbers of one shape."""

    dimensions: tuple[int, ...]

    kind = "box"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dimensions

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.dimensions)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BoxObservations:
        shape = fields.get("shape")
        whole = isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(x) is int and x >= 1 for x in shape)
        if not whole or set(fields) - {"kind", "shape"}:
            raise ValueError("a box of observations has a shape, a list of positive integers")
        spec = cls(tuple(shape))  # type: ignore[arg-type]
        if spec.size > MAX_SIZE:
            raise ValueError(f"its observations hold {spec.size} numbers; klimb reads at most {MAX_SIZE}")
        return spec


@dataclass(frozen=True)
class OneHotObservations(ObservationSpec):
    """Integers 0 … n−1 as one-hot vectors of length n. Networks do not rescale them."""

    n: int

    kind = "one_hot"
    is_scaled = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> OneHotObservations:
        n = fields.get("n")
        if type(n) is not int or not 1 <= n <= MAX_SIZE or set(fields) - {"kind", "n"}:
            raise ValueError(f"one-hot observations have a number n from 1 to {MAX_SIZE}")
        return cls(n)


@dataclass(frozen=True)
class MaskedObservations(ObservationSpec):
    """Vectors whose last numbers are an action mask: 1 where a choice is allowed and 0 where it is not.

    observed: what is before it, which networks read. choices: flags of the mask (`ActionSpec.num_choices`).
    """

    observed: ObservationSpec
    choices: int

    kind = "masked"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.observed.size + self.choices,)

    @property
    def is_scaled(self) -> bool:  # type: ignore[override]
        return self.observed.is_scaled

    @property
    def encoded(self) -> ObservationSpec:
        return self.observed

    def mask(self, obs: Any) -> Any:
        return obs[..., self.observed.size :] > 0.5

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "observed": self.observed.to_json(), "choices": self.choices}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> MaskedObservations:
        observed, choices = fields.get("observed"), fields.get("choices")
        if type(choices) is not int or not 1 <= choices <= MAX_SIZE or set(fields) - {"kind", "observed", "choices"}:
            raise ValueError(f"observations with an action mask have a number of choices from 1 to {MAX_SIZE}")
        inner = None
        if isinstance(observed, dict) and observed.get("kind") != cls.kind:
            inner = observations_from_json(observed)
        if inner is None or len(inner.shape) != 1:
            raise ValueError("observations with an action mask are vectors of another kind before it")
        return cls(inner, choices)


KINDS: tuple[type[ObservationSpec], ...] = (BoxObservations, OneHotObservations, MaskedObservations)


def observation_spec(space: gymnasium.spaces.Space, *, one_hot: bool = False, choices: int = 0) -> ObservationSpec:
    """The spec of a Gymnasium observation space.

    space: of the observations that collectors get. one_hot: whether a box holds one-hot vectors of a discrete space.
    choices: how many of the last numbers are an action mask. Raises UnsupportedSpace if no kind of klimb's supports it.
    """
    if choices:
        inner = gymnasium.spaces.Box(-np.inf, np.inf, (_length(space) - choices,))
        return MaskedObservations(observation_spec(inner, one_hot=one_hot), choices)
    if isinstance(space, gymnasium.spaces.Box) and space.shape and 0 not in space.shape:
        return OneHotObservations(space.shape[0]) if one_hot else BoxObservations(space.shape)
    raise UnsupportedSpace(
        f"the observation space {space} is not supported; klimb supports Box observations "
        "(wrap the environment with gymnasium.wrappers.FlattenObservation)"
    )


def _length(space: gymnasium.spaces.Space) -> int:
    """Of the vectors of a box. UnsupportedSpace for any other space."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise UnsupportedSpace(f"observations with an action mask at their end are vectors, and these are in {space}")
    return space.shape[0]


def observations_from_json(fields: Any) -> ObservationSpec:
    """The inverse of `ObservationSpec.to_json`.

    fields: as read from a file. Raises ValueError, which says what is wrong, for anything else.
    """
    if isinstance(fields, dict):
        for kind in KINDS:
            if kind.kind == fields.get("kind"):
                return kind.from_json(fields)
    raise ValueError(f"it has no kind of observations that klimb knows ({', '.join(kind.kind for kind in KINDS)})")
