"""Discrete actions: one of n. Imports JAX only to make a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace
from klimb.policies.action_spec import ActionSpec, AnyArray, GaussianStyle, Sampler

if TYPE_CHECKING:
    from klimb.policies.distributions import Categorical

MAX_ACTIONS = 2**20


@dataclass(frozen=True)
class Discrete(ActionSpec):
    """Actions 0 … n−1, with a categorical distribution.

    n: the number of actions.
    """

    n: int

    kind = "discrete"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space) -> Discrete | None:
        if not isinstance(space, gymnasium.spaces.Discrete):
            return None
        if space.start != 0:
            raise UnsupportedSpace(
                f"discrete actions must start at 0, this space starts at {space.start}: give the environment "
                f"Discrete({space.n}), and add {space.start} in its step or in a gymnasium.ActionWrapper"
            )
        return cls(int(space.n))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Discrete:
        n = fields.get("n")
        if type(n) is not int or not 1 <= n <= MAX_ACTIONS or set(fields) - {"kind", "n"}:
            raise ValueError(f"discrete actions have a number n from 1 to {MAX_ACTIONS}")
        return cls(n)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n}

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32

    def num_outputs(self, style: GaussianStyle) -> int:
        for name, wanted in style._asdict().items():
            if wanted != style._field_defaults[name]:
                raise UnsupportedSpace(
                    f"{name} is for continuous actions, and these are {self.n} discrete ones: leave it off"
                )
        return self.n

    @property
    def num_log_std(self) -> int:
        return 0

    def distribution(self, output: Any, log_std: Any, style: GaussianStyle) -> Categorical:
        """output: the logits. log_std, style: not used."""
        from klimb.policies.distributions import Categorical

        return Categorical(logits=output)

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """log_std, style: not used."""

        def sample(logits: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`. logits: the network's outputs. noise: uniform in [0, 1)."""
            # As in `Categorical.sample_from`: inverts the cumulative sum.
            probs = np.exp(logits - logits.max(-1, keepdims=True))
            cumulative = np.cumsum(probs, axis=-1)
            action = (cumulative <= noise[..., None] * cumulative[..., -1:]).sum(-1, dtype=np.int32)
            return action, action

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        return action

    def problem(self, action: np.ndarray) -> str | None:
        if not np.issubdtype(action.dtype, np.integer):
            return f"its actions are {action.dtype}, and discrete ones are integers"
        if action.ndim != 1 or action.min() < 0 or action.max() >= self.n:
            return f"its actions are not all in 0 … {self.n - 1}"
        return None
