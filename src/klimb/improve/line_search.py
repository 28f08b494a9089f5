"""Backtracking along a direction until the real surrogate improves and the real KL is inside its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from klimb.types import Status

Vector = Float[Array, " P"]


class SearchResult(NamedTuple):
    """`theta` is meaningful only when `status` is ACCEPTED; else `status` says what the last try lacked."""

    theta: Vector
    status: Int[Array, ""]
    backtracks: Int[Array, ""]


def backtrack(
    evaluate: Callable[[Vector], tuple[Array, Array]],
    theta: Vector,
    full_step: Vector,
    *,
    max_kl: float | Array,
    factor: float,
    max_backtracks: int,
) -> SearchResult:
    """θ + factorᵏ · full_step for k = 0, 1, …: the first with gain > 0 and KL ≤ max_kl (Schulman et al. 2015, App. C).

    `evaluate(θ') -> (surrogate gain, KL)`, both scalars. At most `max_backtracks + 1` tries.
    """

    def verdict(candidate: Vector) -> Array:
        gain, kl = evaluate(candidate)
        reason = jnp.where(kl > max_kl, Status.KL_TOO_LARGE, Status.ACCEPTED)
        reason = jnp.where(gain > 0, reason, jnp.where(kl > max_kl, reason, Status.NO_IMPROVEMENT))
        finite = jnp.isfinite(gain) & jnp.isfinite(kl)
        return jnp.where(finite, reason, Status.NONFINITE).astype(jnp.int32)

    def rejected(carry: tuple[Array, Vector, Array]) -> Array:
        k, _, status = carry
        return (status != Status.ACCEPTED) & (k <= max_backtracks)

    def try_next(carry: tuple[Array, Vector, Array]) -> tuple[Array, Vector, Array]:
        k, _, _ = carry
        candidate = theta + jnp.power(jnp.asarray(factor, theta.dtype), k) * full_step
        return k + 1, candidate, verdict(candidate)

    start = (jnp.int32(0), theta, jnp.int32(Status.NO_IMPROVEMENT))
    tries, candidate, status = jax.lax.while_loop(rejected, try_next, start)
    return SearchResult(candidate, status, jnp.maximum(tries - 1, 0))
