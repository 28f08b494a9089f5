"""The natural gradient direction (F + ηI)⁻¹ g: by conjugate gradient, by the Woodbury identity, or with a dense F."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, " P"]
Solver = Literal["cg", "woodbury", "dense"]
Preconditioning = Literal["none", "kronecker"]


class Solve(NamedTuple):
    """A solution of A x ≈ b.

    iterations: products A v used. breakdown: whether a direction p with pᵀA p ≤ 0 was met. image: A x, where the solver
    has it without another product.
    """

    x: Vector
    iterations: Int[Array, ""]
    breakdown: Bool[Array, ""]
    image: Vector | None = None


class _Iterate(NamedTuple):
    """The carry of conjugate gradient: residual r = b − A x, rᵀM r, and the next search direction p.

    gain: bᵀx. progress: the part of it that the last product has added, as a fraction.
    """

    iterations: Int[Array, ""]
    x: Vector
    residual: Vector
    search: Vector
    squared_norm: Float[Array, ""]
    gain: Float[Array, ""]
    progress: Float[Array, ""]
    breakdown: Bool[Array, ""]


def conjugate_gradient(
    product: Callable[[Vector], Vector],
    b: Vector,
    *,
    iterations: int,
    tolerance: float | Array,
    min_progress: float | Array = 0.0,
    preconditioner: Callable[[Vector], Vector] | None = None,
) -> Solve:
    """x with A x ≈ b for a positive semi-definite A, from x = 0 (Hestenes & Stiefel 1952).

    Stops when ‖b − A x‖ ≤ tolerance · ‖b‖, when the last product has added less than `min_progress` of bᵀx, after
    `iterations` products, or at a direction with pᵀA p ≤ 0 (`breakdown`; x is then that of the step before). b = 0
    gives x = 0. bᵀx = xᵀA x grows with every product; its ratio to that of the exact solution x* is cos²(x, x*) in the
    inner product of A. So `min_progress` says when the direction has settled, in terms that do not depend on how A is
    scaled (compare Martens 2010, section 4.4).

    klimb has its own because a trust-region step has to know all three outcomes inside jit and vmap: `jax.scipy`'s
    reports none of them, and lineax's answers a zero operator with non-finite values.

    product: v ↦ A v. b: the right-hand side. iterations: maximum number of products.
    tolerance: relative residual at which to stop, ≥ 0. min_progress: in [0, 1).
    preconditioner: v ↦ M v for a positive definite M ≈ A⁻¹; None for M = 1.
    """
    target = jnp.square(tolerance) * jnp.vdot(b, b)
    precondition = preconditioner or (lambda residual: residual)

    def unfinished(now: _Iterate) -> Array:
        squared = now.squared_norm if preconditioner is None else jnp.vdot(now.residual, now.residual)
        return (now.iterations < iterations) & (squared > target) & ~now.breakdown & (now.progress >= min_progress)

    def body(now: _Iterate) -> _Iterate:
        image = product(now.search)
        curvature = jnp.vdot(now.search, image)
        breakdown = ~(curvature > 0)
        alpha = jnp.where(breakdown, 0, now.squared_norm / jnp.where(breakdown, 1, curvature))
        x = now.x + alpha * now.search
        residual = now.residual - alpha * image
        scaled = precondition(residual)
        squared_norm = jnp.vdot(residual, scaled)
        search = scaled + (squared_norm / now.squared_norm) * now.search
        added = alpha * now.squared_norm
        gain = now.gain + added
        progress = jnp.where(breakdown, 0, added / jnp.where(gain > 0, gain, 1))
        return _Iterate(now.iterations + 1, x, residual, search, squared_norm, gain, progress, breakdown)

    search = precondition(b)
    squared_norm = jnp.vdot(b, search)
    zero, one = jnp.zeros_like(squared_norm), jnp.ones_like(squared_norm)
    start = _Iterate(jnp.int32(0), jnp.zeros_like(b), b, search, squared_norm, zero, one, jnp.bool_(False))
    end = jax.lax.while_loop(unfinished, body, start)
    return Solve(end.x, end.iterations, end.breakdown, b - end.residual)


def woodbury(rows: Float[Array, "R P"], b: Vector, *, damping: float | Array) -> Solve:
    """x = (UᵀU + ηI)⁻¹ b = (b − Uᵀ (UUᵀ + ηI)⁻¹ U b) / η: an R × R system instead of P × P (Woodbury identity).

    The second form loses digits if η is far below F's largest eigenvalue. One step of iterative refinement restores
    them, at the cost of one more solve with the same factorisation.

    rows: U. b: the right-hand side. damping: η > 0.
    """
    gram = rows @ rows.T + damping * jnp.eye(len(rows), dtype=rows.dtype)
    factors = jax.scipy.linalg.lu_factor(gram)

    def inverse(v: Vector) -> Vector:
        return (v - rows.T @ jax.scipy.linalg.lu_solve(factors, rows @ v)) / damping

    x = inverse(b)
    x = x + inverse(b - rows.T @ (rows @ x) - damping * x)
    return Solve(x, jnp.int32(0), jnp.bool_(False))


def dense(rows: Float[Array, "R P"], b: Vector, *, damping: float | Array) -> Solve:
    """x = (UᵀU + ηI)⁻¹ b with the dense P × P matrix: for small policies, and to check the other two solvers.

    rows: U. b: the right-hand side. damping: η > 0.
    """
    matrix = rows.T @ rows + damping * jnp.eye(b.size, dtype=b.dtype)
    return Solve(jnp.linalg.solve(matrix, b), jnp.int32(0), jnp.bool_(False))


class Direction(NamedTuple):
    """x ≈ (F + ηI)⁻¹ g with its curvature and the outcome of the solve.

    curvature: xᵀF x, undamped: damping regularises the solve, not the length. residual: ‖(F + ηI) x − g‖ / ‖g‖.
    iterations: products used by the solve. breakdown: whether it met a direction p with pᵀ(F + ηI) p ≤ 0.
    """

    x: Vector
    curvature: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    breakdown: Bool[Array, ""]

    @classmethod
    def plain(cls, gradient: Vector) -> Direction:
        """The gradient itself: the direction for F = I, without a solve.

        gradient: g.
        """
        zero = jnp.zeros((), gradient.dtype)
        return cls(gradient, jnp.vdot(gradient, gradient), zero, jnp.int32(0), jnp.bool_(False))

    @classmethod
    def of(
        cls, gradient: Vector, solve: Solve, product: Callable[[Vector], Vector], *, damping: float | Array
    ) -> Direction:
        """The direction of a solution; it takes one more product unless the solver has it.

        gradient: g, the right-hand side. solve: the solution. product: v ↦ F v. damping: η ≥ 0.
        """
        fisher_x = product(solve.x) if solve.image is None else solve.image - damping * solve.x
        scale = jnp.linalg.norm(gradient)
        residual = jnp.linalg.norm(fisher_x + damping * solve.x - gradient) / jnp.where(scale > 0, scale, 1)
        return cls(solve.x, jnp.vdot(solve.x, fisher_x), residual, solve.iterations, solve.breakdown)

    def step_size(self, max_kl: float | Array) -> Float[Array, ""]:
        """α = √(2ε / xᵀF x): the step α x has a KL of ε to second order; 0 if the curvature is not positive.

        max_kl: ε > 0, in nats.
        """
        curved = self.curvature > 0
        return jnp.where(curved, jnp.sqrt(2 * max_kl / jnp.where(curved, self.curvature, 1)), 0)
