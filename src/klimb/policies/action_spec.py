"""What an action space means to klimb. Imports no JAX: worker processes start with it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import gymnasium.spaces
import numpy as np

if TYPE_CHECKING:
    from klimb.policies.distributions import Distribution

AnyArray = TypeVar("AnyArray")
Sampler = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(outputs `[K, n, P]`, noise `[K, n, *act]`) ↦ actions as the policy has them, and as the environment gets them."""


class GaussianStyle(NamedTuple):
    """How a network's outputs become a Gaussian. Spaces without one refuse both.

    state_dependent_std: the network has a second half of outputs, which is added to the log standard deviation.
    tanh_squash: the Gaussian goes through a tanh into the bounds, instead of being clipped.
    """

    state_dependent_std: bool = False
    tanh_squash: bool = False


class ActionSpec(abc.ABC):
    """One kind of action space: what a policy, a collector and a file have to know of it.

    A new kind is a frozen dataclass with these methods in a file of its own, and a line in `klimb.policies.actions`.
    Noise of a sample has the shape of an action. Bounds of sizes keep files from asking for more than a machine has.
    """

    kind: ClassVar[str]
    """Its name in files."""

    @classmethod
    @abc.abstractmethod
    def from_space(cls, space: gymnasium.spaces.Space) -> ActionSpec | None:
        """The spec of a Gymnasium space; None when the space is of another kind."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any]) -> ActionSpec:
        """The inverse of `to_json`. ValueError, which says what is wrong, for anything else."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data with the key `kind`."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one action."""

    @property
    @abc.abstractmethod
    def dtype(self) -> type[np.generic]:
        """Of actions in arrays."""

    @abc.abstractmethod
    def num_outputs(self, style: GaussianStyle) -> int:
        """Outputs of the network that the distribution is made of. UnsupportedSpace for a style it can't have."""

    @property
    @abc.abstractmethod
    def num_log_std(self) -> int:
        """Log standard deviations that are parameters of their own, beside the network's outputs; 0 for none."""

    @abc.abstractmethod
    def distribution(self, output: Any, log_std: Any, style: GaussianStyle) -> Distribution:
        """The distribution of a network's outputs `[..., P]` and the log standard deviations `[num_log_std]`."""

    @abc.abstractmethod
    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """What `distribution` and its `sample_from` do, in NumPy, for collectors of host environments.

        log_std: `[num_log_std]`, or with an axis of K seeds before it; None where there are none.
        """

    @abc.abstractmethod
    def clip(self, action: AnyArray) -> AnyArray:
        """The action that the environment gets: bounds applied. A JAX or NumPy array with any leading axes.

        Policies sample from unbounded distributions and are trained on what they sampled; only the environment sees
        the clipped value.
        """

    @abc.abstractmethod
    def problem(self, action: np.ndarray) -> str | None:
        """What is wrong with recorded actions `[R, *act]`, in a few words; None when they are of this space."""
