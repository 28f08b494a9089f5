"""Distributions over actions of several parts, which are independent given the state.

Log-probs, entropies and KLs are sums over the parts, and the Fisher matrix has a block for each of them. The total
variation of several parts has no closed form: it is sampled, and bounded by the KL.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from klimb.policies.distributions import Categorical, Distribution


class MultiCategorical(Distribution):
    """H independent categorical distributions side by side, of up to A choices each.

    A logit of −inf masks its choice. A distribution with fewer than A choices has such logits at its end.

    logits: of every choice.
    """

    logits: Float[Array, "*batch H A"]

    @property
    def single(self) -> Categorical:
        """Each distribution by itself, with H as its last leading axis."""
        return Categorical(logits=self.logits)

    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Uniform in [0, 1). key: any. draws: leading axes to add."""
        return self.single.noise(key, draws)

    def sample_from(self, noise: Float[Array, "*batch H"]) -> Int[Array, "*batch H"]:
        return self.single.sample_from(noise)

    def log_prob(self, action: Int[Array, "*batch H"]) -> Float[Array, " *batch"]:
        return jnp.sum(self.single.log_prob(action), axis=-1)

    def entropy(self) -> Float[Array, " *batch"]:
        return jnp.sum(self.single.entropy(), axis=-1)

    def mode(self) -> Int[Array, "*batch H"]:
        return self.single.mode()

    def kl_to(self, other: MultiCategorical) -> Float[Array, " *batch"]:
        return jnp.sum(self.single.kl_to(other.single), axis=-1)

    @property
    def has_closed_form_tv(self) -> bool:
        return self.logits.shape[-2] == 1

    def tv_to(self, other: MultiCategorical) -> Float[Array, " *batch"]:
        if not self.has_closed_form_tv:
            raise ValueError(_no_closed_form(self.logits.shape[-2]))
        return self.single.tv_to(other.single)[..., 0]

    def require_comparable(self, other: MultiCategorical) -> None:
        if self.logits.shape[-2:] != other.logits.shape[-2:]:
            raise ValueError(
                f"both have to be of the same choices: one has {_choices(self.logits)}, the other "
                f"{_choices(other.logits)}"
            )

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """(diag(p) − p pᵀ) v of every distribution. tangent: v."""
        return MultiCategorical(logits=self.single.fisher_metric(tangent.single).logits)

    def fisher_root(self, tangent: PyTree) -> PyTree:
        """√p ⊙ (v − pᵀv) of every distribution. tangent: v."""
        return MultiCategorical(logits=self.single.fisher_root(tangent.single).logits)


class Columns(NamedTuple):
    """Where the action of a part stands in the flat action of a product.

    width: how many numbers it has; None for a single number without an axis of its own. integer: whether these number
    choices.
    """

    width: int | None
    integer: bool


class Product(Distribution):
    """Independent parts of any kinds. An action is a vector: the actions of the parts, one after the other.

    It holds integers if all parts do, else floats, whole numbers for choices.

    parts: the distributions. columns: what the action of each of them is in the vector.
    """

    parts: tuple[Distribution, ...]
    columns: tuple[Columns, ...] = eqx.field(static=True)

    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """That of the parts, one after the other. key: any. draws: leading axes to add."""
        keys = jax.random.split(key, len(self.parts))
        return self._joined([part.noise(k, draws) for part, k in zip(self.parts, keys, strict=True)])

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Array:
        own = self._split(noise, as_noise=True)
        return self._joined([part.sample_from(x) for part, x in zip(self.parts, own, strict=True)])

    def log_prob(self, action: Array) -> Float[Array, " *batch"]:
        return sum_of(part.log_prob(x) for part, x in zip(self.parts, self._split(action), strict=True))

    def entropy(self) -> Float[Array, " *batch"]:
        return sum_of(part.entropy() for part in self.parts)

    def mode(self) -> Array:
        """The most probable action of every part."""
        return self._joined([part.mode() for part in self.parts])

    def to_environment(self, action: Array) -> Array:
        own = self._split(action)
        return self._joined([part.to_environment(x) for part, x in zip(self.parts, own, strict=True)])

    def from_environment(self, action: Array) -> Array:
        own = self._split(action)
        return self._joined([part.from_environment(x) for part, x in zip(self.parts, own, strict=True)])

    def kl_to(self, other: Product) -> Float[Array, " *batch"]:
        return sum_of(part.kl_to(its) for part, its in zip(self.parts, other.parts, strict=True))

    @property
    def has_closed_form_tv(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].has_closed_form_tv

    def tv_to(self, other: Product) -> Float[Array, " *batch"]:
        if len(self.parts) > 1:
            raise ValueError(_no_closed_form(len(self.parts)))
        return self.parts[0].tv_to(other.parts[0])

    def require_comparable(self, other: Product) -> None:
        kinds, others = ([type(part).__name__ for part in product.parts] for product in (self, other))
        if kinds != others:
            raise ValueError(f"both products must have the same parts: one has {kinds}, the other {others}")
        for part, its in zip(self.parts, other.parts, strict=True):
            part.require_comparable(its)

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """That of every part: independent parts have no curvature in common. tangent: v."""
        own = (part.fisher_metric(v) for part, v in zip(self.parts, tangent.parts, strict=True))
        return dataclasses.replace(self, parts=tuple(own))

    def fisher_root(self, tangent: PyTree) -> PyTree:
        """That of every part. tangent: v."""
        own = (part.fisher_root(v) for part, v in zip(self.parts, tangent.parts, strict=True))
        return dataclasses.replace(self, parts=tuple(own))

    def _joined(self, own: list[Array]) -> Array:
        """The vector of the parts' actions, or of their noise."""
        columns = [x[..., None] if c.width is None else x for x, c in zip(own, self.columns, strict=True)]
        return jnp.concatenate(columns, axis=-1)

    def _split(self, action: Array, *, as_noise: bool = False) -> list[Array]:
        """The actions of the parts. as_noise: of noise, which is never whole numbers."""
        own, start = [], 0
        for width, integer in self.columns:
            stop = start + (1 if width is None else width)
            column = action[..., start] if width is None else action[..., start:stop]
            own.append(column.astype(jnp.int32) if integer and not as_noise else column)
            start = stop
        return own


def sum_of(values: Any) -> Array:
    """The sum of arrays, of which there is at least one."""
    first, *others = values
    for value in others:
        first = first + value
    return first


def _choices(logits: Array) -> str:
    return f"{logits.shape[-2]} of up to {logits.shape[-1]}"


def _no_closed_form(parts: int) -> str:
    return (
        f"the total variation of {parts} independent parts has no closed form: give key= for a Monte Carlo value with "
        "its standard error, or use total_variation_bound(kl)"
    )
