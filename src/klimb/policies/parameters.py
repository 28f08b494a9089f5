"""A policy's trainable arrays as one vector θ, and the inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from klimb.policies.normalizer import Normalizer


class Flat(NamedTuple):
    """A policy's trainable arrays as one vector θ of P numbers, and the function θ ↦ policy.

    With one vector an optimiser step is one fused operation, whatever the number of layers. The order is that of
    `jax.flatten_util.ravel_pytree`.
    """

    theta: Float[Array, " P"]
    rebuild: Callable[[Float[Array, " P"]], PyTree]


def flatten(policy: PyTree) -> Flat:
    """θ and the function θ ↦ policy; what is not trainable stays unchanged.

    policy: any pytree, also a critic; its inexact arrays are trainable, except a normaliser's statistics.
    """
    trainable, fixed = eqx.partition(policy, trainable_filter(policy))
    theta, unravel = ravel_pytree(trainable)
    return Flat(theta, lambda vector: eqx.combine(unravel(vector), fixed))


def trainable_filter(policy: PyTree) -> PyTree:
    """True for every trainable leaf: inexact arrays, except a normaliser's running statistics.

    policy: any pytree; the result has the same structure with a bool for every leaf.
    """

    def mark(node: Any) -> PyTree:
        if isinstance(node, Normalizer):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mark, policy, is_leaf=lambda node: isinstance(node, Normalizer))
