"""Several discrete actions at once: MultiDiscrete spaces, and boxes of integers.

Imports JAX only to make a distribution.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace, one_line
from klimb.policies.action_spec import (
    ActionSpec,
    AnyArray,
    GaussianStyle,
    NestedJson,
    NestedSpec,
    Sampler,
    require_no_gaussian,
)
from klimb.policies.discrete_actions import MAX_START, chosen

if TYPE_CHECKING:
    from klimb.policies.products import MultiCategorical

MAX_PADDED = 2**20
"""Number of actions times the most choices of one of them: the logits that a distribution holds."""
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True, repr=False)
class MultiDiscrete(ActionSpec):
    """H numbers at once, each one of its own choices, with independent categorical distributions.

    Arrays hold 0 … n−1 for each number, `[H]`; environments get `start` more, in the space's shape and dtype.

    n: of each number, how many choices it has. start: the first of them, as the environment counts.
    dimensions: of the space's arrays. space_dtype: of the space's arrays.
    """

    n: tuple[int, ...]
    start: tuple[int, ...]
    dimensions: tuple[int, ...]
    space_dtype: str = "int64"

    kind = "multi_discrete"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> MultiDiscrete | None:
        if isinstance(space, gymnasium.spaces.MultiDiscrete):
            n, start = space.nvec, space.start
        elif isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.integer) and space.low.size:
            low, high = space.low.astype(object), space.high.astype(object)
            n, start = high - low + 1, low
        else:
            return None
        sizes, first = (tuple(int(x) for x in np.ravel(array)) for array in (n, start))
        if not sizes or len(sizes) * max(sizes) > MAX_PADDED or max(map(abs, first)) > MAX_START:
            raise UnsupportedSpace(
                f"the action space {one_line(space, 200)} has too many choices: klimb gives each whole number a "
                f"probability, and takes at most {MAX_PADDED} in all (actions × choices). If neighbouring numbers "
                "have similar effects, make it a Box of floats and round in a gymnasium.ActionWrapper"
            )
        return cls(sizes, first, tuple(np.shape(n)), np.dtype(space.dtype).name)

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> MultiDiscrete:
        n, start, shape = (_integers(fields.get(name)) for name in ("n", "start", "shape"))
        if set(fields) - {"kind", "dtype", "n", "start", "shape"} or n is None or start is None or shape is None:
            raise ValueError("several discrete actions have lists n, start and shape of integers, and a dtype")
        if len(n) != len(start) or len(shape) > 8 or len(n) != math.prod(shape) or not n or min(n) < 1:
            raise ValueError(
                f"{len(n)} discrete actions with {len(start)} first numbers do not have the shape {shape}, or some of "
                "them no choice"
            )
        if len(n) * max(n) > MAX_PADDED or max(map(abs, start)) > MAX_START or fields.get("dtype") not in DTYPES:
            raise ValueError(
                f"discrete actions have at most {MAX_PADDED} choices, first numbers between ±{MAX_START}, and one of "
                f"the dtypes {', '.join(DTYPES)}"
            )
        return cls(n, start, shape, fields["dtype"])

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "n": list(self.n),
            "start": list(self.start),
            "shape": list(self.dimensions),
            "dtype": self.space_dtype,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.n),)

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32

    @property
    def choices(self) -> tuple[int, ...]:
        return self.n

    def num_outputs(self, style: GaussianStyle) -> int:
        require_no_gaussian(style, f"{len(self.n)} discrete ones")
        return sum(self.n)

    @property
    def num_log_std(self) -> int:
        return 0

    def distribution(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None) -> MultiCategorical:
        """output: the logits of all choices of the first number, then of the second, …. log_std, style: not used.
        mask: which choices are allowed, in the same order."""
        import jax.numpy as jnp

        from klimb.policies.products import MultiCategorical

        if mask is not None:
            output = jnp.where(mask, output, -jnp.inf)
        place, exists = self.places
        return MultiCategorical(logits=jnp.where(exists, output[..., place], -jnp.inf))

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """log_std, style: not used."""
        place, exists = self.places

        def sample(output: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`. noise: uniform in [0, 1)."""
            if mask is not None:
                output = np.where(mask, output, -np.inf)
            action = chosen(np.where(exists, output[..., place], -np.inf), noise)
            return action, action

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        return action

    def unflatten(self, action: AnyArray) -> Any:
        return in_space(action, np.array(self.start), self.dimensions, self.space_dtype)

    def flatten(self, action: Any) -> np.ndarray:
        return (as_rows(action, self.dimensions).astype(np.int64) - np.array(self.start)).astype(self.dtype)

    def problem(self, action: np.ndarray) -> str | None:
        if not np.issubdtype(action.dtype, np.integer):
            return f"its actions are {action.dtype}, and discrete ones are integers"
        if action.shape[1:] != self.shape:
            return f"its actions have the shape {action.shape[1:]}, and its action space {len(self.n)} numbers"
        wrong = np.argwhere((action < 0) | (action >= np.array(self.n)))
        if len(wrong):
            row, number = map(int, wrong[0])
            return f"action {row} has {action[row, number]} as number {number}, which is in 0 … {self.n[number] - 1}"
        return None

    @functools.cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the logit of each choice stands among the outputs, `[H, A]`, and which of the A choices there are."""
        n = np.array(self.n)
        first = np.cumsum(n) - n
        choice = np.arange(n.max())
        exists = choice < n[:, None]
        # 32 bits, because JAX doesn't always take an index of 64 bits in the same way where it is asked for both.
        return np.where(exists, first[:, None] + choice, 0).astype(np.int32), exists


def in_space(action: AnyArray, start: np.ndarray, dimensions: tuple[int, ...], dtype: str) -> Any:
    """Integers as a space has them: in NumPy in its own dtype, in JAX as they are.

    action: `[..., H]`, from 0 on. start: of the space's numbers, `[H]`. dimensions: of its arrays.
    """
    array: Any = action
    shape = (*array.shape[:-1], *dimensions)
    if isinstance(array, np.ndarray):
        return (array.astype(np.int64) + start).astype(dtype).reshape(shape)
    return (array + start.astype(array.dtype)).reshape(shape)


def as_rows(action: Any, dimensions: tuple[int, ...]) -> np.ndarray:
    """Arrays of a space as vectors, `[..., H]`.

    action: with any leading axes. dimensions: of the space's arrays.
    """
    array = np.asarray(action)
    return array.reshape((*array.shape[: array.ndim - len(dimensions)], math.prod(dimensions)))


def _integers(values: Any) -> tuple[int, ...] | None:
    """Integers that were read from a file; None for anything else."""
    whole = isinstance(values, list) and len(values) <= MAX_PADDED and all(type(x) is int for x in values)
    return tuple(values) if whole else None
