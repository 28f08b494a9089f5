"""Searching along a direction: the real surrogate has to improve and the real KL to stay inside its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from klimb.types import Status

Vector = Float[Array, " P"]
Evaluate = Callable[[Vector], tuple[Array, Array]]
LineSearch = Literal["backtracking", "growing"]


class SearchResult(NamedTuple):
    """`theta` is meaningful only when `status` is ACCEPTED; else `status` says what the last try lacked.

    scale: the fraction of the full step that was taken (or last tried). backtracks: tries after the full step.
    """

    theta: Vector
    status: Int[Array, ""]
    scale: Float[Array, ""]
    backtracks: Int[Array, ""]


def backtrack(
    evaluate: Evaluate,
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

    def rejected(carry: tuple) -> Array:
        tries, _, _, _, status = carry
        return (status != Status.ACCEPTED) & (tries <= max_backtracks)

    def try_next(carry: tuple) -> tuple:
        tries, _, scale, shorter, _ = carry
        scale = scale * shorter
        candidate = theta + scale * full_step
        gain, kl = evaluate(candidate)
        status = _verdict(gain, kl, max_kl)
        return tries + 1, candidate, scale, _shortening(status, kl, max_kl, factor).astype(theta.dtype), status

    one = jnp.ones((), theta.dtype)
    start = (jnp.int32(0), theta, one, one, jnp.int32(Status.NO_IMPROVEMENT))
    tries, candidate, scale, _, status = jax.lax.while_loop(rejected, try_next, start)
    return SearchResult(candidate, status, scale, jnp.maximum(tries - 1, 0))


def grow(
    evaluate: Evaluate,
    theta: Vector,
    full_step: Vector,
    *,
    max_kl: float | Array,
    factor: float,
    max_backtracks: int,
) -> SearchResult:
    """The largest step with gain > 0 and KL ≤ max_kl that `max_backtracks + 1` tries find, shorter or longer than full.

    The quadratic model of the KL is off in both directions: where it overestimates, backtracking leaves part of
    the trust region unused. After a good try the next one goes on to where the model, corrected by the KL just
    measured, expects the limit (at most twice as far); after a bad one as `backtrack` does, but never back
    behind a good one: between the two, to the middle. Ends within 1 % of the limit.
    """

    def unfinished(carry: tuple) -> Array:
        tries, _, _, best_kl, _, _, _ = carry
        return (tries <= max_backtracks) & ~(best_kl >= 0.99 * max_kl)

    def try_next(carry: tuple) -> tuple:
        tries, proposal, best, best_kl, bad, _, _ = carry
        gain, kl = evaluate(theta + proposal * full_step)
        status = _verdict(gain, kl, max_kl)
        good = status == Status.ACCEPTED
        best, best_kl = jnp.where(good, proposal, best), jnp.where(good, kl, best_kl)
        bad = jnp.where(good, bad, jnp.minimum(bad, proposal))
        # A hair below the limit, which rounding of the KL would else overstep.
        longer = proposal * jnp.clip(jnp.sqrt(0.998 * max_kl / jnp.where(good & (kl > 0), kl, max_kl)), 1.001, 2)
        shorter = proposal * _shortening(status, kl, max_kl, factor)
        following = jnp.where(good, longer, shorter)
        middle = 0.5 * (best + bad)
        between = (best > 0) & jnp.isfinite(bad) & ((following >= bad) | (following <= best))
        following = jnp.where(between, middle, following).astype(theta.dtype)
        return tries + 1, following, best, best_kl, bad, proposal, status

    one = jnp.ones((), theta.dtype)
    kl_type = jax.eval_shape(evaluate, theta)[1].dtype
    start = (jnp.int32(0), one, 0 * one, jnp.zeros((), kl_type), one * jnp.inf, one, jnp.int32(Status.NO_IMPROVEMENT))
    tries, _, best, _, _, last, status = jax.lax.while_loop(unfinished, try_next, start)
    found = best > 0
    scale = jnp.where(found, best, last)
    status = jnp.where(found, Status.ACCEPTED, status).astype(jnp.int32)
    return SearchResult(theta + scale * full_step, status, scale, jnp.maximum(tries - 1, 0))


def _verdict(gain: Array, kl: Array, max_kl: float | Array) -> Array:
    status = jnp.where(gain > 0, Status.ACCEPTED, Status.NO_IMPROVEMENT)
    status = jnp.where(kl > max_kl, Status.KL_TOO_LARGE, status)
    return jnp.where(jnp.isfinite(gain) & jnp.isfinite(kl), status, Status.NONFINITE).astype(jnp.int32)


def _shortening(status: Array, kl: Array, max_kl: float | Array, factor: float) -> Array:
    """The next try as a fraction of a rejected one."""
    too_far = status == Status.KL_TOO_LARGE
    # At least a thousandth shorter: less could be lost in the rounding of the KL.
    shorter = jnp.clip(max_kl / jnp.where(too_far, kl, 1), factor, max(factor, 0.999))
    return jnp.where(too_far, shorter, factor)
