"""Several switches at once: MultiBinary spaces. Imports JAX only to make a distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium.spaces
import numpy as np

from klimb.policies.action_spec import (
    ActionSpec,
    AnyArray,
    GaussianStyle,
    NestedJson,
    NestedSpec,
    Sampler,
    require_no_gaussian,
)
from klimb.policies.discrete_actions import chosen
from klimb.policies.multi_discrete_actions import as_rows, in_space

if TYPE_CHECKING:
    from klimb.policies.products import MultiCategorical

MAX_SWITCHES = 2**16


@dataclass(frozen=True, repr=False)
class MultiBinary(ActionSpec):
    """H switches, each 0 or 1, with independent Bernoulli distributions.

    The network has one output for a switch, the log odds of 1; the logit of 0 is 0. A mask has two flags for each.

    dimensions: of the space's arrays, H elements.
    """

    dimensions: tuple[int, ...]

    kind = "multi_binary"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> MultiBinary | None:
        return cls(tuple(map(int, space.shape))) if isinstance(space, gymnasium.spaces.MultiBinary) else None

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> MultiBinary:
        shape = fields.get("shape")
        whole = isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(x) is int and x >= 1 for x in shape)
        if not whole or set(fields) - {"kind", "shape"} or math.prod(shape) > MAX_SWITCHES:  # type: ignore[arg-type]
            raise ValueError(f"switches have a shape, a list of positive integers, of at most {MAX_SWITCHES} elements")
        return cls(tuple(shape))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.dimensions)}

    @property
    def shape(self) -> tuple[int, ...]:
        return (math.prod(self.dimensions),)

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32

    @property
    def choices(self) -> tuple[int, ...]:
        return (2,) * self.size

    def num_outputs(self, style: GaussianStyle) -> int:
        require_no_gaussian(style, f"{self.size} switches")
        return self.size

    @property
    def num_log_std(self) -> int:
        return 0

    def distribution(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None) -> MultiCategorical:
        """output: the log odds. log_std, style: not used. mask: whether 0, then 1, is allowed for every switch."""
        import jax.numpy as jnp

        from klimb.policies.products import MultiCategorical

        logits = jnp.stack([jnp.zeros_like(output), output], axis=-1)
        if mask is not None:
            logits = jnp.where(jnp.reshape(mask, logits.shape), logits, -jnp.inf)
        return MultiCategorical(logits=logits)

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """log_std, style: not used."""

        def sample(output: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`. noise: uniform in [0, 1)."""
            logits = np.stack([np.zeros_like(output), output], axis=-1)
            if mask is not None:
                logits = np.where(mask.reshape(logits.shape), logits, -np.inf)
            action = chosen(logits, noise)
            return action, action

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        return action

    def unflatten(self, action: AnyArray) -> Any:
        return in_space(action, np.zeros(1, np.int64), self.dimensions, "int8")

    def flatten(self, action: Any) -> np.ndarray:
        return as_rows(action, self.dimensions).astype(self.dtype)

    def problem(self, action: np.ndarray) -> str | None:
        if not np.issubdtype(action.dtype, np.integer):
            return f"its actions are {action.dtype}, and switches are integers"
        if action.shape[1:] != self.shape:
            return f"its actions have the shape {action.shape[1:]}, and its action space {self.size} switches"
        if not np.isin(action, (0, 1)).all():
            return "its actions are not all 0 or 1"
        return None
