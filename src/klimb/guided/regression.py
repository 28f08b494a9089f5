"""Ridge regression on standardised columns, and the solution of its normal equations without LAPACK."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.types import weighted_mean


class Regression(NamedTuple):
    """y ≈ constant + coefficientsᵀ x, least squares over weighted rows.

    Axes: P regressors, Q targets. r2: R² of each target, in sample; 0 for a target that does not vary.
    """

    constant: Float[Array, " Q"]
    coefficients: Float[Array, "P Q"]
    r2: Float[Array, " Q"]


def ridge_regression(
    regressors: Float[Array, "B P"], targets: Float[Array, "B Q"], weight: Float[Array, " B"], strength: float | Array
) -> Regression:
    """argmin mean ‖y − constant − Wᵀx‖² + strength ‖W‖², for columns in units of their standard deviations.

    The constant is not penalised. The coefficients of a regressor that does not vary are 0.

    regressors: x. targets: y. weight: of each row, not negative; rows of weight 0 are ignored. strength: positive,
    which makes the problem well posed for few rows and collinear regressors.
    """
    mean_x, scale_x = mean_and_std(regressors, weight)
    mean_y, scale_y = mean_and_std(targets, weight)
    share = (weight / jnp.maximum(jnp.sum(weight), 1))[:, None]
    used = weight[:, None] > 0
    x = jnp.where(used, (regressors - mean_x) / scale_x, 0)
    y = jnp.where(used, (targets - mean_y) / scale_y, 0)
    weighted = share * x
    normal = weighted.T @ x + strength * jnp.eye(x.shape[1], dtype=x.dtype)
    standardised = solve_positive(normal, weighted.T @ y)
    residual = y - x @ standardised
    coefficients = standardised / scale_x[:, None] * scale_y
    variance = jnp.sum(share * jnp.square(y), axis=0)
    unexplained = jnp.sum(share * jnp.square(residual), axis=0) / jnp.where(variance > 0, variance, 1)
    return Regression(
        constant=mean_y - mean_x @ coefficients,
        coefficients=coefficients,
        r2=jnp.where(variance > 0, 1 - unexplained, 0),
    )


def mean_and_std(
    columns: Float[Array, "B P"], weight: Float[Array, " B"]
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Mean and standard deviation of every column; the latter is 1 for a column that varies by rounding only.

    columns: the data. weight: of each row, not negative.
    """
    mean = weighted_mean(columns, weight)
    std = jnp.sqrt(weighted_mean(jnp.square(columns - mean), weight))
    rounding = 16 * jnp.finfo(columns.dtype).eps * jnp.abs(mean)
    return mean, jnp.where(std > rounding, std, 1)


def solve_positive(matrix: Float[Array, "n n"], right: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """M⁻¹ B of a symmetric positive definite M of any size, by a Cholesky factorisation with loops over the columns.

    Loops, because unrolling is for a few rows (`klimb.guided.planning.small_matrices`) and LAPACK must not be vmapped.

    matrix: M. right: B.
    """
    size = len(matrix)
    index = jnp.arange(size)
    floor = size * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix)

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        """j: the column. carry: what is left of M, and the columns of L so far."""
        remainder, lower = carry
        # Rounding alone can take a pivot of a nearly singular matrix below its floor.
        column = jnp.where(index >= j, remainder[:, j], 0) / jnp.sqrt(jnp.maximum(remainder[j, j], floor[j]))
        return remainder - column[:, None] * column, lower.at[:, j].set(column)

    def forward(j: Array, rows: Array) -> Array:
        """j: the row. rows: solved before j, right-hand sides from j on."""
        row = rows[j] / lower[j, j]
        return jnp.where((index > j)[:, None], rows - lower[:, j, None] * row, rows).at[j].set(row)

    def back(i: Array, rows: Array) -> Array:
        """i: the row, counted from the last one. rows: solved after it, right-hand sides up to it."""
        j = size - 1 - i
        row = rows[j] / lower[j, j]
        return jnp.where((index < j)[:, None], rows - lower[j, :, None] * row, rows).at[j].set(row)

    _, lower = jax.lax.fori_loop(0, size, eliminate, (matrix, jnp.zeros_like(matrix)))
    return jax.lax.fori_loop(0, size, back, jax.lax.fori_loop(0, size, forward, right))


def positive_part(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Σ max(λ_i, 0) v_i v_iᵀ of a symmetric M: the nearest positive semidefinite matrix.

    (M + M sign(M)) / 2, with the sign by Newton's iteration X ← X (3 I − X²) / 2 (Higham 2008, section 5.3), which
    needs only products. Each iteration enlarges a small eigenvalue by half until it is near ±1; those that do not get
    there in this number of iterations are rounding errors.

    matrix: M.
    """
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    eps = float(jnp.finfo(matrix.dtype).eps)
    iterations = math.ceil(math.log(1 / eps) / math.log(1.5)) + 6
    size = jnp.sqrt(jnp.sum(jnp.square(matrix)))
    start = matrix / jnp.where(size > 0, size, 1)
    sign = jax.lax.fori_loop(0, iterations, lambda _, x: 0.5 * x @ (3 * identity - x @ x), start)
    absolute = matrix @ sign
    return 0.5 * (matrix + 0.5 * (absolute + absolute.T))
