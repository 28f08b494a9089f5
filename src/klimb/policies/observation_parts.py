"""Observations of several parts: Dict and Tuple spaces, and vectors with an action mask. Imports no JAX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from klimb.errors import ConfigError, nearest, shown
from klimb.policies.observation_kinds import as_numbers, require_shape
from klimb.policies.observation_spec import MAX_SIZE, NestedJson, ObservationSpec

MAX_PARTS, MAX_NAME = 1024, 256
ACTION_MASK = "action_mask"
"""The part of Dict observations that holds the action mask."""


@dataclass(frozen=True)
class PartsObservations(ObservationSpec):
    """The parts of a Dict or Tuple, one after the other in one vector, in the order of the space.

    parts: each of them a vector, or pictures, of which vectors are made. names: of the parts of a Dict; None for a
    Tuple. critic_only: names of the parts that a policy with this spec does not see.
    """

    parts: tuple[ObservationSpec, ...]
    names: tuple[str, ...] | None
    critic_only: tuple[str, ...] = ()

    kind = "parts"

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.size for part in self.parts),)

    @property
    def scaled(self) -> tuple[bool, ...]:
        return tuple(itertools.chain.from_iterable(part.scaled for part in self.parts))

    @property
    def columns(self) -> tuple[int, ...] | None:
        if not self.critic_only:
            return None
        seen = [range(start, start + part.size) for part, start in self.placed]
        return tuple(itertools.chain.from_iterable(seen))

    @property
    def placed(self) -> tuple[tuple[ObservationSpec, int], ...]:
        starts = itertools.accumulate((part.size for part in self.parts), initial=0)
        names = (None,) * len(self.parts) if self.names is None else self.names
        every = zip(names, self.parts, starts, strict=False)
        return tuple((part, start) for name, part, start in every if name not in self.critic_only)

    def hiding(self, names: tuple[str, ...]) -> PartsObservations:
        if self.names is None:
            super().hiding(names)
            raise AssertionError("the class above raises")
        for name in names:
            if name not in self.names:
                raise ConfigError(
                    f"critic_observes = {shown(name, 40)} is no part of the observations, which are "
                    f"{shown(list(self.names), 200)}{nearest(name, self.names)}"
                )
        if set(names) == set(self.names):
            raise ConfigError("critic_observes names all parts of the observations: leave the policy one to see")
        return replace(self, critic_only=tuple(name for name in self.names if name in names))

    def to_json(self) -> dict[str, Any]:
        names = {} if self.names is None else {"names": list(self.names)}
        hidden = {"critic_only": list(self.critic_only)} if self.critic_only else {}
        return {"kind": self.kind, "parts": [part.to_json() for part in self.parts], **names, **hidden}

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> PartsObservations:
        parts, names, hidden = fields.get("parts"), fields.get("names"), fields.get("critic_only", [])
        if not isinstance(parts, list) or not 1 <= len(parts) <= MAX_PARTS:
            raise ValueError(f"observations of several parts have a list of 1 to {MAX_PARTS} parts")
        if set(fields) - {"kind", "parts", "names", "critic_only"} or not _are_names(names, len(parts)):
            raise ValueError("the names of parts of observations are one for each, and no two are equal")
        named = {name for name in names or () if name in hidden} if isinstance(hidden, list) else set()
        if not isinstance(hidden, list) or len(named) != len(hidden) or len(hidden) >= len(parts):
            raise ValueError("critic_only names some of the parts of observations, and not all")
        spec = cls(tuple(map(nested, parts)), None if names is None else tuple(names), tuple(hidden))
        if spec.size > MAX_SIZE or any(len(part.shape) != 1 and part.kind != "picture" for part in spec.parts):
            raise ValueError(f"parts of observations are vectors or pictures, of at most {MAX_SIZE} numbers together")
        return spec

    def flatten(self, obs: Any) -> np.ndarray:
        """obs: a dictionary, which may lack parts that the policy does not see, or a tuple; or a vector."""
        if self.names is None:
            if not isinstance(obs, tuple) or len(obs) != len(self.parts):
                return require_shape(as_numbers(obs, self.shape), self.shape)
            own = [_vectors(part, x) for part, x in zip(self.parts, obs, strict=True)]
        else:
            if not isinstance(obs, Mapping):
                return require_shape(as_numbers(obs, self.shape), self.shape)
            missing = [name for name in self.names if name not in obs and name not in self.critic_only]
            if missing:
                raise ConfigError(f"the observation has no part {shown(missing[0], 40)}, which the policy reads")
            own = [
                np.zeros(part.size, self.dtype) if name in self.critic_only else _vectors(part, obs[name])
                for name, part in zip(self.names, self.parts, strict=True)
            ]
        lead = np.broadcast_shapes(*(x.shape[:-1] for x in own))
        return np.concatenate([np.broadcast_to(x, (*lead, x.shape[-1])) for x in own], axis=-1, dtype=self.dtype)

    def row(self, obs: Any, xp: Any) -> Any:
        own = obs if self.names is None else [obs[name] for name in self.names]
        rows = [xp.ravel(part.row(x, xp)) for part, x in zip(self.parts, own, strict=True)]
        return xp.concatenate([xp.asarray(row, dtype=self.dtype) for row in rows])


@dataclass(frozen=True)
class MaskedObservations(ObservationSpec):
    """Vectors whose last numbers are an action mask: 1 where a choice is allowed and 0 where it is not.

    observed: what is before it, which networks read: a vector, or pictures, of which vectors are made. choices: flags
    of the mask (`ActionSpec.num_choices`).
    """

    observed: ObservationSpec
    choices: int

    kind = "masked"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.observed.size + self.choices,)

    @property
    def scaled(self) -> tuple[bool, ...]:
        return (*self.observed.scaled, *(False,) * self.choices)

    @property
    def encoded(self) -> ObservationSpec:
        return self.observed

    @property
    def columns(self) -> tuple[int, ...] | None:
        return self.observed.columns

    @property
    def placed(self) -> tuple[tuple[ObservationSpec, int], ...]:
        return ((self.observed, 0),)

    def hiding(self, names: tuple[str, ...]) -> MaskedObservations:
        return replace(self, observed=self.observed.hiding(names))

    def mask(self, obs: Any) -> Any:
        return obs[..., self.observed.size :] > 0.5

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "observed": self.observed.to_json(), "choices": self.choices}

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> MaskedObservations:
        observed, choices = fields.get("observed"), fields.get("choices")
        if type(choices) is not int or not 1 <= choices <= MAX_SIZE or set(fields) - {"kind", "observed", "choices"}:
            raise ValueError(f"observations with an action mask have a number of choices from 1 to {MAX_SIZE}")
        inner = nested(observed)
        if isinstance(inner, MaskedObservations) or (len(inner.shape) != 1 and inner.kind != "picture"):
            raise ValueError("observations with an action mask are vectors or pictures before it")
        return cls(inner, choices)

    def flatten(self, obs: Any) -> np.ndarray:
        """obs: a dictionary with the mask as its part `action_mask`, or a vector with the mask at its end."""
        if isinstance(obs, Mapping):
            if ACTION_MASK not in obs:
                raise ConfigError(NEEDS_MASK)
            return self.with_mask({name: part for name, part in obs.items() if name != ACTION_MASK}, obs[ACTION_MASK])
        rows = as_numbers(obs, self.shape)
        if rows.shape[-1:] == (self.observed.size,):
            raise ConfigError(NEEDS_MASK)
        return require_shape(rows, self.shape)

    def row(self, obs: Any, xp: Any) -> Any:
        """obs: what is observed, and the flags of the mask."""
        observed, mask = obs
        rows = xp.ravel(self.observed.row(observed, xp)), xp.ravel(xp.asarray(mask))
        return xp.concatenate([xp.asarray(row, dtype=self.dtype) for row in rows])

    def with_mask(self, obs: Any, mask: Any) -> np.ndarray:
        """Observations with their masks, as arrays hold them.

        obs: without a mask, as the space has them. mask: flags of the choices, in one axis or
        several, with the same leading axes.
        """
        rows, flags = _vectors(self.observed, obs), as_numbers(mask, (self.choices,))
        lead = rows.shape[:-1]
        if flags.shape[: len(lead)] != lead or flags.size != math.prod(lead) * self.choices:
            raise ConfigError(
                f"the action mask has the shape {flags.shape}, and {(*lead, self.choices)} is expected: "
                "a flag for each choice, for every observation"
            )
        # Some libraries arrange the flags of several numbers, or of their combinations, in rows and columns.
        flags = flags.reshape(*lead, self.choices)
        return np.concatenate([rows, flags], axis=-1, dtype=self.dtype)


def _vectors(part: ObservationSpec, obs: Any) -> np.ndarray:
    """Observations of a part as vectors, `[..., size]`."""
    rows = part.flatten(obs)
    return rows if len(part.shape) == 1 else rows.reshape(*rows.shape[: rows.ndim - len(part.shape)], part.size)


NEEDS_MASK = (
    "the policy was trained with an action mask, and needs it: give action_mask=, for example "
    'info["action_mask"] as reset and step return it'
)


def _are_names(names: Any, count: int) -> bool:
    """Whether these are names of so many parts, or None."""
    if names is None:
        return True
    named = isinstance(names, list) and all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
    return named and len(names) == len(set(names)) == count
