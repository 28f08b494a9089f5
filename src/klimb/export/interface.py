"""What an exported policy reads and returns: the names, shapes and dtypes of its arrays, the same in all formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from klimb.errors import ConfigError, shown
from klimb.policies.action_spec import ActionSpec
from klimb.policies.observation_parts import MaskedObservations, PartsObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.product_actions import ProductActions

OBS, MASK, CARRY, NEXT_CARRY = "obs", "action_mask", "carry", "next_carry"


@dataclass(frozen=True)
class Inputs:
    """The arrays that an exported policy reads. Each has a leading axis of B observations.

    observations: of the policy. remembered: C, how many numbers the policy remembers from step to step; None without
    memory.
    """

    observations: ObservationSpec
    remembered: int | None

    @property
    def seen(self) -> ObservationSpec:
        """The observations without their mask, and without the parts that only the critic sees."""
        return visible(self.observations.encoded)

    @property
    def columns(self) -> np.ndarray | None:
        """Where in the policy's own vectors the numbers of `seen` stand, `[O]`; None where they are the first ones."""
        columns = self.observations.columns
        return None if columns is None else np.array(columns, np.int32)

    @property
    def num_choices(self) -> int:
        """C, the flags of the action mask; 0 where there is none."""
        return self.observations.choices if isinstance(self.observations, MaskedObservations) else 0

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """From the name of an array to its shape, without the axis of observations, and its dtype."""
        arrays: dict[str, tuple[tuple[int, ...], Any]] = {OBS: (self.seen.shape, self.seen.dtype)}
        if self.num_choices:
            arrays[MASK] = ((self.num_choices,), bool)
        if self.remembered is not None:
            arrays[CARRY] = ((self.remembered,), np.float32)
        return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}


def visible(observations: ObservationSpec) -> ObservationSpec:
    """Observations without the parts that only the critic sees.

    observations: without an action mask.
    """
    if not isinstance(observations, PartsObservations):
        return observations
    names = observations.names or (None,) * len(observations.parts)
    seen = [
        (name, part)
        for name, part in zip(names, observations.parts, strict=True)
        if name not in observations.critic_only
    ]
    parts = tuple(part for _, part in seen)
    return PartsObservations(parts, None if observations.names is None else tuple(str(name) for name, _ in seen))


@dataclass(frozen=True)
class Head:
    """One action without parts: all of an action, or a part of a Dict or Tuple.

    name: of the part, with those around it before it, "arm.gripper"; empty for an action that has no parts.
    """

    name: str
    actions: ActionSpec

    def named(self, what: str) -> str:
        """The name of an array of this head. what: such as "action"."""
        return f"{what}.{self.name}" if self.name else what


def heads_of(actions: ActionSpec, name: str = "") -> Iterator[Head]:
    """The actions without parts in an action, in the order in which arrays hold them.

    actions: any. name: of the part that they are.
    """
    if not isinstance(actions, ProductActions):
        yield Head(name, actions)
        return
    names = map(str, range(len(actions.parts))) if actions.names is None else actions.names
    for own, part in zip(names, actions.parts, strict=True):
        yield from heads_of(part, f"{name}.{own}" if name else own)


def require_names(actions: ActionSpec) -> None:
    """ConfigError where two parts of an action would have one name, or one has none. actions: any."""
    names = [head.name for head in heads_of(actions)]
    if len(names) > 1 and (len(set(names)) < len(names) or not all(part for name in names for part in name.split("."))):
        raise ConfigError(
            f"the parts of the actions have the names {shown(names, 200)}, which have to differ and may not be empty: "
            "rename them in the action space"
        )


def flat_actions(action: Any, actions: ActionSpec) -> dict[str, Any]:
    """An action as the space has it, by the names of arrays: "action", or "action.PART" for every part.

    action: of a Dict or Tuple, a dictionary or tuple of arrays. actions: its spec.
    """

    def leaves(action: Any, actions: ActionSpec) -> Iterator[Any]:
        if not isinstance(actions, ProductActions):
            yield action
            return
        own = action if actions.names is None else [action[name] for name in actions.names]
        for value, part in zip(own, actions.parts, strict=True):
            yield from leaves(value, part)

    values = zip(heads_of(actions), leaves(action, actions), strict=True)
    return {head.named("action"): value for head, value in values}
