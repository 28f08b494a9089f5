"""Quadratic programs of a few variables within a box, by projected Newton steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from klimb.guided.planning.small_matrices import cholesky, cholesky_solve

MAX_ITERATIONS = 32
"""Far more than seen with a few variables, where most programs end after one or two."""

STEPS = 0.5 ** np.arange(4)


class BoxSolution(NamedTuple):
    """The minimiser, and which variables no bound holds. iterations: Newton steps tried."""

    x: Float[Array, " A"]
    free: Bool[Array, " A"]
    iterations: Int[Array, ""]


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
    try is taken. Bounds may be infinite; from start = −H⁻¹ g a program whose bounds do not matter takes no step.
    """
    noise = 32 * jnp.finfo(hessian.dtype).eps

    def slope(x: Array) -> tuple[Array, Array]:
        at_x = gradient + hessian @ x
        return at_x, ~(((x <= low) & (at_x > 0)) | ((x >= high) & (at_x < 0)))

    def unfinished(carry: tuple) -> Array:
        _, iterations, done = carry
        return ~done & (iterations < MAX_ITERATIONS)

    def newton(carry: tuple) -> tuple:
        x, iterations, _ = carry
        at_x, free = slope(x)
        direction = _feasible_newton(hessian, at_x, free, (x <= low, x >= high))
        projected = jnp.clip(x + jnp.asarray(STEPS, x.dtype)[:, None] * direction, low, high)
        tries = jnp.concatenate([projected, _to_first_bound(x, direction, low, high)[None]])
        moves = tries - x
        # The change of the objective, without the cancellation between two values of it.
        change = moves @ at_x + 0.5 * jnp.sum((moves @ hessian) * moves, axis=-1)
        best = jnp.argmin(change)
        taken = jnp.where(change[best] < 0, tries[best], x)
        return taken, iterations + 1, jnp.all(taken == x) | settled(taken)

    def settled(x: Array) -> Array:
        at_x, free = slope(x)
        rounding = noise * (jnp.abs(gradient) + jnp.abs(hessian) @ jnp.abs(x))
        return jnp.all(~free | (jnp.abs(at_x) <= rounding))

    first = jnp.clip(start, low, high)
    x, iterations, _ = jax.lax.while_loop(unfinished, newton, (first, jnp.int32(0), settled(first)))
    return BoxSolution(x, slope(x)[1], iterations)


def free_block(hessian: Float[Array, "A A"], free: Bool[Array, " A"]) -> Float[Array, "A A"]:
    """H among the free variables, and the identity among those held: its inverse keeps the two apart."""
    return jnp.where(free[:, None] & free, hessian, jnp.eye(len(free), dtype=hessian.dtype))


def _feasible_newton(hessian: Array, gradient: Array, free: Array, at_bounds: tuple[Array, Array]) -> Array:
    """The Newton direction among as many of the free variables as leave the box in none of its components."""
    direction = jnp.zeros_like(gradient)
    # Holding one variable can turn another outwards: as many rounds as variables.
    for _ in range(len(gradient)):
        lower, _ = cholesky(free_block(hessian, free))
        direction = -cholesky_solve(lower, jnp.where(free, gradient, 0)[:, None])[:, 0]
        free = free & ~(at_bounds[0] & (direction < 0)) & ~(at_bounds[1] & (direction > 0))
    return jnp.where(free, direction, 0)


def _to_first_bound(x: Array, direction: Array, low: Array, high: Array) -> Array:
    """x + α direction for the largest α ≤ 1 within the box, with the variables that end it exactly at their bounds."""
    bound = jnp.where(direction > 0, high, low)
    moving = direction != 0
    room = jnp.where(moving, (bound - x) / jnp.where(moving, direction, 1), jnp.inf)
    alpha = jnp.minimum(1, jnp.min(room))
    return jnp.where(room <= alpha, bound, jnp.clip(x + alpha * direction, low, high))
