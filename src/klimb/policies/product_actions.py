"""Actions of several parts: Dict and Tuple spaces, nested to any depth. Imports JAX only to make a distribution."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace, one_line, shown
from klimb.policies.action_spec import (
    ActionSpec,
    AnyArray,
    GaussianStyle,
    NestedJson,
    NestedRemarks,
    NestedSpec,
    Sampler,
    require_no_gaussian,
)

if TYPE_CHECKING:
    from klimb.policies.products import Product

MAX_PARTS = 1024
MAX_NAME = 256


@dataclass(frozen=True, repr=False)
class ProductActions(ActionSpec):
    """Several actions at once, of any kinds, with independent distributions: discrete and continuous ones together.

    An array holds the actions of the parts one after the other: int32 if all of them are discrete, else float32, which
    holds whole numbers for choices. A mask has the flags of the parts one after the other. The parts of a Dict are
    ordered by name, whatever order the space has.

    parts: the actions. names: of the parts of a Dict, in order; None for a Tuple.
    """

    parts: tuple[ActionSpec, ...]
    names: tuple[str, ...] | None

    kind = "product"

    @classmethod
    def from_space(cls, space: gymnasium.spaces.Space, nested: NestedSpec) -> ProductActions | None:
        found = parts_of(space)
        if found is None:
            return None
        names, spaces = found
        if not spaces:
            raise UnsupportedSpace(f"the action space {one_line(space, 200)} has no parts: there is nothing to decide")
        return cls(tuple(map(nested, spaces)), names)

    @classmethod
    def remarks(cls, space: gymnasium.spaces.Space, nested: NestedRemarks) -> list[str]:
        names, spaces = parts_of(space) or (None, ())
        return [
            f"part {shown(name, 40)}: {remark}"
            for name, own in zip(names or range(len(spaces)), spaces, strict=True)
            for remark in nested(own)
        ]

    def fits(self, other: ActionSpec) -> bool:
        """Whether every part fits the part of the same name."""
        if not isinstance(other, ProductActions) or (self.names, len(self.parts)) != (other.names, len(other.parts)):
            return False
        return all(part.fits(its) for part, its in zip(self.parts, other.parts, strict=True))

    @classmethod
    def from_json(cls, fields: dict[str, Any], nested: NestedJson) -> ProductActions:
        parts, names = fields.get("parts"), fields.get("names")
        if not isinstance(parts, list) or not 1 <= len(parts) <= MAX_PARTS or set(fields) - {"kind", "parts", "names"}:
            raise ValueError(f"actions of several parts have a list of 1 to {MAX_PARTS} parts")
        if names is None:
            return cls(tuple(map(nested, parts)), None)
        named = isinstance(names, list) and all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
        if not named or len(names) != len(parts) or sorted(set(names)) != names:
            raise ValueError("the names of actions of several parts are one for each, in order, and no two are equal")
        return cls(tuple(map(nested, parts)), tuple(names))

    def to_json(self) -> dict[str, Any]:
        names = {} if self.names is None else {"names": list(self.names)}
        return {"kind": self.kind, "parts": [part.to_json() for part in self.parts], **names}

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.size for part in self.parts),)

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32 if all(part.is_integer for part in self.parts) else np.float32

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(itertools.chain.from_iterable(part.choices for part in self.parts))

    def num_outputs(self, style: GaussianStyle) -> int:
        if self.num_log_std == 0:
            require_no_gaussian(style, "discrete ones")
        if style.exploration == "gsde":
            raise UnsupportedSpace(
                "exploration = gsde is for actions that are one Box, and these have several parts: leave it off"
            )
        return sum(part.num_outputs(own) for part, own in zip(self.parts, self._styles(style), strict=True))

    @property
    def num_log_std(self) -> int:
        return sum(part.num_log_std for part in self.parts)

    def distribution(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any = None) -> Product:
        """output, log_std, mask: those of the parts, one after the other."""
        from klimb.policies.products import Columns, Product

        return Product(
            tuple(
                part.distribution(own, std, its, flags)
                for part, (own, std, its, flags) in zip(
                    self.parts, self._shares(output, log_std, style, mask), strict=True
                )
            ),
            tuple(Columns(part.size if part.shape else None, part.is_integer) for part in self.parts),
        )

    def numpy_sampler(self, log_std: np.ndarray | None, style: GaussianStyle) -> Sampler:
        stds = _cut(log_std, [part.num_log_std for part in self.parts])
        samplers = [
            part.numpy_sampler(std, own) for part, std, own in zip(self.parts, stds, self._styles(style), strict=True)
        ]
        outputs = [part.num_outputs(own) for part, own in zip(self.parts, self._styles(style), strict=True)]
        choices = [part.num_choices for part in self.parts]

        def sample(output: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            """The `Sampler`: that of the parts, one after the other."""
            sampled = [
                sampler(own, drawn, flags)
                for sampler, own, drawn, flags in zip(
                    samplers, _cut(output, outputs), self._split(noise), _cut(mask, choices), strict=True
                )
            ]
            actions, taken = zip(*sampled, strict=True)
            return self._joined(actions), self._joined(taken)

        return sample

    def clip(self, action: AnyArray) -> AnyArray:
        own = [part.clip(x) for part, x in zip(self.parts, self._split(action), strict=True)]
        if isinstance(action, np.ndarray):
            return self._joined(own)  # type: ignore[return-value]
        import jax.numpy as jnp

        columns = [x if part.shape else x[..., None] for part, x in zip(self.parts, own, strict=True)]
        return jnp.concatenate(columns, axis=-1)  # type: ignore[return-value]

    def unflatten(self, action: AnyArray) -> Any:
        own = [
            part.unflatten(x.astype(np.int32) if part.is_integer else x)
            for part, x in zip(self.parts, self._split(action), strict=True)
        ]
        return tuple(own) if self.names is None else dict(zip(self.names, own, strict=True))

    def flatten(self, action: Any) -> np.ndarray:
        own = action if self.names is None else [action[name] for name in self.names]
        return self._joined([part.flatten(x) for part, x in zip(self.parts, own, strict=True)])

    def problem(self, action: np.ndarray) -> str | None:
        if action.shape[1:] != self.shape:
            return f"its actions have the shape {action.shape[1:]}, and its action space {self.size} numbers"
        for number, (part, own) in enumerate(zip(self.parts, self._split(action), strict=True)):
            name = number if self.names is None else self.names[number]
            if part.is_integer and not (np.isfinite(own) & (own == np.round(own))).all():
                return f"part {shown(name, 40)} of its actions has numbers that are not whole, and is discrete"
            problem = part.problem(own.astype(np.int64) if part.is_integer else own)
            if problem is not None:
                return f"in part {shown(name, 40)} {problem}"
        return None

    def _styles(self, style: GaussianStyle) -> list[GaussianStyle]:
        """Of every part: the style is that of the continuous ones."""
        return [style if part.num_log_std else GaussianStyle() for part in self.parts]

    def _shares(self, output: Any, log_std: Any, style: GaussianStyle, mask: Any) -> Iterator[tuple]:
        """The arguments of `distribution` for every part."""
        styles = self._styles(style)
        outputs = [part.num_outputs(own) for part, own in zip(self.parts, styles, strict=True)]
        return zip(
            _cut(output, outputs),
            _cut(log_std, [part.num_log_std for part in self.parts]),
            styles,
            _cut(mask, [part.num_choices for part in self.parts]),
            strict=True,
        )

    def _split(self, action: Any) -> list[Any]:
        """The columns of every part; a number without an axis of its own where its actions have none."""
        own = _cut(action, [part.size for part in self.parts])
        return [x if part.shape else x[..., 0] for part, x in zip(self.parts, own, strict=True)]

    def _joined(self, own: Iterable[np.ndarray]) -> np.ndarray:
        columns = [x if part.shape else np.asarray(x)[..., None] for part, x in zip(self.parts, own, strict=True)]
        return np.concatenate(columns, axis=-1, dtype=self.dtype, casting="unsafe")


def parts_of(space: gymnasium.spaces.Space) -> tuple[tuple[str, ...] | None, tuple[gymnasium.spaces.Space, ...]] | None:
    """The names, of a Dict, and the spaces of the parts; None for a space that has none.

    space: any.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        names = tuple(sorted(space.spaces))
        return names, tuple(space.spaces[name] for name in names)
    if isinstance(space, gymnasium.spaces.Tuple):
        return None, tuple(space.spaces)
    return None


def _cut(array: Any, sizes: list[int]) -> list[Any]:
    """Consecutive parts of the last axis; None for each where there is no array."""
    if array is None:
        return [None] * len(sizes)
    edges = list(itertools.accumulate(sizes, initial=0))
    return [array[..., start:stop] for start, stop in itertools.pairwise(edges)]
