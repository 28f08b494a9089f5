"""What a policy has to know of an action space. Imports no JAX: worker processes start with it."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace


@dataclass(frozen=True)
class Discrete:
    """Actions 0 … n−1."""

    n: int


@dataclass(frozen=True)
class Box:
    """Continuous actions between `low` and `high` (±inf where unbounded), one number a dimension."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def center(self) -> np.ndarray:
        """Middle of each bounded dimension, 0 where unbounded."""
        low, high = (np.where(self.bounded, bound, 0.0) for bound in (self.low, self.high))
        return (low + high) / 2

    @property
    def half_width(self) -> np.ndarray:
        """Half the range of each bounded dimension, 1 where unbounded."""
        return np.where(self.bounded, (np.array(self.high) - np.array(self.low)) / 2, 1.0)

    @property
    def bounded(self) -> np.ndarray:
        return np.isfinite(self.low) & np.isfinite(self.high)


def action_spec(space: gymnasium.spaces.Space) -> Discrete | Box:
    """The part of an action space that a policy has to know. UnsupportedSpace when it is of another kind."""
    match space:
        case gymnasium.spaces.Discrete(n=n):
            if space.start != 0:
                raise UnsupportedSpace(f"discrete actions must start at 0, this space starts at {space.start}")
            return Discrete(int(n))
        case gymnasium.spaces.Box(shape=(dimensions,)) if dimensions and np.issubdtype(space.dtype, np.floating):
            low, high = (tuple(float(x) for x in bound) for bound in (space.low, space.high))
            return Box(low, high)
    raise UnsupportedSpace(
        f"the action space {space} is not supported; klimb has Discrete actions and one-dimensional float "
        "Box actions (flatten the space with a Gymnasium wrapper)"
    )
