"""Factorising and solving with matrices of a few rows, without LAPACK.

Actions have one to a handful of dimensions. Batched LAPACK calls inside vmapped programs can deadlock on CPU, and at
this size the calls cost more than the arithmetic. So the loops over the rows are unrolled while tracing.
Axes: `batch` any leading axes, A rows, C right-hand sides.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LARGEST = 8
"""Rows up to which unrolling is sensible: the traced program grows with their cube."""


class Cholesky(NamedTuple):
    """M = L Lᵀ. Where M is not `positive` definite, `lower` is finite but meaningless (unless M is not finite)."""

    lower: Float[Array, "*batch A A"]
    positive: Bool[Array, "*batch"]


def cholesky(matrix: Float[Array, "*batch A A"]) -> Cholesky:
    """The lower factor L of M = L Lᵀ. Positive definite: every pivot is above the rounding error of its diagonal entry.

    matrix: M, symmetric.
    """
    size = matrix.shape[-1]
    tolerance = size * jnp.finfo(matrix.dtype).eps
    zero = jnp.zeros(matrix.shape[:-2], matrix.dtype)
    rows: list[list[Array]] = []
    positive = jnp.ones(matrix.shape[:-2], bool)
    for i in range(size):
        row: list[Array] = []
        for j in range(i):
            row.append((matrix[..., i, j] - _dot(row, rows[j][:j], zero)) / rows[j][j])
        pivot = matrix[..., i, i] - _dot(row, row, zero)
        pivot_positive = (pivot > tolerance * jnp.abs(matrix[..., i, i])) & jnp.isfinite(pivot)
        positive = positive & pivot_positive
        row.append(jnp.sqrt(jnp.where(pivot_positive, pivot, 1)))
        rows.append(row)
    padded = [jnp.stack(row + [zero] * (size - len(row)), axis=-1) for row in rows]
    return Cholesky(jnp.stack(padded, axis=-2), positive)


def solve_lower(lower: Float[Array, "*batch A A"], right: Float[Array, "*batch A C"]) -> Float[Array, "*batch A C"]:
    """L⁻¹ B by forward substitution. lower: L, lower triangular. right: B."""
    rows: list[Array] = []
    for i in range(lower.shape[-1]):
        known = sum((lower[..., i, j, None] * rows[j] for j in range(i)), jnp.zeros_like(right[..., i, :]))
        rows.append((right[..., i, :] - known) / lower[..., i, i, None])
    return jnp.stack(rows, axis=-2)


def solve_upper(upper: Float[Array, "*batch A A"], right: Float[Array, "*batch A C"]) -> Float[Array, "*batch A C"]:
    """U⁻¹ B by forward substitution with the rows and columns reversed. upper: U, upper triangular. right: B."""
    return solve_lower(upper[..., ::-1, ::-1], right[..., ::-1, :])[..., ::-1, :]


def cholesky_solve(lower: Float[Array, "*batch A A"], right: Float[Array, "*batch A C"]) -> Float[Array, "*batch A C"]:
    """(L Lᵀ)⁻¹ B. lower: L, lower triangular. right: B."""
    return solve_upper(jnp.swapaxes(lower, -1, -2), solve_lower(lower, right))


def inverse_root(matrix: Float[Array, "*batch A A"]) -> Cholesky:
    """The lower Cholesky factor of M⁻¹, without forming the inverse, which would square the condition number.

    Factorised from the last row up, M = U Uᵀ with U upper triangular; then M⁻¹ = U⁻ᵀ U⁻¹, and U⁻ᵀ is lower.

    matrix: M, symmetric.
    """
    flipped, positive = cholesky(matrix[..., ::-1, ::-1])
    upper = flipped[..., ::-1, ::-1]
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return Cholesky(solve_lower(jnp.swapaxes(upper, -1, -2), identity), positive)


def _dot(a: list[Array], b: list[Array], zero: Array) -> Array:
    return sum((x * y for x, y in zip(a, b, strict=True)), zero)
