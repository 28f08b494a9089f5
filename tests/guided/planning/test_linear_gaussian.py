"""Linear-Gaussian controllers against SciPy, and small matrices against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from riccati import random_lq, riccati

from klimb.guided.planning.ilqr import plan
from klimb.guided.planning.linear_gaussian import LinearGaussian
from klimb.guided.planning.small_matrices import cholesky, cholesky_solve, inverse_root, solve_upper
from klimb.guided.planning.trajectory import Plan


def random_controller(rng: np.random.Generator, horizon: int = 4, states: int = 3, actions: int = 2) -> LinearGaussian:
    lower = np.tril(rng.normal(size=(horizon, actions, actions)))
    index = np.arange(actions)
    lower[:, index, index] = np.abs(lower[:, index, index]) + 0.3
    shapes = ((horizon, states), (horizon, actions), (horizon, actions, states))
    return LinearGaussian(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), jnp.asarray(lower))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_small_matrices_equal_lapack(size: int) -> None:
    rng = np.random.default_rng(size)
    roots, right = rng.normal(size=(20, size, size)), rng.normal(size=(20, size, 3))
    matrices = roots @ np.swapaxes(roots, -1, -2) + 0.01 * np.eye(size)
    found = jax.jit(cholesky)(jnp.asarray(matrices))
    assert np.all(found.positive)
    np.testing.assert_allclose(found.lower, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    solved = jax.jit(cholesky_solve)(found.lower, jnp.asarray(right))
    np.testing.assert_allclose(solved, np.linalg.solve(matrices, right), 1e-7)
    upper = jnp.swapaxes(found.lower, -1, -2)
    np.testing.assert_allclose(upper @ jax.jit(solve_upper)(upper, jnp.asarray(right)), right, atol=1e-9)
    root = jax.jit(inverse_root)(jnp.asarray(matrices))
    expected = np.linalg.cholesky(np.linalg.inv(matrices))
    np.testing.assert_allclose(root.lower, expected, rtol=1e-6, atol=1e-7 * np.max(np.abs(expected)))


@pytest.mark.usefixtures("x64")
def test_what_is_not_positive_definite_is_found_out() -> None:
    singular = jnp.asarray([[1.0, 2.0], [2.0, 4.0]])
    cases = jnp.stack([jnp.eye(2), -jnp.eye(2), singular, jnp.full((2, 2), jnp.nan), 1e-12 * jnp.eye(2), 0 * singular])
    found = cholesky(cases)
    np.testing.assert_array_equal(found.positive, [True, False, False, False, True, False])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_covariance_is_the_scaled_inverse_of_the_curvature() -> None:
    rng = np.random.default_rng(0)
    lq, state = random_lq(rng, 3, 2), rng.normal(size=3)
    planned = plan(lq.problem(6), jnp.asarray(state))
    best = riccati(lq, 6, state)
    for temperature in (1.0, 0.2):
        controller = LinearGaussian.around(planned, temperature)
        np.testing.assert_allclose(controller.covariance, temperature * np.linalg.inv(best.q_uu), rtol=1e-7)
        np.testing.assert_allclose(controller.gains, best.gains, rtol=1e-7, atol=1e-8)
        for t in (0, 5):
            np.testing.assert_allclose(controller.mean(t, planned.states[t]), best.actions[t], atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_the_controller_is_the_softmin_of_the_cost_to_go() -> None:
    """At the last step log π(u|x) = −Q(x, u) / temperature + constant, in every state; exact in an LQ problem."""
    rng = np.random.default_rng(1)
    lq = random_lq(rng, 3, 2)
    controller = LinearGaussian.around(plan(lq.problem(6), jnp.asarray(rng.normal(size=3))), 0.7)
    log_prob = jax.jit(LinearGaussian.log_prob)
    for _ in range(5):
        state, one, other = (jnp.asarray(rng.normal(size=n)) for n in (3, 2, 2))
        q = [lq.cost(state, u) + lq.end_cost(lq.dynamics(state, u)) for u in (one, other)]
        logs = [log_prob(controller, 5, state, u) for u in (one, other)]
        np.testing.assert_allclose(logs[0] - logs[1], (q[1] - q[0]) / 0.7, rtol=1e-7)


def test_a_plan_without_curvature_gives_no_covariance() -> None:
    q_uu = jnp.asarray([1.0, 0.0, 2.0])[:, None, None]
    path = (jnp.zeros((3, 1)), jnp.zeros((4, 2)), jnp.zeros((3, 1, 2)), jnp.zeros((3, 1)))
    flat = Plan(*path, q_uu, *(jnp.zeros(()),) * 2, *(jnp.int32(0),) * 3)
    factor = LinearGaussian.around(flat).cholesky
    np.testing.assert_array_equal(np.isnan(factor[:, 0, 0]), [False, True, False])


@pytest.mark.usefixtures("x64")
def test_log_probabilities_and_entropy_equal_scipy() -> None:
    rng = np.random.default_rng(2)
    controller = random_controller(rng)
    log_prob = jax.jit(LinearGaussian.log_prob)
    for t in range(4):
        state, action = rng.normal(size=3), rng.normal(size=2)
        mean = controller.mean(t, jnp.asarray(state))
        expected = controller.actions[t] + controller.gains[t] @ (state - controller.states[t])
        np.testing.assert_allclose(mean, expected, rtol=1e-12)
        gaussian = scipy.stats.multivariate_normal(mean, controller.covariance[t])
        found = log_prob(controller, t, jnp.asarray(state), jnp.asarray(action))
        np.testing.assert_allclose(found, gaussian.logpdf(action), rtol=1e-10)
        np.testing.assert_allclose(controller.entropy()[t], gaussian.entropy(), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_kl_equals_the_closed_form_and_the_mean_of_log_ratios() -> None:
    rng = np.random.default_rng(3)
    one, other = random_controller(rng), random_controller(rng)
    states = jnp.asarray(rng.normal(size=(5, 4, 3)))
    kl = jax.jit(LinearGaussian.kl)
    found = kl(one, other, states)
    np.testing.assert_allclose(kl(one, one, states), 0, atol=1e-12)
    first, second = np.asarray(one.covariance), np.asarray(other.covariance)
    means = jax.jit(lambda t, state: other.mean(t, state) - one.mean(t, state))
    for t in range(4):
        inverse = np.linalg.inv(second[t])
        total = 0.0
        for state in states[:, t]:
            apart = np.asarray(means(t, state))
            logs = np.linalg.slogdet(second[t])[1] - np.linalg.slogdet(first[t])[1]
            total += 0.5 * (np.trace(inverse @ first[t]) + apart @ inverse @ apart - 2 + logs)
        np.testing.assert_allclose(found[t], total / 5, rtol=1e-10)
    state = states[0, 0]
    actions = scipy.stats.multivariate_normal(one.mean(0, state), first[0]).rvs(40_000, random_state=0)
    ratio = jax.jit(jax.vmap(lambda u: one.log_prob(0, state, u) - other.log_prob(0, state, u)))
    ratios = ratio(jnp.asarray(actions))
    alone = kl(one, other, jnp.broadcast_to(state, (5, 4, 3)))[0]
    assert abs(np.mean(ratios) - alone) < 4 * np.std(ratios) / np.sqrt(len(ratios))


def test_samples_have_the_moments() -> None:
    controller = jax.tree.map(lambda leaf: leaf.astype("float32"), random_controller(np.random.default_rng(4)))
    state, number = jnp.asarray([0.3, -0.2, 0.5]), 40_000
    sample = jax.jit(jax.vmap(lambda key: controller.sample(key, 1, state)))
    draws = sample(jax.random.split(jax.random.key(0), number))
    covariance = np.asarray(controller.covariance[1])
    error = np.sqrt(np.diag(covariance) / number)
    np.testing.assert_array_less(np.abs(np.mean(draws, axis=0) - controller.mean(1, state)), 4.5 * error)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_array_less(np.abs(np.cov(np.asarray(draws).T) - covariance) / scale, 4.5 * np.sqrt(2 / number))


@pytest.mark.slow
def test_rollouts_follow_the_dynamics_and_report_their_probabilities() -> None:
    rng = np.random.default_rng(5)
    lq = random_lq(rng, 3, 2, "float32")
    controller = jax.tree.map(lambda leaf: leaf.astype("float32"), random_controller(rng))
    start, limits = jnp.ones(3), (jnp.asarray([-0.3, -0.1]), jnp.asarray([0.2, 0.4]))
    for bounds in (None, limits):
        found = controller.rollout(jax.random.key(0), lq.dynamics, start, 6, limits=bounds)
        assert found.states.shape == (6, 5, 3)
        np.testing.assert_array_equal(found.states[:, 0], np.ones((6, 3)))
        assert len(np.unique(found.actions[:, 0, 0])) == 6
        applied = found.actions if bounds is None else jnp.clip(found.actions, *bounds)
        successors = jax.jit(jax.vmap(jax.vmap(lq.dynamics)))(found.states[:, :-1], applied)
        np.testing.assert_allclose(found.states[:, 1:], successors, rtol=1e-4, atol=1e-5)
        by_time = jax.vmap(controller.log_prob)
        logs = jax.jit(jax.vmap(by_time, (None, 0, 0)))(jnp.arange(4), found.states[:, :-1], found.actions)
        np.testing.assert_allclose(found.log_probs, logs, rtol=1e-4, atol=1e-4)
    assert np.any(np.asarray(found.actions) > 0.4)
