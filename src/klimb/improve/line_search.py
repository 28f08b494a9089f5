"""Line searches: a step is accepted if the surrogate itself, not its model, improves and the KL keeps its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from klimb.types import Status

Vector = Float[Array, " P"]
Evaluate = Callable[[Vector], tuple[Array, Array]]
"""θ' ↦ (surrogate gain, KL), both scalars."""
LineSearch = Literal["backtracking", "growing"]


class SearchResult(NamedTuple):
    """The outcome of a line search.

    theta: the new parameters; meaningful only if `status` is ACCEPTED. status: else why the last try was rejected.
    scale: the fraction of the full step that was taken (or last tried). backtracks: tries after the full step.
    gain, kl: the surrogate gain and the KL of that step, also where it was rejected for them.
    """

    theta: Vector
    status: Int[Array, ""]
    scale: Float[Array, ""]
    backtracks: Int[Array, ""]
    gain: Float[Array, ""]
    kl: Float[Array, ""]


class _Backtracking(NamedTuple):
    """The carry of `backtrack`. factor: what the next try multiplies `scale` by. gain, kl: of the last try."""

    tries: Int[Array, ""]
    candidate: Vector
    scale: Float[Array, ""]
    factor: Float[Array, ""]
    status: Int[Array, ""]
    gain: Float[Array, ""]
    kl: Float[Array, ""]


class _Growing(NamedTuple):
    """The carry of `grow`. All steps are fractions of the full step.

    proposal: the step to try next. best, best_gain, best_kl: the longest accepted step, 0 before there is one, its gain
    and its KL. shortest_rejected: ∞ before there is one. last, gain, kl: the step tried last. status: its outcome.
    """

    tries: Int[Array, ""]
    proposal: Float[Array, ""]
    best: Float[Array, ""]
    best_gain: Float[Array, ""]
    best_kl: Float[Array, ""]
    shortest_rejected: Float[Array, ""]
    last: Float[Array, ""]
    status: Int[Array, ""]
    gain: Float[Array, ""]
    kl: Float[Array, ""]


def backtrack(
    evaluate: Evaluate,
    theta: Vector,
    full_step: Vector,
    *,
    max_kl: float | Array,
    factor: float | Array,
    max_backtracks: int,
    min_gain: Array | None = None,
) -> SearchResult:
    """θ + scale · full_step, scale = 1 first: the first try with gain > 0 and KL ≤ max_kl.

    Schulman et al. 2015, appendix C, except near the limit: a step whose KL is too large is multiplied by max_kl / KL
    if that is larger than `factor`, any other rejected step by `factor`. The KL is about quadratic in the step, so
    after exceeding the limit by a small fraction the next try is below it by the same fraction; `factor` = 0.8 would
    give up a third of the trust region.

    evaluate: θ' ↦ (surrogate gain, KL), both scalars.
    theta: the parameters before the step. full_step: the step for scale = 1.
    max_kl: limit on the KL, > 0, in nats.
    factor: minimum factor between two tries, in (0, 1).
    max_backtracks: maximum number of tries after the full step, ≥ 0.
    min_gain: gain that an accepted full step has to reach, another one in proportion to its length; None for any > 0.
    """

    def rejected(now: _Backtracking) -> Array:
        return (now.status != Status.ACCEPTED) & (now.tries <= max_backtracks)

    def try_next(now: _Backtracking) -> _Backtracking:
        scale = now.scale * now.factor
        candidate = theta + scale * full_step
        gain, kl = evaluate(candidate)
        status = _outcome(gain, kl, max_kl, None if min_gain is None else scale * min_gain)
        shortening = _shortening(status, kl, max_kl, factor).astype(theta.dtype)
        return _Backtracking(now.tries + 1, candidate, scale, shortening, status, gain, kl)

    one = jnp.ones((), theta.dtype)
    start = _Backtracking(jnp.int32(0), theta, one, one, jnp.int32(Status.NO_IMPROVEMENT), *_zeros(evaluate, theta))
    end = jax.lax.while_loop(rejected, try_next, start)
    return SearchResult(end.candidate, end.status, end.scale, jnp.maximum(end.tries - 1, 0), end.gain, end.kl)


def grow(
    evaluate: Evaluate,
    theta: Vector,
    full_step: Vector,
    *,
    max_kl: float | Array,
    factor: float | Array,
    max_backtracks: int,
    min_gain: Array | None = None,
) -> SearchResult:
    """The longest step with gain > 0 and KL ≤ max_kl that is found, shorter or longer than the full step.

    The quadratic model of the KL errs in both directions; if it overestimates, backtracking leaves part of the trust
    region unused. After an accepted try the next one is where the model, corrected by the KL just measured, reaches
    the limit (at most twice as far). After a rejected one the step is shortened as in `backtrack`. A next try that is
    not between the longest accepted and the shortest rejected step is replaced by the middle of the two. Ends within
    1 % of the limit.

    evaluate: θ' ↦ (surrogate gain, KL), both scalars.
    theta: the parameters before the step. full_step: the first step tried.
    max_kl: limit on the KL, > 0, in nats.
    factor: minimum factor by which a rejected step is shortened, in (0, 1).
    max_backtracks: maximum number of tries after the full step, ≥ 0.
    min_gain: gain that an accepted full step has to reach, another one in proportion to its length; None for any > 0.
    """

    def unfinished(now: _Growing) -> Array:
        return (now.tries <= max_backtracks) & ~(now.best_kl >= 0.99 * max_kl)

    def try_next(now: _Growing) -> _Growing:
        step = now.proposal
        gain, kl = evaluate(theta + step * full_step)
        status = _outcome(gain, kl, max_kl, None if min_gain is None else step * min_gain)
        accepted = status == Status.ACCEPTED
        best, best_kl = jnp.where(accepted, step, now.best), jnp.where(accepted, kl, now.best_kl)
        best_gain = jnp.where(accepted, gain, now.best_gain)
        rejected = jnp.where(accepted, now.shortest_rejected, jnp.minimum(now.shortest_rejected, step))
        # Slightly below the limit: rounding of the KL could exceed the limit itself.
        longer = step * jnp.clip(jnp.sqrt(0.998 * max_kl / jnp.where(accepted & (kl > 0), kl, max_kl)), 1.001, 2)
        shorter = step * _shortening(status, kl, max_kl, factor)
        proposal = jnp.where(accepted, longer, shorter)
        middle = 0.5 * (best + rejected)
        bisects = (best > 0) & jnp.isfinite(rejected) & ((proposal >= rejected) | (proposal <= best))
        proposal = jnp.where(bisects, middle, proposal).astype(theta.dtype)
        return _Growing(now.tries + 1, proposal, best, best_gain, best_kl, rejected, step, status, gain, kl)

    one = jnp.ones((), theta.dtype)
    gain, kl = _zeros(evaluate, theta)
    status = jnp.int32(Status.NO_IMPROVEMENT)
    start = _Growing(jnp.int32(0), one, 0 * one, gain, kl, one * jnp.inf, one, status, gain, kl)
    end = jax.lax.while_loop(unfinished, try_next, start)
    succeeded = end.best > 0
    scale = jnp.where(succeeded, end.best, end.last)
    status = jnp.where(succeeded, Status.ACCEPTED, end.status).astype(jnp.int32)
    gain, kl = jnp.where(succeeded, end.best_gain, end.gain), jnp.where(succeeded, end.best_kl, end.kl)
    return SearchResult(theta + scale * full_step, status, scale, jnp.maximum(end.tries - 1, 0), gain, kl)


def _zeros(evaluate: Evaluate, theta: Vector) -> tuple[Array, Array]:
    """A gain and a KL of 0, of the types that `evaluate` gives."""
    gain, kl = jax.eval_shape(evaluate, theta)
    return jnp.zeros((), gain.dtype), jnp.zeros((), kl.dtype)


def _outcome(gain: Array, kl: Array, max_kl: float | Array, min_gain: Array | None) -> Array:
    """The `Status` of one try. min_gain: that it has to reach besides being positive; None for none."""
    enough = gain > 0 if min_gain is None else (gain > 0) & (gain >= min_gain)
    status = jnp.where(enough, Status.ACCEPTED, Status.NO_IMPROVEMENT)
    status = jnp.where(kl > max_kl, Status.KL_TOO_LARGE, status)
    return jnp.where(jnp.isfinite(gain) & jnp.isfinite(kl), status, Status.NONFINITE).astype(jnp.int32)


def _shortening(status: Array, kl: Array, max_kl: float | Array, factor: float | Array) -> Array:
    """The next step as a fraction of a rejected one."""
    too_far = status == Status.KL_TOO_LARGE
    # At least 0.1 % shorter: less could be lost in the rounding of the KL.
    shorter = jnp.clip(max_kl / jnp.where(too_far, kl, 1), factor, jnp.maximum(factor, 0.999))
    return jnp.where(too_far, shorter, factor)
