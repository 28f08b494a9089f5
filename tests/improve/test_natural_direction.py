"""Natural directions: conjugate gradient, sample space and dense solves against NumPy and against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.improve.natural_direction import Direction, Solve, conjugate_gradient, dense, woodbury


def positive_definite(size: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


@pytest.mark.parametrize("size", [1, 2, 12])
def test_conjugate_gradient_solves_like_numpy(x64, size):
    matrix, b = positive_definite(size, seed=size), np.random.default_rng(5).normal(size=size)
    solve = conjugate_gradient(lambda v: matrix @ v, jnp.asarray(b), iterations=10 * size, tolerance=1e-13)
    np.testing.assert_allclose(solve.x, np.linalg.solve(matrix, b), rtol=1e-9)
    assert not solve.breakdown
    assert 1 <= solve.iterations <= 3 * size


def test_conjugate_gradient_needs_as_many_products_as_there_are_different_eigenvalues(x64):
    spectrum = jnp.array([1.0, 1.0, 4.0, 4.0, 4.0, 9.0])
    solve = conjugate_gradient(lambda v: spectrum * v, jnp.ones(6), iterations=50, tolerance=1e-10)
    assert solve.iterations == 3
    np.testing.assert_allclose(solve.x, 1 / spectrum, rtol=1e-10)


def test_conjugate_gradient_of_zero_is_zero_after_no_product():
    solve = conjugate_gradient(lambda v: 3 * v, jnp.zeros(4), iterations=10, tolerance=1e-5)
    assert np.array_equal(solve.x, np.zeros(4))
    assert solve.iterations == 0
    assert not solve.breakdown


@pytest.mark.parametrize(
    ("diagonal", "useful"),
    [((0.0, 0.0, 0.0), 0), ((-1.0, -2.0, -3.0), 0), ((1.0, 1.0, -0.5), None)],
    ids=["zero", "negative", "indefinite"],
)
def test_conjugate_gradient_says_when_it_meets_no_curvature(diagonal, useful):
    diagonal = jnp.array(diagonal)
    solve = jax.jit(lambda b: conjugate_gradient(lambda v: diagonal * v, b, iterations=10, tolerance=1e-6))(
        jnp.array([1.0, 2.0, 3.0])
    )
    assert solve.breakdown
    assert np.isfinite(solve.x).all()
    assert solve.iterations < 10
    if useful == 0:
        assert np.array_equal(solve.x, np.zeros(3))


def test_conjugate_gradient_stops_at_the_relative_residual_asked_for(x64):
    matrix, b = positive_definite(30, seed=0), np.random.default_rng(1).normal(size=30)

    def run(iterations, tolerance):
        return conjugate_gradient(lambda v: matrix @ v, jnp.asarray(b), iterations=iterations, tolerance=tolerance)

    def residual(solve):
        return np.linalg.norm(b - matrix @ np.asarray(solve.x)) / np.linalg.norm(b)

    used = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        solve = run(500, tolerance)
        assert residual(solve) <= tolerance * (1 + 1e-6)
        assert residual(run(int(solve.iterations) - 1, tolerance)) > tolerance
        used.append(int(solve.iterations))
    assert used[0] < used[1] < used[2]
    limited = run(4, 1e-6)
    assert limited.iterations == 4
    assert not limited.breakdown


def test_conjugate_gradient_is_deterministic_and_vmaps(x64):
    matrices = jnp.stack([jnp.asarray(positive_definite(6, seed)) for seed in range(4)])
    bs = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6))).at[2].set(0)

    def solve(matrix, b):
        return conjugate_gradient(lambda v: matrix @ v, b, iterations=40, tolerance=1e-10)

    together = jax.jit(jax.vmap(solve))
    first, second = together(matrices, bs), together(matrices, bs)
    assert np.array_equal(first.x, second.x)
    assert first.iterations[2] == 0
    for k in range(4):
        np.testing.assert_allclose(first.x[k], np.linalg.solve(matrices[k], bs[k]), rtol=1e-8, atol=1e-14)
        assert first.iterations[k] == solve(matrices[k], bs[k]).iterations


@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (1, 3)], ids=["few samples", "many samples", "one sample"])
@pytest.mark.parametrize("damping", [1e-4, 0.1, 10.0])
def test_three_solvers_give_one_direction(x64, shape, damping):
    rng = np.random.default_rng(sum(shape))
    rows, b = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape[1]))
    expected = np.linalg.solve(rows.T @ rows + damping * np.eye(shape[1]), b)
    by_cg = conjugate_gradient(lambda v: rows.T @ (rows @ v) + damping * v, b, iterations=200, tolerance=1e-14)
    for solve in (by_cg, woodbury(rows, b, damping=damping), dense(rows, b, damping=damping)):
        np.testing.assert_allclose(solve.x, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        assert not solve.breakdown


def test_refinement_brings_back_the_digits_that_small_damping_costs():
    """In single precision with η a ten-thousandth of F's size: 1e-3 without the second solve."""
    rng = np.random.default_rng(0)
    rows, b = rng.normal(size=(8, 30)), rng.normal(size=30)
    expected = np.linalg.solve(rows.T @ rows + 1e-2 * np.eye(30), b)
    x = woodbury(jnp.asarray(rows, jnp.float32), jnp.asarray(b, jnp.float32), damping=1e-2).x
    assert np.linalg.norm(x - expected) / np.linalg.norm(expected) < 2e-5


@pytest.mark.slow
def test_solvers_vmap(x64):
    rng = np.random.default_rng(1)
    rows, b = jnp.asarray(rng.normal(size=(3, 4, 6))), jnp.asarray(rng.normal(size=(3, 6)))
    for solver in (woodbury, dense):
        together = jax.jit(jax.vmap(lambda u, v, solver=solver: solver(u, v, damping=0.1).x))(rows, b)
        for k in range(3):
            np.testing.assert_allclose(together[k], solver(rows[k], b[k], damping=0.1).x, rtol=1e-10)


def test_step_length_uses_the_inverse_and_no_damping(x64):
    """α = √(2ε / xᵀF x) makes ½ (αx)ᵀ F (αx) = ε; the printed √(2ε / gᵀF g) does not."""
    fisher, gradient, damping, epsilon = jnp.diag(jnp.array([4.0, 1.0, 0.25])), jnp.array([1.0, -2.0, 0.5]), 0.3, 0.01
    x = jnp.linalg.solve(fisher + damping * jnp.eye(3), gradient)
    direction = Direction.of(gradient, Solve(x, jnp.int32(0), jnp.bool_(False)), lambda v: fisher @ v, damping=damping)
    step = direction.step_size(epsilon) * x
    assert float(0.5 * step @ fisher @ step) == pytest.approx(epsilon, rel=1e-12)
    assert float(direction.residual) < 1e-12
    printed = jnp.sqrt(2 * epsilon / (gradient @ fisher @ gradient)) * x
    assert abs(float(0.5 * printed @ fisher @ printed) / epsilon - 1) > 0.5
    flat = direction._replace(x=0 * x, curvature=jnp.zeros(()))
    assert flat.step_size(epsilon) == 0


def preconditioner_of(matrix: np.ndarray, seed: int) -> np.ndarray:
    """A positive definite matrix that is near the inverse, but not it."""
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(np.linalg.inv(matrix)) @ (np.eye(len(matrix)) + 0.03 * rng.normal(size=matrix.shape))
    return factor @ factor.T


def test_a_preconditioner_changes_the_way_and_not_the_end(x64):
    basis, _ = np.linalg.qr(positive_definite(30, seed=3))
    matrix, b = basis @ np.diag(np.logspace(-2, 2, 30)) @ basis.T, np.random.default_rng(4).normal(size=30)
    near = preconditioner_of(matrix, seed=5)

    def run(preconditioner, iterations):
        return conjugate_gradient(
            lambda v: matrix @ v,
            jnp.asarray(b),
            iterations=iterations,
            tolerance=1e-10,
            preconditioner=preconditioner,
        )

    exact = np.linalg.solve(matrix, b)
    plain, helped = run(None, 200), run(lambda v: near @ v, 200)
    for solve in (plain, helped):
        np.testing.assert_allclose(solve.x, exact, rtol=1e-6)
        np.testing.assert_allclose(solve.image, matrix @ np.asarray(solve.x), rtol=1e-6, atol=1e-8)
    assert helped.iterations < plain.iterations / 2


def test_stops_when_a_product_adds_less_than_a_share_of_the_gain(x64):
    """bᵀx of the solution so far is its squared length in the inner product of A: cos² to the exact one, times bᵀx*."""
    matrix, b = positive_definite(30, seed=6), np.random.default_rng(7).normal(size=30)

    def run(iterations, min_progress=0.0):
        return conjugate_gradient(
            lambda v: matrix @ v, jnp.asarray(b), iterations=iterations, tolerance=0.0, min_progress=min_progress
        )

    gains = [b @ np.asarray(run(count).x) for count in range(1, 12)]
    progress = np.diff(gains) / gains[1:]
    assert (progress > 0).all()
    expected = 2 + int(np.argmax(progress < 0.1))
    assert run(12, min_progress=0.1).iterations == expected
    exact = np.linalg.solve(matrix, b)
    x = np.asarray(run(4).x)
    cosine = x @ matrix @ exact / np.sqrt((x @ matrix @ x) * (exact @ matrix @ exact))
    assert cosine**2 == pytest.approx(gains[3] / (b @ exact), rel=1e-9)


def test_the_direction_takes_no_product_where_the_solver_has_it(x64):
    matrix, b = positive_definite(9, seed=8), jnp.ones(9)
    solve = conjugate_gradient(lambda v: matrix @ v + 0.2 * v, b, iterations=4, tolerance=0.0)

    def refused(v):
        raise AssertionError("another product")

    direction = Direction.of(b, solve, refused, damping=0.2)
    x = np.asarray(solve.x)
    assert float(direction.curvature) == pytest.approx(x @ matrix @ x, rel=1e-9)
    assert float(direction.residual) == pytest.approx(np.linalg.norm(matrix @ x + 0.2 * x - 1) / 3, rel=1e-9)
