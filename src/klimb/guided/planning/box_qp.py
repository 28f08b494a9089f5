"""Quadratic programs of a few variables within a box, by projected Newton steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from klimb.guided.planning.small_matrices import cholesky, cholesky_solve

MAX_ITERATIONS = 32
"""Far more than needed for a few variables, where most programs take one or two."""

STEP_LENGTHS = 0.5 ** np.arange(4)


class BoxSolution(NamedTuple):
    """x: the minimiser. free: the variables that are not held at a bound. iterations: Newton steps tried."""

    x: Float[Array, " A"]
    free: Bool[Array, " A"]
    iterations: Int[Array, ""]


class _Iterate(NamedTuple):
    """The carry of the loop over Newton steps."""

    x: Float[Array, " A"]
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


def solve_box_qp(
    hessian: Float[Array, "A A"],
    gradient: Float[Array, " A"],
    low: Float[Array, " A"],
    high: Float[Array, " A"],
    start: Float[Array, " A"],
) -> BoxSolution:
    """argmin ½ xᵀH x + gᵀx over low ≤ x ≤ high, for a positive definite H (Bertsekas 1982; Tassa et al. 2014).

    A variable at a bound whose gradient pushes outwards is held; the others take a Newton step among themselves,
    projected back into the box. Where H couples variables strongly a projected step can fail to descend, however
    short. So variables at a bound that the Newton step itself would push outwards are held too, and one of the
    tries is to walk along it to the first bound, which does descend: the step of an active-set method. The best
    try is taken.

    hessian: H. gradient: g, at x = 0. low, high: bounds, may be infinite. start: the first x, clipped to the box; from
    −H⁻¹ g a program whose bounds do not matter takes no step.
    """
    noise = 32 * jnp.finfo(hessian.dtype).eps

    def gradient_and_free(x: Array) -> tuple[Array, Array]:
        at_x = gradient + hessian @ x
        return at_x, ~(((x <= low) & (at_x > 0)) | ((x >= high) & (at_x < 0)))

    def unfinished(now: _Iterate) -> Array:
        return ~now.done & (now.iterations < MAX_ITERATIONS)

    def newton_step(now: _Iterate) -> _Iterate:
        x = now.x
        at_x, free = gradient_and_free(x)
        direction = _feasible_newton(hessian, at_x, free, (x <= low, x >= high))
        projected = jnp.clip(x + jnp.asarray(STEP_LENGTHS, x.dtype)[:, None] * direction, low, high)
        tries = jnp.concatenate([projected, _to_first_bound(x, direction, low, high)[None]])
        moves = tries - x
        # From the moves, because the difference of two values of the objective would cancel.
        change = moves @ at_x + 0.5 * jnp.sum((moves @ hessian) * moves, axis=-1)
        best = jnp.argmin(change)
        next_x = jnp.where(change[best] < 0, tries[best], x)
        return _Iterate(next_x, now.iterations + 1, jnp.all(next_x == x) | converged(next_x))

    def converged(x: Array) -> Array:
        at_x, free = gradient_and_free(x)
        rounding = noise * (jnp.abs(gradient) + jnp.abs(hessian) @ jnp.abs(x))
        return jnp.all(~free | (jnp.abs(at_x) <= rounding))

    first = jnp.clip(start, low, high)
    end = jax.lax.while_loop(unfinished, newton_step, _Iterate(first, jnp.int32(0), converged(first)))
    return BoxSolution(end.x, gradient_and_free(end.x)[1], end.iterations)


def free_block(hessian: Float[Array, "A A"], free: Bool[Array, " A"]) -> Float[Array, "A A"]:
    """H among the free variables, the identity among the held ones, and zeros between them.

    hessian: H. free: the variables that are not held at a bound.
    """
    return jnp.where(free[:, None] & free, hessian, jnp.eye(len(free), dtype=hessian.dtype))


def _feasible_newton(hessian: Array, gradient: Array, free: Array, at_bounds: tuple[Array, Array]) -> Array:
    """The Newton direction among the free variables, without those that it would push out of the box."""
    direction = jnp.zeros_like(gradient)
    # Holding one variable can push another one outwards, so there are as many rounds as variables.
    for _ in range(len(gradient)):
        lower, _ = cholesky(free_block(hessian, free))
        direction = -cholesky_solve(lower, jnp.where(free, gradient, 0)[:, None])[:, 0]
        free = free & ~(at_bounds[0] & (direction < 0)) & ~(at_bounds[1] & (direction > 0))
    return jnp.where(free, direction, 0)


def _to_first_bound(x: Array, direction: Array, low: Array, high: Array) -> Array:
    """x + α direction for the largest α ≤ 1 within the box, with the variables that end it exactly at their bounds."""
    bound = jnp.where(direction > 0, high, low)
    moving = direction != 0
    length_to_bound = jnp.where(moving, (bound - x) / jnp.where(moving, direction, 1), jnp.inf)
    alpha = jnp.minimum(1, jnp.min(length_to_bound))
    return jnp.where(length_to_bound <= alpha, bound, jnp.clip(x + alpha * direction, low, high))
