"""The linear-quadratic example in closed form, against finite differences, quadrature and its own invariants."""

import numpy as np
import pytest

from klimb.theory.figures import fields
from klimb.theory.figures.linear_quadratic import LinearQuadratic

POINTS = [(-1.8, 0.9), (-1.3, 0.05), (-1.0, 0.3), (-0.4, 0.6)]


@pytest.fixture(scope="module")
def found() -> fields.Fields:
    return fields.compute()


@pytest.mark.parametrize("gamma", [0.9, 0.99])
@pytest.mark.parametrize(("k", "sigma"), POINTS)
def test_objective_is_the_discounted_sum_of_second_moments(k: float, sigma: float, gamma: float) -> None:
    moment, total = 1.0, 0.0
    for t in range(8000):
        total += gamma**t * -0.5 * moment
        moment = (1 + k) ** 2 * moment + sigma**2
    np.testing.assert_allclose(LinearQuadratic(gamma).objective(k, sigma), total, rtol=1e-12)


@pytest.mark.parametrize(("k", "sigma"), POINTS)
def test_gradient_is_the_central_difference(k: float, sigma: float) -> None:
    problem, h = LinearQuadratic(0.99), 1e-5
    difference = [
        (problem.objective(k + h, sigma) - problem.objective(k - h, sigma)) / (2 * h),
        (problem.objective(k, sigma + h) - problem.objective(k, sigma - h)) / (2 * h),
    ]
    np.testing.assert_allclose(problem.gradient(k, sigma), difference, rtol=1e-6, atol=1e-7)


def test_fisher_is_the_mean_outer_product_of_scores() -> None:
    gamma, k, sigma = 0.9, -1.4, 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    s, z = np.meshgrid(nodes, nodes, indexing="ij")
    matrix, moment = np.zeros((2, 2)), 1.0
    for t in range(400):
        state, noise = np.sqrt(moment) * s, sigma * z
        score = np.stack([noise * state / sigma**2, noise**2 / sigma**3 - 1 / sigma])
        matrix += (1 - gamma) * gamma**t * np.einsum("i,j,aij,bij->ab", weights, weights, score, score)
        moment = (1 + k) ** 2 * moment + sigma**2
    np.testing.assert_allclose(matrix, np.diag(LinearQuadratic(gamma).fisher(k, sigma)), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_natural_paths_arrive_where_vanilla_ones_do_not(found: fields.Fields) -> None:
    vanilla, natural = (
        np.linalg.norm(paths[:, -1] - fields.OPTIMUM, axis=1) for paths in (found.vanilla_paths, found.natural_paths)
    )
    assert np.all(natural < 0.03)
    assert vanilla.max() > 0.15
    # From the other starts both are as good as there.
    assert np.all(vanilla > natural - 2 * found.step)
    assert np.sum(vanilla > 3 * natural) >= 4


def test_paths_take_steps_of_one_length_uphill(found: fields.Fields) -> None:
    problem = LinearQuadratic(found.gamma)
    for paths in (found.vanilla_paths, found.natural_paths):
        objective = problem.objective(paths[..., 0], paths[..., 1])
        assert np.all(np.diff(objective) >= -1e-9)
        length = np.linalg.norm(np.diff(paths, axis=1), axis=2)
        assert np.all(length < found.step * (1 + 1e-3))
        # A chord is shorter than its arc only where the path bends.
        np.testing.assert_allclose(length[:, :20], found.step, rtol=1e-2)


def test_natural_paths_are_parabolas(found: fields.Fields) -> None:
    ratio = (1 + found.natural_paths[..., 0]) / found.natural_paths[..., 1] ** 2
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)


def test_vanilla_paths_keep_their_invariant(found: fields.Fields) -> None:
    u, sigma, gamma = 1 + found.vanilla_paths[:, :60, 0], found.vanilla_paths[:, :60, 1], found.gamma
    kept = np.log(np.abs(u)) - gamma * u**2 / 2 - (1 - gamma) * np.log(sigma) - gamma * sigma**2 / 2
    seen = sigma > 0.01
    np.testing.assert_allclose(np.where(seen, kept, kept[:, :1]), np.broadcast_to(kept[:, :1], kept.shape), rtol=1e-4)


def test_arrows_are_unit_vectors(found: fields.Fields) -> None:
    for field in (found.vanilla, found.natural):
        np.testing.assert_allclose(np.linalg.norm(field, axis=0), 1)
