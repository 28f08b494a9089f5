"""The interface of action spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import gymnasium.spaces
import numpy as np

from klimb.errors import ConfigError

if TYPE_CHECKING:
    from klimb.policies.distributions import Distribution

AnyArray = TypeVar("AnyArray")
Sampler = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(outputs `[K, n, P]`, noise `[K, n, *act]`) ↦ (the policy's actions, the actions for the environment)."""


class GaussianStyle(NamedTuple):
    """How a network's outputs become a Gaussian. All fields have to be their defaults for spaces without one.

    state_dependent_std: a second half of the network's outputs is added to the log standard deviation.
    tanh_squash: actions are squashed into the bounds by tanh, instead of being clipped.
    log_std_bounds: minimum and maximum log standard deviation, to which it is clipped; None for no bounds. Its unit is
    the half-width of the box; with `tanh_squash` it is that of the Gaussian before the tanh.
    """

    state_dependent_std: bool = False
    tanh_squash: bool = False
    log_std_bounds: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data. `log_std_bounds` is left out where there are none: an earlier klimb then reads the file."""
        fields = self._asdict()
        if self.log_std_bounds is None:
            del fields["log_std_bounds"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GaussianStyle:
        """The inverse of `to_json`.

        fields: as `to_json` returned them, and JSON may have made a list of a tuple.
        """
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    def require_valid(self, initial_log_std: float) -> None:
        """ConfigError unless the bounds are in order and the initial value is within them.

        initial_log_std: log standard deviation that a policy starts with.
        """
        if self.log_std_bounds is None:
            return
        low, high = self.log_std_bounds
        if not low < high:
            raise ConfigError(
                f"log_std_bounds = ({low}, {high}): the first is the minimum log standard deviation and has to be "
                "smaller than the second, the maximum"
            )
        if not low <= initial_log_std <= high:
            raise ConfigError(
                f"initial_log_std = {initial_log_std} is outside log_std_bounds = ({low}, {high}), where the gradient "
                "with respect to σ is zero: choose an initial value within the bounds"
            )


class ActionSpec(abc.ABC):
    """One kind of action space: what policies, collectors and files need of it.

    A new kind is a frozen dataclass with these methods in a file of its own, and a line in `klimb.policies.actions`.
    The noise of a sample has the shape of an action. `from_json` bounds sizes, because files may be malicious.
    """

    kind: ClassVar[str]
    """The kind's name in files."""

    @classmethod
    @abc.abstractmethod
    def from_space(cls, space: gymnasium.spaces.Space) -> ActionSpec | None:
        """The spec of a Gymnasium space; None if the space is of another kind.

        space: any Gymnasium space. Raises UnsupportedSpace for a space of this kind that klimb does not support.
        """

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any]) -> ActionSpec:
        """The inverse of `to_json`.

        fields: as read from a file. Raises ValueError, which says what is wrong, for anything else.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data with the key `kind`."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one action."""

    @property
    @abc.abstractmethod
    def dtype(self) -> type[np.generic]:
        """The dtype of actions in arrays."""

    @abc.abstractmethod
    def num_outputs(self, style: GaussianStyle) -> int:
        """P, the number of network outputs that the distribution needs.

        style: of a Gaussian. Raises UnsupportedSpace if the space does not support it.
        """

    @property
    @abc.abstractmethod
    def num_log_std(self) -> int:
        """Number of log standard deviations that are parameters of the policy, apart from the network; 0 for none."""

    @abc.abstractmethod
    def distribution(self, output: Any, log_std: Any, style: GaussianStyle) -> Distribution:
        """The distribution over actions.

        output: of the network, `[..., P]`. log_std: `[num_log_std]`; None if that is 0. style: of a Gaussian.
        """

    @abc.abstractmethod
    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        """`distribution` and its `sample_from` in NumPy, for collectors of host environments.

        log_std: `[num_log_std]`, or with a leading axis of K seeds; None if there are none. style: of a Gaussian.
        """

    @abc.abstractmethod
    def clip(self, action: AnyArray) -> AnyArray:
        """The action for the environment, clipped to the bounds.

        Policies sample from unbounded distributions and are trained on their own samples; only the environment gets
        the clipped value.

        action: a JAX or NumPy array with any leading axes.
        """

    @abc.abstractmethod
    def problem(self, action: np.ndarray) -> str | None:
        """What is wrong with recorded actions, in a few words; None if they are of this space.

        action: `[R, *act]`, as read from a file.
        """
