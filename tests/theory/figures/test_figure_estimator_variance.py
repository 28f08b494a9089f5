"""The estimators' means against the exact gradient, and their order."""

import jax
import numpy as np
import pytest

from klimb.theory.figures import episodic, estimator_variance
from klimb.theory.figures.estimator_variance import NAMES, EstimatorVariance

KINDS = list(NAMES)


@pytest.fixture(scope="module")
def measured() -> EstimatorVariance:
    return estimator_variance.compute(batches=1000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["total_return", "reward_to_go", "value_baseline", "gae"])
def test_mean_is_the_exact_gradient(measured: EstimatorVariance, kind: str) -> None:
    row = KINDS.index(kind)
    assert np.all(np.abs(measured.mean[row] - measured.exact) < 4 * measured.mean_error[row])


def test_batch_average_takes_its_own_share_away(measured: EstimatorVariance) -> None:
    """Every episode is part of the average it is compared with: 1/16 of the gradient at most is lost to that."""
    row = KINDS.index("reward_to_go_average")
    bias = measured.mean[row] - measured.exact
    allowed = 4 * measured.mean_error[row] + np.abs(measured.exact).max() / measured.episodes
    assert np.all(np.abs(bias) < allowed)


def test_every_idea_takes_noise_away(measured: EstimatorVariance) -> None:
    variance, error = (dict(zip(KINDS, x, strict=True)) for x in (measured.variance, measured.standard_error))
    for more, less in (
        ("total_return", "reward_to_go"),
        ("reward_to_go", "reward_to_go_average"),
        ("reward_to_go_average", "value_baseline"),
        ("value_baseline", "gae"),
    ):
        assert variance[more] - variance[less] > 4 * np.hypot(error[more], error[less])


def test_exact_gradient_is_the_central_difference_of_the_exact_return() -> None:
    task = episodic.problem()
    with jax.enable_x64(True):
        exact = episodic.exact_gradient(task).reshape(task.pi.shape)

    def objective(logits: np.ndarray) -> float:
        pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        moved = episodic.Problem(task.transition, task.reward, task.initial, pi, task.horizon)
        return task.initial @ episodic.exact_values(moved)[0]

    h = 1e-5
    for s, a in np.ndindex(task.pi.shape):
        step = np.zeros(task.pi.shape)
        step[s, a] = h
        difference = (objective(np.log(task.pi) + step) - objective(np.log(task.pi) - step)) / (2 * h)
        np.testing.assert_allclose(exact[s, a], difference, rtol=1e-6, atol=1e-8)


def test_variance_shrinks_with_the_batch(measured: EstimatorVariance) -> None:
    small = estimator_variance.compute(batches=1000, episodes=4, seed=1)
    row = KINDS.index("value_baseline")
    ratio = small.variance[row] / measured.variance[row]
    assert abs(ratio - 4) < 0.6


def test_simulated_states_follow_the_problem() -> None:
    task = episodic.problem()
    states, _ = episodic.simulate(task, 40_000, seed=0)
    matrix = np.einsum("sa,sat->st", task.pi, task.transition)
    marginal = task.initial @ np.linalg.matrix_power(matrix, 3)
    np.testing.assert_allclose(np.bincount(states[3], minlength=5) / 40_000, marginal, atol=0.01)
