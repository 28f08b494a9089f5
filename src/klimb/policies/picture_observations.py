"""Pictures as observations, in the environment's own type. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium.spaces
import numpy as np

from klimb.errors import ConfigError, shown
from klimb.policies.observation_kinds import as_numbers, require_shape
from klimb.policies.observation_spec import MAX_SIZE, NestedJson, ObservationSpec

MIN_SIDE = 7
"""Height and width that arrays have at least to be taken for pictures: boards and frames of features are smaller."""
BRIGHTEST = {"uint8": 255, "float32": 1}
"""The largest number of a picture, by its dtype. The smallest is 0."""


@dataclass(frozen=True)
class PictureObservations(ObservationSpec):
    """Pictures: bytes, or floats from 0 to 1. Networks divide bytes by 255, and rescale nothing.

    dimensions: [H, W], [H, W, C] or [C, H, W], or [S, H, W, C] of S pictures one after the other in time. Of three
    dimensions the smallest is C. numbers: their dtype.
    """

    dimensions: tuple[int, ...]
    numbers: str = "uint8"

    kind = "picture"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space) -> PictureObservations | None:
        """The spec of a space of pictures; None for any other space.

        space: bytes from 0 to 255 are pictures where they have two to four dimensions, and floats from 0 to 1 where
        they have three or four, if they are large enough.
        """
        if not isinstance(space, gymnasium.spaces.Box):
            return None
        numbers, shape = np.dtype(space.dtype).name, tuple(map(int, space.shape))
        if numbers not in BRIGHTEST or not (2 if numbers == "uint8" else 3) <= len(shape) <= 4 or 0 in shape:
            return None
        fits = bool((space.low == 0).all() and (space.high == BRIGHTEST[numbers]).all())
        spec = cls(shape, numbers)
        return spec if fits and min(spec.picture[:2]) >= MIN_SIDE else None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dimensions

    @property
    def dtype(self) -> type[np.generic]:
        return np.uint8 if self.numbers == "uint8" else np.float32

    @property
    def brightest(self) -> int:
        """The largest number, by which networks divide."""
        return BRIGHTEST[self.numbers]

    @property
    def scaled(self) -> tuple[bool, ...]:
        return (False,) * self.size

    @property
    def channels_first(self) -> bool:
        """Whether channels, of three dimensions, come before height and width."""
        return len(self.dimensions) == 3 and self.dimensions[0] < min(self.dimensions[1:])

    @property
    def picture(self) -> tuple[int, int, int]:
        """(height, width, channels), where pictures that follow each other in time are channels too."""
        match self.dimensions:
            case (height, width):
                return height, width, 1
            case (first, second, last):
                return (second, last, first) if self.channels_first else (first, second, last)
        stack, height, width, channels = self.dimensions
        return height, width, stack * channels

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.dimensions), "numbers": self.numbers}

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> PictureObservations:
        shape: Any = fields.get("shape")
        numbers = fields.get("numbers")
        is_shape = isinstance(shape, list) and 2 <= len(shape) <= 4 and all(type(x) is int and x >= 1 for x in shape)
        if not is_shape or numbers not in BRIGHTEST or set(fields) - {"kind", "shape", "numbers"}:
            raise ValueError(
                f"pictures have a shape of two to four positive integers, and numbers, {' or '.join(BRIGHTEST)}"
            )
        if math.prod(shape) > MAX_SIZE:
            raise ValueError(f"its observations hold {math.prod(shape)} numbers; klimb reads at most {MAX_SIZE}")
        return cls(tuple(shape), numbers)

    def flatten(self, obs: Any) -> np.ndarray:
        rows = require_shape(np.asarray(obs) if self._holds(obs) else as_numbers(obs, self.shape), self.shape)
        if rows.dtype == self.dtype:
            return rows
        if self.dtype == np.uint8 and not ((rows >= 0) & (rows <= 255) & (rows == np.round(rows))).all():
            raise ConfigError(
                f"the observation {shown(obs, 60)} holds numbers that are no bytes, and the policy reads pictures of "
                "whole numbers from 0 to 255, as the environment gives them"
            )
        return rows.astype(self.dtype)

    def row(self, obs: Any, xp: Any) -> Any:
        return xp.asarray(obs, dtype=self.dtype)

    def _holds(self, obs: Any) -> bool:
        """Whether an observation is of these numbers already."""
        return isinstance(obs, np.ndarray) and obs.dtype == self.dtype


def pictures_in(observations: ObservationSpec, start: int = 0) -> Iterator[tuple[int, PictureObservations]]:
    """The pictures within observations that are one vector, or that are a picture themselves, and where they begin.

    observations: the spec. start: where it begins itself.
    """
    if isinstance(observations, PictureObservations):
        yield start, observations
    for part, place in observations.placed:
        yield from pictures_in(part, start + place)
