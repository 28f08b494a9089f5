"""π e^{A/λ} is the best penalised policy, greedy at one end and a natural gradient step all the way to the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.tabular.table import SoftmaxTable
from klimb.theory.exact_gradient import fisher_matrix, policy_gradient
from klimb.theory.exact_soft_improvement import (
    first_order_error_bound,
    first_order_improvement,
    greedy_distance_bound,
    greedy_improvement,
    mean_kl,
    multiplier_at,
    soft_improvement,
)
from problems import A, S, make_mdp, make_table, optimum, probabilities
from problems import mean_kl as kl_by_definition


def setting(seed: int = 0):
    """(problem, π, A^π)"""
    mdp, pi = make_mdp(seed), probabilities(make_table(seed))
    return mdp, pi, mdp.advantages(pi)


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 10.0])
def test_no_other_policy_has_a_larger_penalised_gain(x64, multiplier):
    _, pi, advantage = setting()

    def penalised(table: np.ndarray) -> np.ndarray:
        kl = np.sum(table * (np.log(table) - np.log(pi)), axis=-1)
        return np.sum(table * np.asarray(advantage), axis=-1) - multiplier * kl

    best = np.asarray(soft_improvement(pi, advantage, multiplier))
    np.testing.assert_allclose(best.sum(axis=1), 1, rtol=1e-12)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 0.1, 1.0):
        other = best * np.exp(scale * rng.normal(size=(200, S, A)))
        other /= other.sum(axis=-1, keepdims=True)
        lost = penalised(best) - penalised(other)
        assert np.all(lost > -1e-12)
        assert lost.max() > 1e-3 * multiplier * scale**2


def test_the_hard_end_is_policy_iteration(x64):
    mdp, pi, advantage = setting(1)
    action_values = np.asarray(mdp.action_values(pi))
    certain = np.eye(A)[action_values.argmax(axis=1)]
    np.testing.assert_array_equal(greedy_improvement(pi, advantage), certain)
    np.testing.assert_allclose(soft_improvement(pi, advantage, 1e-4), certain, atol=1e-12)
    even = jnp.full((S, A), 1 / A)
    for _ in range(6):
        pi = greedy_improvement(even, mdp.advantages(pi))
    assert float(mdp.objective(pi)) == pytest.approx(optimum(mdp), rel=1e-10)


def test_equal_actions_share_as_before_and_impossible_ones_stay_so(x64):
    pi, advantage = jnp.array([[0.1, 0.3, 0.6, 0.0]]), jnp.array([[1.0, 1.0, -2.0, 9.0]])
    np.testing.assert_allclose(greedy_improvement(pi, advantage), [[0.25, 0.75, 0, 0]], rtol=1e-12)
    np.testing.assert_allclose(soft_improvement(pi, advantage, 0.01), [[0.25, 0.75, 0, 0]], atol=1e-12)
    assert float(greedy_distance_bound(pi, advantage, 1.0)[0]) == pytest.approx(1.5 * np.exp(-3), rel=1e-12)
    assert float(greedy_distance_bound(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)), 1.0)[0]) == 0.0


def test_the_distance_to_the_greedy_policy_nears_its_bound(x64):
    """Of two actions: with odds r against the best one the distance is r/(1 + r), and the bound is r."""
    pi, advantage = jnp.array([[0.01, 0.99]]), jnp.array([[0.99, -0.01]])
    for multiplier in (1.0, 0.3, 0.1, 0.03):
        bound = float(greedy_distance_bound(pi, advantage, multiplier)[0])
        distance = 1 - float(soft_improvement(pi, advantage, multiplier)[0, 0])
        assert bound == pytest.approx(99 * np.exp(-1 / multiplier), rel=1e-12)
        assert distance == pytest.approx(bound / (1 + bound), rel=1e-6)


def test_the_soft_end_is_linear_and_the_rest_of_second_order(x64):
    _, pi, advantage = setting()
    errors = []
    for multiplier in (1e2, 1e3, 1e4):
        policy, line = (f(pi, advantage, multiplier) for f in (soft_improvement, first_order_improvement))
        error = 0.5 * np.abs(np.asarray(policy - line)).sum(axis=1)
        assert np.all(error <= np.asarray(first_order_error_bound(pi, advantage, multiplier)))
        errors.append(error.max())
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 100, rtol=0.05)


@pytest.mark.slow
def test_every_soft_step_is_a_natural_gradient_step(x64):
    """In a softmax table F⁻¹g, g the gradient of the mean over d^π, moves logits by A up to a constant per state."""
    mdp, policy = make_mdp(2), make_table(2)
    gradient = (1 - mdp.gamma) * np.asarray(policy_gradient(mdp, policy))
    natural = np.linalg.pinv(np.asarray(fisher_matrix(mdp, policy)), rcond=1e-10) @ gradient
    pi = probabilities(policy)
    for multiplier in (0.2, 5.0):
        moved = SoftmaxTable(policy.logits + natural.reshape(S, A) / multiplier)
        np.testing.assert_allclose(
            probabilities(moved), soft_improvement(pi, mdp.advantages(pi), multiplier), rtol=1e-8
        )


@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 0.3])
def test_the_multiplier_of_a_trust_region_spends_all_of_it(x64, max_kl):
    mdp, pi, advantage = setting()
    states = mdp.state_distribution(pi)
    policy = soft_improvement(pi, advantage, multiplier_at(pi, advantage, states, max_kl))
    assert kl_by_definition(policy, pi, states) == pytest.approx(max_kl, rel=1e-8)
    assert float(mean_kl(pi, policy, states)) == pytest.approx(max_kl, rel=1e-8)


def test_where_the_greedy_policy_is_inside_the_trust_region_it_is_taken(x64):
    mdp, pi, advantage = setting()
    multiplier = multiplier_at(pi, advantage, mdp.state_distribution(pi), 100.0)
    np.testing.assert_allclose(
        soft_improvement(pi, advantage, multiplier), greedy_improvement(pi, advantage), atol=1e-12
    )


def test_single_precision_has_the_same_limits():
    pi, advantage = jax.nn.softmax(jnp.array([[0.0, 1.0, 2.0]])), jnp.array([[1.0, 0.5, -0.6]])
    assert np.isfinite(soft_improvement(pi, advantage, 1e-6)).all()
    np.testing.assert_allclose(soft_improvement(pi, advantage, 1e-6), [[1.0, 0.0, 0.0]], atol=1e-7)
