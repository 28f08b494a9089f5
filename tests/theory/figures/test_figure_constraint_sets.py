"""Points on their sets, steps that are best on them, and the KL that becomes the ellipse."""

import numpy as np
import pytest

from klimb.theory.figures import constraint_sets
from klimb.theory.figures.constraint_sets import ConstraintSets
from klimb.theory.figures.linear_quadratic import LinearQuadratic


@pytest.fixture(scope="module")
def sets() -> ConstraintSets:
    return constraint_sets.compute()


def quadratic(sets: ConstraintSets, delta: np.ndarray) -> np.ndarray:
    return 0.5 * sets.fisher @ np.square(delta)


def test_points_satisfy_their_constraints(sets: ConstraintSets) -> None:
    np.testing.assert_allclose(np.sum(sets.circle**2, axis=0), sets.epsilon)
    np.testing.assert_allclose(quadratic(sets, sets.ellipse), sets.epsilon)
    problem = LinearQuadratic(0.99)
    for curve, old_new in ((sets.kl_old_new, True), (sets.kl_new_old, False)):
        np.testing.assert_allclose(problem.mean_kl(*sets.theta, curve, old_new=old_new), sets.epsilon, rtol=1e-9)


def test_mean_kl_is_the_quadrature_of_the_log_ratio() -> None:
    k, sigma, delta = -1.5, 0.3, np.array([0.1, -0.05])
    problem = LinearQuadratic(0.99)
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    weights = weights / weights.sum()
    s, z = np.meshgrid(np.sqrt(problem.state_moment(k, sigma)) * nodes, nodes, indexing="ij")

    def log_density(action: np.ndarray, gain: float, std: float) -> np.ndarray:
        return -0.5 * ((action - gain * s) / std) ** 2 - np.log(std)

    old, new = (k, sigma), (k + delta[0], sigma + delta[1])
    for old_new, (first, second) in ((True, (old, new)), (False, (new, old))):
        action = first[0] * s + first[1] * z
        mean = weights @ (log_density(action, *first) - log_density(action, *second)) @ weights
        np.testing.assert_allclose(problem.mean_kl(k, sigma, delta, old_new=old_new), mean, rtol=1e-10)


@pytest.mark.parametrize("kind", ["vanilla", "natural"])
def test_steps_end_on_their_sets_where_the_gain_is_largest(sets: ConstraintSets, kind: str) -> None:
    step, curve = (sets.vanilla_step, sets.circle) if kind == "vanilla" else (sets.natural_step, sets.ellipse)
    size = step @ step if kind == "vanilla" else quadratic(sets, step)
    np.testing.assert_allclose(size, sets.epsilon)
    gains = sets.gradient @ curve
    assert np.all(gains <= sets.gradient @ step + 1e-12)
    # The curve has a point near the tip.
    np.testing.assert_allclose(gains.max(), sets.gradient @ step, rtol=1e-3)


def test_printed_step_length_leaves_the_ellipse(sets: ConstraintSets) -> None:
    """√(2ε/(gᵀFg)) F⁻¹g, as it is sometimes printed, is no step of size ε."""
    g, fisher = sets.gradient, sets.fisher
    printed = np.sqrt(2 * sets.epsilon / (g @ (fisher * g))) * g / fisher
    assert abs(quadratic(sets, printed) / sets.epsilon - 1) > 0.5


def test_kl_contour_becomes_the_ellipse() -> None:
    problem, k, sigma = LinearQuadratic(0.99), -1.5, 0.3
    angle = np.linspace(0, 2 * np.pi, 33)
    rays = np.stack([np.cos(angle), np.sin(angle)])
    for old_new in (True, False):
        worst = []
        for epsilon in (1e-2, 1e-4, 1e-6):
            contour = constraint_sets.kl_contour(problem, k, sigma, rays, epsilon, old_new=old_new)
            radius = np.sqrt(2 * epsilon / (problem.fisher(k, sigma) @ rays**2))
            worst.append(np.abs(np.linalg.norm(contour, axis=0) / radius - 1).max())
        # The next term of the KL is of third order, so that the ratio errs by O(√ε).
        assert worst[0] > 5 * worst[1] > 25 * worst[2]
        assert worst[2] < 2e-3
