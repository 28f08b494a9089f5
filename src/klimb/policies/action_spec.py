"""The interface of action spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import gymnasium.spaces
import numpy as np

from klimb.errors import ConfigError, UnsupportedSpace
from klimb.policies.layers import MemoryKind

if TYPE_CHECKING:
    from klimb.policies.distributions import Distribution

Exploration = Literal["independent", "gsde"]
EXPLORATION_VARIANCE = 1e-6
"""ε of gSDE, in half-widths squared: the variance of one action where all features are zero. Part of the noise, too."""

AnyArray = TypeVar("AnyArray")
NestedSpec = Callable[[gymnasium.spaces.Space], "ActionSpec"]
NestedRemarks = Callable[[gymnasium.spaces.Space], list[str]]
NestedJson = Callable[[Any], "ActionSpec"]
Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]
"""(outputs `[K, n, P]`, noise `[K, n, *act]`, which choices are allowed `[K, n, num_choices]` or None for all of them)
↦ (the policy's actions, the actions for the environment)."""


class GaussianStyle(NamedTuple):
    """How a network's outputs become a Gaussian. All fields have to be their defaults for spaces without one.

    state_dependent_std: a second half of the network's outputs is added to the log standard deviation.
    tanh_squash: actions are squashed into the bounds by tanh, instead of being clipped.
    log_std_bounds: minimum and maximum log standard deviation, to which it is clipped; None for no bounds. Its unit is
    the half-width of the box; with `tanh_squash` it is that of the Gaussian before the tanh.
    exploration: independent for noise that is independent at every step; gsde for noise that is a linear function of
    the network's last hidden features (`klimb.policies.exploration`), which determine the standard deviation too.
    """

    state_dependent_std: bool = False
    tanh_squash: bool = False
    log_std_bounds: tuple[float, float] | None = None
    exploration: Exploration = "independent"

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what `added` would name if it had another value than its default."""
        return {name: value for name, value in self._asdict().items() if name in self.added or name not in _ADDED}

    @property
    def added(self) -> list[str]:
        """The fields that an earlier klimb does not know, of those that have another value than their default."""
        return [name for name in _ADDED if getattr(self, name) != self._field_defaults[name]]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GaussianStyle:
        """The inverse of `to_json`.

        fields: as `to_json` returned them, and JSON may have made a list of a tuple.
        """
        plain: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        return cls(**plain)

    def require_valid(self, initial_log_std: float, hidden: Sequence[int] | None, memory: MemoryKind | None) -> None:
        """ConfigError unless the fields fit together, and a policy with these bounds can start with this value.

        initial_log_std: log standard deviation that a policy starts with. hidden: sizes of its hidden layers, None
        for those that suit its observations. memory:
        kind of its recurrent layer.
        """
        if self.exploration == "gsde":
            if memory is not None:
                raise ConfigError(
                    "exploration = gsde makes noise from what the policy sees, and not from what it remembers: leave "
                    "memory or gsde out"
                )
            if self.state_dependent_std:
                raise ConfigError(
                    "exploration = gsde computes the standard deviation from the hidden features: leave "
                    "state_dependent_std off"
                )
            if hidden is not None and len(hidden) == 0:
                raise ConfigError(
                    "exploration = gsde is noise in the features of the last hidden layer, and the network has none: "
                    "give hidden a layer"
                )
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


def require_no_gaussian(style: GaussianStyle, actions: str) -> None:
    """UnsupportedSpace where an option of Gaussians is given for actions that have none.

    style: as given. actions: what they are, for the message.
    """
    for name, given in style._asdict().items():
        if given != style._field_defaults[name]:
            raise UnsupportedSpace(f"{name} is for continuous actions, and these are {actions}: leave it off")


_ADDED = ("log_std_bounds", "exploration")
"""The fields of `GaussianStyle` that policy files have had since version 4."""


class ActionSpec(abc.ABC):
    """One kind of action space: what policies, collectors and files need of it.

    A new kind is a frozen dataclass (with `repr=False`) with these methods in a file of its own, and a line in
    `klimb.policies.actions`.
    The noise of a sample has the shape of an action. `from_json` bounds sizes, because files may be malicious.
    """

    kind: ClassVar[str]
    """The kind's name in files."""

    def __repr__(self) -> str:
        """The class and the fields that are not the default."""
        own = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={x!r}' for name, x, default in own if x != default)})"

    @classmethod
    @abc.abstractmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> ActionSpec | None:
        """The spec of a Gymnasium space; None if the space is of another kind.

        space: any Gymnasium space. nested: the spec of a space within it. Raises UnsupportedSpace for a space of this
        kind that klimb does not support.
        """

    @classmethod
    def remarks(cls, space: gymnasium.spaces.Space, nested: NestedRemarks) -> list[str]:
        """What about a space of this kind can't be learned, or is taken otherwise than it says: one line each.

        space: for which `from_space` returns a spec. nested: the remarks about a space within it.
        """
        return []

    def fits(self, other: ActionSpec) -> bool:
        """Whether a policy for these actions can act in an environment with others. other: of the environment."""
        return self == other

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> ActionSpec:
        """The inverse of `to_json`.

        fields: as read from a file. nested: reads the fields of an action within it. Raises ValueError, which says what
        is wrong, for anything else.
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

    @property
    def size(self) -> int:
        """The number of elements of one action."""
        return math.prod(self.shape)

    @property
    def is_integer(self) -> bool:
        """Whether actions in arrays are integers: numbers of choices."""
        return issubclass(self.dtype, np.integer)

    @property
    def choices(self) -> tuple[int, ...]:
        """The numbers of choices of all discrete parts, in order; an action mask has a flag for each choice."""
        return ()

    @property
    def num_choices(self) -> int:
        """The flags of an action mask; 0 where actions have no discrete part."""
        return sum(self.choices)

    def blocked(self, mask: np.ndarray) -> int | None:
        """Which discrete part has no choice that is allowed, in the order of `choices`; None where each has one.

        mask: flags, `[..., num_choices]`, of one action or of several.
        """
        sizes = np.array(self.choices)
        allowed = np.add.reduceat(np.asarray(mask) > 0, np.cumsum(sizes) - sizes, axis=-1)
        blocked = np.argwhere(~allowed.astype(bool))
        return int(blocked[0, -1]) if len(blocked) else None

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
    def distribution(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None) -> Distribution:
        """The distribution over actions.

        output: of the network, `[..., P]`. log_std: `[num_log_std]`, or with the leading axes of `output`; None if
        `num_log_std` is 0. style: of a Gaussian. mask: which choices are allowed, `[..., num_choices]`; None for all.
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

    def unflatten(self, action: AnyArray) -> Any:
        """The action as the space has it: with its structure, shapes and first numbers.

        action: `[..., *act]`, clipped; a JAX or NumPy array. In NumPy the result has the space's own dtypes.
        """
        return action

    def flatten(self, action: Any) -> np.ndarray:
        """The inverse of `unflatten` in NumPy, `[..., *act]`.

        action: as the space has it, with any leading axes.
        """
        return np.asarray(action, self.dtype)

    @abc.abstractmethod
    def problem(self, action: np.ndarray) -> str | None:
        """What is wrong with recorded actions, in a few words; None if they are of this space.

        action: `[R, *act]`, as read from a file.
        """
