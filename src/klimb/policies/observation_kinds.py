"""The kinds of observations that are one array or one number. Imports no JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from klimb.errors import ConfigError, shown
from klimb.policies.observation_spec import MAX_SIZE, NestedJson, ObservationSpec


@dataclass(frozen=True)
class BoxObservations(ObservationSpec):
    """Arrays of real numbers of one shape.

    dimensions: their shape in arrays. space_shape: that the environment gives them in, if it is flattened; else None.
    """

    dimensions: tuple[int, ...]
    space_shape: tuple[int, ...] | None = None

    kind = "box"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dimensions

    def to_json(self) -> dict[str, Any]:
        space = {} if self.space_shape is None else {"space_shape": list(self.space_shape)}
        return {"kind": self.kind, "shape": list(self.dimensions), **space}

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> BoxObservations:
        shape, space = fields.get("shape"), fields.get("space_shape")
        if not _is_shape(shape) or not shape or set(fields) - {"kind", "shape", "space_shape"}:
            raise ValueError("a box of observations has a shape, a list of positive integers")
        if math.prod(shape) > MAX_SIZE:
            raise ValueError(f"its observations hold {math.prod(shape)} numbers; klimb reads at most {MAX_SIZE}")
        if space is None:
            return cls(tuple(shape))
        if not _is_shape(space) or [math.prod(space)] != shape:
            raise ValueError(f"vectors of the shape {shape} are not made of arrays of the shape {shown(space)}")
        return cls(tuple(shape), tuple(space))

    def flatten(self, obs: Any) -> np.ndarray:
        rows = as_numbers(obs, self.dimensions)
        space = self.space_shape
        if space is not None and rows.shape[max(rows.ndim - len(space), 0) :] == space:
            lead = rows.shape[: rows.ndim - len(space)]
            # A batch of vectors as long as the first axis of the space is taken for vectors.
            if rows.shape[-1:] != self.dimensions or space[-1:] == self.dimensions:
                return rows.reshape(*lead, *self.dimensions)
        return require_shape(rows, self.dimensions)

    def row(self, obs: Any, xp: Any) -> Any:
        return xp.reshape(xp.asarray(obs, dtype=self.dtype), self.dimensions)


@dataclass(frozen=True)
class OneHotObservations(ObservationSpec):
    """Integers `start` … start + n−1 as one-hot vectors of length n. Networks do not rescale them."""

    n: int
    start: int = 0

    kind = "one_hot"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def scaled(self) -> tuple[bool, ...]:
        return (False,) * self.n

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n} | ({"start": self.start} if self.start else {})

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> OneHotObservations:
        n, start = fields.get("n"), fields.get("start", 0)
        if type(n) is not int or not 1 <= n <= MAX_SIZE or set(fields) - {"kind", "n", "start"}:
            raise ValueError(f"one-hot observations have a number n from 1 to {MAX_SIZE}")
        if type(start) is not int:
            raise ValueError("one-hot observations have a first number, start, which is an integer")
        return cls(n, start)

    def flatten(self, obs: Any) -> np.ndarray:
        rows = as_numbers(obs, self.shape)
        if rows.shape[-1:] == self.shape and rows.ndim > 0 and np.all((rows == 0) | (rows == 1)) and _one_each(rows):
            return rows
        numbers = rows - self.start
        if ((numbers < 0) | (numbers >= self.n) | (numbers != np.round(numbers))).any():
            raise ConfigError(
                f"the observation {shown(obs, 60)} is neither an integer from {self.start} to "
                f"{self.start + self.n - 1} nor a one-hot vector of length {self.n}"
            )
        return np.eye(self.n, dtype=self.dtype)[numbers.astype(int)]

    def row(self, obs: Any, xp: Any) -> Any:
        return xp.asarray(xp.arange(self.n) == xp.asarray(obs) - self.start, dtype=self.dtype)


@dataclass(frozen=True)
class MultiOneHotObservations(ObservationSpec):
    """Several integers, each as a one-hot vector, one after the other. Networks do not rescale them.

    n: of each integer, how many values it has. start: its first value. space_shape: of the arrays of integers.
    """

    n: tuple[int, ...]
    start: tuple[int, ...]
    space_shape: tuple[int, ...]

    kind = "multi_one_hot"

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.n),)

    @property
    def scaled(self) -> tuple[bool, ...]:
        return (False,) * sum(self.n)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "n": list(self.n),
            "start": list(self.start),
            "space_shape": list(self.space_shape),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> MultiOneHotObservations:
        n, start = _integers(fields.get("n")), _integers(fields.get("start"))
        space: Any = fields.get("space_shape")
        extra = set(fields) - {"kind", "n", "start", "space_shape"}
        if not n or min(n) < 1 or start is None or not _is_shape(space) or extra:
            raise ValueError("several one-hot observations have lists n, start and space_shape of integers")
        if sum(n) > MAX_SIZE or len(n) != len(start) or len(n) != math.prod(space):
            raise ValueError(
                f"{len(n)} one-hot observations have {len(start)} first numbers, the shape {shown(space)} and "
                f"{sum(n)} values, of which klimb reads at most {MAX_SIZE}"
            )
        return cls(n, start, tuple(space))

    def flatten(self, obs: Any) -> np.ndarray:
        rows = as_numbers(obs, self.shape)
        lead = rows.shape[: rows.ndim - len(self.space_shape)]
        if rows.shape[len(lead) :] != self.space_shape:
            return require_shape(rows, self.shape)
        numbers = rows.reshape(*lead, len(self.n)) - np.array(self.start)
        if ((numbers < 0) | (numbers >= np.array(self.n)) | (numbers != np.round(numbers))).any():
            raise ConfigError(f"the observation {shown(obs, 60)} has a number outside of its range")
        columns = numbers.astype(int) + np.cumsum(self.n) - np.array(self.n)
        flat = np.zeros((*lead, sum(self.n)), self.dtype)
        np.put_along_axis(flat, columns, 1, axis=-1)
        return flat

    def row(self, obs: Any, xp: Any) -> Any:
        numbers = np.concatenate([np.arange(start, start + n) for n, start in zip(self.n, self.start, strict=True)])
        return xp.asarray(xp.repeat(xp.ravel(xp.asarray(obs)), np.array(self.n)) == numbers, dtype=self.dtype)


def as_numbers(obs: Any, expected: tuple[int, ...]) -> np.ndarray:
    """An array of float32. ConfigError for what is none.

    obs: anything. expected: shape of one observation, for the message.
    """
    try:
        return np.asarray(obs).astype(np.float32, copy=False)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the observation is of the type {type(obs).__name__}, and the policy reads arrays of numbers of shape "
            f"{expected}: step the environment that it was trained in"
        ) from None


def require_shape(rows: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    """The array; ConfigError unless it has the shape after any leading axes.

    rows: as given. expected: of one observation.
    """
    if rows.shape[max(rows.ndim - len(expected), 0) :] != expected:
        batch = ", ".join(["...", *map(str, expected)])
        raise ConfigError(
            f"the observation has the shape {rows.shape}, and the policy reads the shape {expected}, or ({batch}) for "
            "a batch: step the environment that it was trained in"
        )
    return rows


def _one_each(rows: np.ndarray) -> bool:
    return bool((rows.sum(-1) == 1).all())


def _integers(values: Any) -> tuple[int, ...] | None:
    """Integers that were read from a file; None for anything else."""
    whole = isinstance(values, list) and len(values) <= MAX_SIZE and all(type(x) is int for x in values)
    return tuple(values) if whole else None


def _is_shape(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(x) is int and x >= 1 for x in values)
