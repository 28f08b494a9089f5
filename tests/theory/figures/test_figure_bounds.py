"""The drift of states: never beyond its bounds, and on the bound where a wrong action is for good."""

import jax
import numpy as np
import pytest

from klimb.tabular.mdp import TabularMDP
from klimb.theory.figures import bounds


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_drift_stays_below_both_bounds(epsilon: float) -> None:
    found = bounds.compute(epsilon=epsilon, horizon=41, problems=4)
    assert np.all(found.random_epsilon <= epsilon + 1e-12)
    assert found.random_epsilon.max() == pytest.approx(epsilon)
    assert np.all(found.random <= found.coupling_bound + 1e-12)
    assert np.all(found.random[:, 1:] > 0)
    assert np.all(found.coupling_bound <= found.linear_bound + 1e-12)
    time = np.arange(41)
    np.testing.assert_allclose(found.coupling_bound, 1 - (1 - epsilon) ** time, atol=1e-14)
    np.testing.assert_allclose(found.linear_bound, epsilon * time, atol=1e-14)


def test_a_wrong_action_for_good_attains_the_bound() -> None:
    found = bounds.compute(horizon=61, problems=1)
    np.testing.assert_allclose(found.corridor, 1 - (1 - found.epsilon) ** np.arange(61), atol=1e-12, rtol=0)


def test_drift_is_half_the_sum_of_differences() -> None:
    with jax.enable_x64(True):
        mdp = TabularMDP.random(0, 4, 2, 0.9)
        pi, new = jax.numpy.asarray(np.random.default_rng(0).dirichlet(np.ones(2), size=(2, 4)))
        found = bounds.drift(mdp, pi, new, 6)
        matrices = [np.einsum("sa,sat->st", p, mdp.transition) for p in (pi, new)]
        initial = np.asarray(mdp.initial)
    for t in range(6):
        first, second = (initial @ np.linalg.matrix_power(m, t) for m in matrices)
        np.testing.assert_allclose(found[t], 0.5 * np.abs(first - second).sum(), atol=1e-14)
