"""Continuous actions in a box. Imports JAX only to make a distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace, shown
from klimb.policies.action_spec import (
    ActionSpec,
    AnyArray,
    GaussianStyle,
    NestedJson,
    NestedRemarks,
    NestedSpec,
    Sampler,
)

if TYPE_CHECKING:
    from klimb.policies.distributions import DiagGaussian, TanhGaussian

MAX_DIMENSIONS = 2**16
WIDEST = float(np.float32(1e18))
"""A bound of this size or above it, such as the largest float32 number, is none: the Fisher matrix holds the inverse
square of half-widths, and float32 ends at 1e38. Measured, TRPO trains in a box of ±5e18 and takes no step in ±1e19."""
NARROWEST = 1e-18
"""The half-width below which the inverse square overflows. Measured, TRPO trains in ±2e-19, and fails in ±1e-19."""
RESOLUTION = 1e-6
"""Half-width relative to the middle, below which float32 has too few numbers in the interval: about 16. Measured, TRPO
trains in 1 ± 2e-6, and takes no step in 1 ± 5e-7."""
NO_BOUNDS = tuple(float(np.finfo(dtype).max) for dtype in (np.float32, np.float64))
"""What authors of environments give as a bound that is none, apart from infinity."""


@dataclass(frozen=True, repr=False)
class Box(ActionSpec):
    """Continuous actions between `low` and `high` (±inf where unbounded), one number per dimension.

    The network's output 0 is the middle of the box and 1 its edge. The unit of standard deviations is the half-width.
    Arrays hold an action as a vector, whatever the shape of the space.

    low, high: the bounds of every dimension, low ≤ high. dimensions: of the space's arrays; None for a vector.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    dimensions: tuple[int, ...] | None = None

    kind = "box"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> Box | None:
        if not isinstance(space, gymnasium.spaces.Box) or 0 in space.shape:
            return None
        if not np.issubdtype(space.dtype, np.floating):
            return None
        low, high = (tuple(float(x) for x in np.ravel(bound)) for bound in (space.low, space.high))
        return cls(low, high, None if len(space.shape) == 1 else space.shape)._without_wide_bounds()

    @classmethod
    def remarks(cls, space: gymnasium.spaces.Space, nested: NestedRemarks) -> list[str]:
        assert isinstance(space, gymnasium.spaces.Box)
        found: dict[str, list[str]] = {}
        for i, (low, high) in enumerate(zip(space.low.flat, space.high.flat, strict=True)):
            remark = _remark(float(low), float(high))
            if remark is not None:
                # NumPy's numbers, which are written as short as their dtype allows.
                found.setdefault(remark, []).append(f"dimension {i} of the actions is from {low!s} to {high!s}")
        more = {remark: f" (and {len(all_) - 1} more)" if len(all_) > 1 else "" for remark, all_ in found.items()}
        return [f"{dimensions[0]}{more[remark]}{remark}" for remark, dimensions in found.items()]

    def fits(self, other: ActionSpec) -> bool:
        """Whether both are the same box; files of klimb 0.1.0 hold wide bounds as numbers."""
        return isinstance(other, Box) and self._without_wide_bounds() == other._without_wide_bounds()

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> Box:
        bounds = [fields.get(name) for name in ("low", "high")]
        if not all(map(_is_bound, bounds)) or set(fields) - {"kind", "low", "high", "shape"}:
            raise ValueError("a box of actions has lists low and high of numbers, with null where there is no bound")
        below, above = bounds
        assert isinstance(below, list)
        assert isinstance(above, list)
        if len(below) != len(above):
            raise ValueError(f"{len(below)} lower and {len(above)} upper action bounds")
        low = tuple(-np.inf if x is None else float(x) for x in below)
        high = tuple(np.inf if x is None else float(x) for x in above)
        for dimension, (smallest, largest) in enumerate(zip(low, high, strict=True)):
            if not smallest <= largest:
                raise ValueError(f"action dimension {dimension} is from {smallest} to {largest}")
        shape = fields.get("shape")
        if shape is None:
            return cls(low, high)
        whole = isinstance(shape, list) and len(shape) <= 8 and all(type(x) is int and x >= 1 for x in shape)
        if not whole or math.prod(shape) != len(low):
            raise ValueError(f"{len(low)} action bounds do not have the shape {shown(shape)}")
        return cls(low, high, tuple(shape))

    def to_json(self) -> dict[str, Any]:
        # JSON has no infinity: null stands for a missing bound.
        bounds = {"low": self.low, "high": self.high}
        shape = {} if self.dimensions is None else {"shape": list(self.dimensions)}
        given = {k: [x if np.isfinite(x) else None for x in bound] for k, bound in bounds.items()}
        return {"kind": self.kind, **given, **shape}

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.low),)

    @property
    def dtype(self) -> type[np.generic]:
        return np.float32

    @property
    def center(self) -> np.ndarray:
        """Middle of each bounded dimension, 0 where unbounded or where there is one action only."""
        low, high = (np.where(self._is_scaled, bound, 0.0) for bound in (self.low, self.high))
        return (low + high) / 2

    @property
    def half_width(self) -> np.ndarray:
        """Half the range of each bounded dimension, 1 where unbounded or where there is one action only."""
        return np.where(self._is_scaled, (np.array(self.high) - np.array(self.low)) / 2, 1.0)

    @property
    def bounded(self) -> np.ndarray:
        """Whether a dimension has both bounds, per dimension."""
        return np.isfinite(self.low) & np.isfinite(self.high)

    @property
    def _is_scaled(self) -> np.ndarray:
        """Whether the network's output is in half-widths, per dimension."""
        return self.bounded & (np.array(self.low) < np.array(self.high))

    def num_outputs(self, style: GaussianStyle) -> int:
        if style.tanh_squash:
            self._require_bounds()
        return (2 if style.state_dependent_std else 1) * len(self.low)

    @property
    def num_log_std(self) -> int:
        return len(self.low)

    def distribution(
        self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None
    ) -> DiagGaussian | TanhGaussian:
        """A Gaussian in the environment's units, or one squashed into the box.

        output: of the network, `[..., P]`. log_std: `[D]`, in half-widths.
        style: whether `output` has a second half that is added to `log_std`, to which bounds the sum is clipped, and
        whether tanh squashes. mask: not used.
        """
        import jax.numpy as jnp

        from klimb.policies.distributions import DiagGaussian, TanhGaussian

        if style.state_dependent_std:
            output, offset = jnp.split(output, 2, axis=-1)
            log_std = log_std + offset
        if style.log_std_bounds is not None:
            low, high = style.log_std_bounds
            # Not jnp.clip, whose derivative at a bound is ½. Here it is 1: a σ that is put back to its bound
            # (`NetworkPolicy.within_bounds`) has the gradient that it has just inside.
            log_std = jnp.where(log_std < low, low, jnp.where(log_std > high, high, log_std))
        if style.tanh_squash:
            log_std = jnp.broadcast_to(log_std, output.shape)
            return TanhGaussian(mean=output, log_std=log_std, low=self.low, high=self.high)
        half_width = jnp.asarray(self.half_width, output.dtype)
        mean = jnp.asarray(self.center, output.dtype) + half_width * output
        return DiagGaussian(mean=mean, log_std=jnp.broadcast_to(log_std + jnp.log(half_width), mean.shape))

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        assert log_std is not None
        low, high = self.bounds(np.float32)
        center, half_width = (np.asarray(x, np.float32) for x in (self.center, self.half_width))
        unit = 1 if style.tanh_squash else half_width
        bounds, depends = style.log_std_bounds, style.state_dependent_std
        free_std = np.exp(log_std if bounds is None or depends else np.clip(log_std, *bounds)) * unit

        def sample(output: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`: output and noise as there. mask: not used."""
            std = free_std
            if depends:
                output, offset = np.split(output, 2, axis=-1)
                std = std * np.exp(offset) if bounds is None else np.exp(np.clip(log_std + offset, *bounds)) * unit
            if style.tanh_squash:
                action = output + std * noise
                taken = center + half_width * np.tanh(action)
            else:
                action = taken = center + half_width * output + std * noise
            return action, np.minimum(np.maximum(taken, low), high)

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        array: Any = action
        return array.clip(*self.bounds(array.dtype))

    def unflatten(self, action: AnyArray) -> Any:
        array: Any = action
        return array if self.dimensions is None else array.reshape((*array.shape[:-1], *self.dimensions))

    def flatten(self, action: Any) -> np.ndarray:
        array = np.asarray(action, self.dtype)
        if self.dimensions is None:
            return array
        return array.reshape((*array.shape[: array.ndim - len(self.dimensions)], len(self.low)))

    def problem(self, action: np.ndarray) -> str | None:
        if not np.issubdtype(action.dtype, np.floating):
            return f"its actions are {action.dtype}, and those of a box are floating-point numbers"
        if action.shape[1:] != self.shape:
            return f"its actions have the shape {action.shape[1:]}, its action space has {len(self.low)} dimensions"
        return None

    def bounds(self, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds in a dtype, rounded into the box: the float32 number nearest to 0.3 is above 0.3.

        dtype: of floating-point numbers.
        """
        low, high = np.asarray(self.low, dtype), np.asarray(self.high, dtype)
        return (
            np.where(low < np.array(self.low), np.nextafter(low, high), low),
            np.where(high > np.array(self.high), np.nextafter(high, low), high),
        )

    def _without_wide_bounds(self) -> Box:
        """With no bound in place of those that are too far away to be one."""
        return Box(
            tuple(-np.inf if x <= -WIDEST else x for x in self.low),
            tuple(np.inf if x >= WIDEST else x for x in self.high),
            self.dimensions,
        )

    def _require_bounds(self) -> None:
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise UnsupportedSpace(
                    f"tanh_squash needs a bounded interval in every dimension of the actions, and dimension {i} is "
                    f"from {low} to {high}: leave it off, or bound the actions with a Gymnasium wrapper (bounds from "
                    f"{WIDEST:g} on are none)"
                )


def _remark(low: float, high: float) -> str | None:
    """What to know of actions between these bounds, and what to do about it; None where there is nothing to say."""
    if low == high:
        return ": there is nothing to learn in it; leave it out of the space, and add it in a gymnasium.ActionWrapper"
    wide = [x for x in (low, high) if WIDEST <= abs(x) < np.inf and abs(x) not in NO_BOUNDS]
    if wide:
        return (
            f": bounds from {WIDEST:g} on are treated as none, and actions begin with a standard deviation of 1; give "
            "the bounds of useful actions, or -inf and inf"
        )
    half_width, center = (high - low) / 2, (low + high) / 2
    if half_width < max(NARROWEST, RESOLUTION * abs(center)):
        return (
            ": that is too narrow for steps in float32 numbers, so that a rule may take none; rescale the actions with "
            "gymnasium.wrappers.RescaleAction"
        )
    return None


def _is_bound(values: Any) -> bool:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_DIMENSIONS:
        return False
    return all(x is None or (type(x) in (int, float) and abs(x) <= np.finfo(np.float64).max) for x in values)
