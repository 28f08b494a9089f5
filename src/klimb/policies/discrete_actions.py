"""Discrete actions: one of n. Imports JAX only to make a distribution."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from klimb.policies.distributions import Categorical

MAX_ACTIONS = 2**20
MAX_START = 2**30


@dataclass(frozen=True, repr=False)
class Discrete(ActionSpec):
    """One of n actions, with a categorical distribution. Arrays hold 0 … n−1, environments get `start` more.

    n: the number of actions. start: the first of them, as the environment counts.
    """

    n: int
    start: int = 0

    kind = "discrete"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> Discrete | None:
        if not isinstance(space, gymnasium.spaces.Discrete):
            return None
        return cls(int(space.n), int(space.start))

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> Discrete:
        n, start = fields.get("n"), fields.get("start", 0)
        if type(n) is not int or not 1 <= n <= MAX_ACTIONS or set(fields) - {"kind", "n", "start"}:
            raise ValueError(f"discrete actions have a number n from 1 to {MAX_ACTIONS}")
        if type(start) is not int or abs(start) > MAX_START:
            raise ValueError(f"discrete actions have a first number, start, between ±{MAX_START}")
        return cls(n, start)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n} | ({"start": self.start} if self.start else {})

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32

    @property
    def choices(self) -> tuple[int, ...]:
        return (self.n,)

    def num_outputs(self, style: GaussianStyle) -> int:
        require_no_gaussian(style, f"{self.n} discrete ones")
        return self.n

    @property
    def num_log_std(self) -> int:
        return 0

    def distribution(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None) -> Categorical:
        """output: the logits. log_std, style: not used. mask: which actions are allowed, `[..., n]`."""
        import jax.numpy as jnp

        from klimb.policies.distributions import Categorical

        return Categorical(logits=output if mask is None else jnp.where(mask, output, -jnp.inf))

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """log_std, style: not used."""

        def sample(logits: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`. logits: the network's outputs. noise: uniform in [0, 1)."""
            action = chosen(logits if mask is None else np.where(mask, logits, -np.inf), noise)
            return action, action

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        return action

    def unflatten(self, action: AnyArray) -> Any:
        array: Any = action
        return array + self.start if self.start else array

    def flatten(self, action: Any) -> np.ndarray:
        return np.asarray(np.asarray(action) - self.start, self.dtype)

    def problem(self, action: np.ndarray) -> str | None:
        if not np.issubdtype(action.dtype, np.integer):
            return f"its actions are {action.dtype}, and discrete ones are integers"
        if action.ndim != 1 or action.min() < 0 or action.max() >= self.n:
            return f"its actions are not all in 0 … {self.n - 1}"
        return None


def chosen(logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The choices that noise makes, as in `Categorical.sample_from`: by inverting the cumulative sum.

    logits: `[..., n]`, −inf where a choice is not allowed, but not everywhere. noise: uniform in [0, 1), `[...]`.
    """
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    cumulative = np.cumsum(probs, axis=-1)
    return (cumulative <= noise[..., None] * cumulative[..., -1:]).sum(-1, dtype=np.int32)
