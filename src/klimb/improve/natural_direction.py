"""The natural gradient's direction (F + ηI)⁻¹ g: by conjugate gradient, in the space of samples, or with F whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, " P"]
Solver = Literal["cg", "woodbury", "dense"]


class Solve(NamedTuple):
    """x with A x ≈ b, the number of products used, and whether a direction of no curvature was met."""

    x: Vector
    iterations: Int[Array, ""]
    breakdown: Bool[Array, ""]


def conjugate_gradient(product: Callable[[Vector], Vector], b: Vector, *, iterations: int, tolerance: float) -> Solve:
    """x with A x ≈ b for a positive semi-definite A given by its products, from x = 0 (Hestenes & Stiefel 1952).

    Stops when ‖b − A x‖ ≤ tolerance · ‖b‖, after `iterations` products, or at a direction with pᵀA p ≤ 0
    (`breakdown`; x is then the best so far). b = 0 gives x = 0.

    Our own because a trust-region step has to know all three outcomes inside jit and vmap: `jax.scipy`'s
    reports none of them, and lineax's answers a zero operator with non-finite values.
    """
    target = jnp.square(tolerance) * jnp.vdot(b, b)

    def unfinished(carry: tuple) -> Array:
        k, _, _, _, rr, breakdown = carry
        return (k < iterations) & (rr > target) & ~breakdown

    def body(carry: tuple) -> tuple:
        k, x, r, p, rr, _ = carry
        ap = product(p)
        curvature = jnp.vdot(p, ap)
        breakdown = ~(curvature > 0)
        alpha = jnp.where(breakdown, 0, rr / jnp.where(breakdown, 1, curvature))
        x = x + alpha * p
        r = r - alpha * ap
        rr_next = jnp.vdot(r, r)
        p = r + (rr_next / rr) * p
        return k + 1, x, r, p, rr_next, breakdown

    start = (jnp.int32(0), jnp.zeros_like(b), b, b, jnp.vdot(b, b), jnp.bool_(False))
    k, x, _, _, _, breakdown = jax.lax.while_loop(unfinished, body, start)
    return Solve(x, k, breakdown)


def woodbury(rows: Float[Array, "R P"], b: Vector, *, damping: float) -> Solve:
    """x = (UᵀU + ηI)⁻¹ b = (b − Uᵀ (UUᵀ + ηI)⁻¹ U b) / η, with a matrix of R × R samples instead of P × P parameters.

    The second form loses digits where η is far below F's largest eigenvalue; one step of iterative refinement
    on the residual, which costs two more solves with the same matrix, brings them back.
    """
    gram = rows @ rows.T + damping * jnp.eye(len(rows), dtype=rows.dtype)
    factors = jax.scipy.linalg.lu_factor(gram)

    def inverse(v: Vector) -> Vector:
        return (v - rows.T @ jax.scipy.linalg.lu_solve(factors, rows @ v)) / damping

    x = inverse(b)
    x = x + inverse(b - rows.T @ (rows @ x) - damping * x)
    return Solve(x, jnp.int32(0), jnp.bool_(False))


def dense(rows: Float[Array, "R P"], b: Vector, *, damping: float) -> Solve:
    """x = (UᵀU + ηI)⁻¹ b with the matrix of P × P parameters whole: the oracle of the other two, for small policies."""
    matrix = rows.T @ rows + damping * jnp.eye(b.size, dtype=b.dtype)
    return Solve(jnp.linalg.solve(matrix, b), jnp.int32(0), jnp.bool_(False))


class Direction(NamedTuple):
    """x ≈ (F + ηI)⁻¹ g with what a step needs to know of it.

    curvature: xᵀF x, undamped: damping regularises the solve, not the length. residual: ‖(F + ηI) x − g‖ / ‖g‖.
    iterations: products used by the solve. breakdown: whether it met a direction of no curvature.
    """

    x: Vector
    curvature: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    breakdown: Bool[Array, ""]

    @classmethod
    def plain(cls, gradient: Vector) -> Direction:
        """The gradient itself: the direction for F = I, which takes no solve."""
        zero = jnp.zeros((), gradient.dtype)
        return cls(gradient, jnp.vdot(gradient, gradient), zero, jnp.int32(0), jnp.bool_(False))

    @classmethod
    def of(
        cls, gradient: Vector, solve: Solve, product: Callable[[Vector], Vector], *, damping: float | Array
    ) -> Direction:
        """From a solution.

        gradient: g, the right-hand side. solve: x and how it was found. product: v ↦ F v. damping: η ≥ 0.
        """
        fisher_x = product(solve.x)
        scale = jnp.linalg.norm(gradient)
        residual = jnp.linalg.norm(fisher_x + damping * solve.x - gradient) / jnp.where(scale > 0, scale, 1)
        return cls(solve.x, jnp.vdot(solve.x, fisher_x), residual, solve.iterations, solve.breakdown)

    def step_size(self, max_kl: float | Array) -> Float[Array, ""]:
        """α = √(2ε / xᵀF x): the step α x has a KL of ε to second order (the notes print gᵀF g in the denominator)."""
        bends = self.curvature > 0
        return jnp.where(bends, jnp.sqrt(2 * max_kl / jnp.where(bends, self.curvature, 1)), 0)
