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
    """`theta` is meaningful only when `status` is ACCEPTED; else `status` says what the last try lacked.

    scale: the fraction of the full step that the last try took. backtracks: tries after the full step.
    """

    theta: Vector
    status: Int[Array, ""]
    scale: Float[Array, ""]
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
    """θ + scale · full_step, from scale = 1 on: the first try with gain > 0 and KL ≤ max_kl.

    Schulman et al. 2015, appendix C, but for the shortening near the limit.

    `evaluate(θ') -> (surrogate gain, KL)`, both scalars. At most `max_backtracks + 1` tries. A rejected try is
    shortened by `factor`; one that only missed the KL limit by less than that, by max_kl / KL. The KL is
    quadratic in the step, so the next try is then inside the limit by as much as this one was outside, instead
    of giving away a third of the trust region for a hair's breadth.
    """

    def verdict(candidate: Vector) -> tuple[Array, Array]:
        gain, kl = evaluate(candidate)
        finite = jnp.isfinite(gain) & jnp.isfinite(kl)
        too_far = kl > max_kl
        status = jnp.where(gain > 0, Status.ACCEPTED, Status.NO_IMPROVEMENT)
        status = jnp.where(too_far, Status.KL_TOO_LARGE, status)
        # At least a thousandth shorter: less could be lost in the rounding of the KL.
        shorter = jnp.clip(max_kl / jnp.where(too_far, kl, 1), factor, max(factor, 0.999))
        shorter = jnp.where(finite & too_far, shorter, factor)
        return jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32), shorter.astype(theta.dtype)

    def rejected(carry: tuple) -> Array:
        tries, _, _, _, status = carry
        return (status != Status.ACCEPTED) & (tries <= max_backtracks)

    def try_next(carry: tuple) -> tuple:
        tries, _, scale, shorter, _ = carry
        scale = scale * shorter
        candidate = theta + scale * full_step
        status, shorter = verdict(candidate)
        return tries + 1, candidate, scale, shorter, status

    one = jnp.ones((), theta.dtype)
    start = (jnp.int32(0), theta, one, one, jnp.int32(Status.NO_IMPROVEMENT))
    tries, candidate, scale, _, status = jax.lax.while_loop(rejected, try_next, start)
    return SearchResult(candidate, status, scale, jnp.maximum(tries - 1, 0))
