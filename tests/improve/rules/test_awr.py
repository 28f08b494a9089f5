"""AWR against the closed form of its fit, and its metrics against NumPy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import AWR
from problems import A, S, batch_on_table, make_mdp, make_table, probabilities, slow_except, take

FULL = {"num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """A policy, its batch of exact expectations, and as tables its probabilities, advantages and the rows' weights."""
    mdp, policy = make_mdp(0), make_table(1)
    batch = batch_on_table(mdp, policy)
    columns = (np.asarray(column).reshape(S, A) for column in (batch.advantage, batch.weight))
    return policy, batch, np.asarray(probabilities(policy)), *columns


CASES = [(0.5, 1e9), (0.5, 1.2), (3.0, 1e9)]


@pytest.mark.parametrize("case", slow_except(CASES[:2], CASES))
def test_converges_to_the_policy_times_its_clipped_weights(problem, case):
    """π min(e^{A/β}, w_max)/Z in every state; without the clip the optimum of E[A] − β KL(π'‖π)."""
    (temperature, max_weight), (policy, batch, pi, advantage, _) = case, problem
    rule = AWR(learning_rate=0.02, epochs=2500, **FULL)
    new, _, info = take(rule, policy, batch, temperature=temperature, max_weight=max_weight)
    expected = pi * np.minimum(np.exp(advantage / temperature), max_weight)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities(new), expected, rtol=0, atol=2e-4)
    assert np.abs(expected - pi).max() > 0.02
    assert (float(info.extra["clipped_weights"]) > 0) == (max_weight < 1e9)


def test_reports_its_weights(problem):
    policy, batch, _, advantage, weight = problem
    _, _, info = take(AWR(epochs=1, **FULL), policy, batch, temperature=0.2, max_weight=2.0)
    unclipped = np.exp(advantage / 0.2)
    w = np.minimum(unclipped, 2.0)
    assert float(info.extra["clipped_weights"]) == pytest.approx(weight[unclipped > 2].sum() / weight.sum(), rel=1e-12)
    ess = (weight * w).sum() ** 2 / (weight * w**2).sum() / weight.sum()
    assert float(info.extra["weight_ess"]) == pytest.approx(ess, rel=1e-12)
    assert 0.3 < ess < 0.99
    assert 0 < float(info.extra["clipped_weights"]) < 1


def test_on_data_of_another_policy_the_step_is_the_same(problem):
    """As with rollouts collected during the last update: rows count as often as the current policy takes them."""
    policy, batch, _, _, weight = problem
    behaviour = jax.nn.softmax(jax.random.normal(jax.random.key(5), (S, A)))
    states = jnp.asarray(weight).sum(axis=1, keepdims=True)
    older = eqx.tree_at(
        lambda b: (b.log_prob, b.weight), batch, (jnp.log(behaviour).reshape(-1), (states * behaviour).reshape(-1))
    )
    rule = AWR(epochs=20, **FULL)
    fresh, _, info = take(rule, policy, batch)
    stale, _, other = take(rule, policy, older)
    np.testing.assert_allclose(stale.logits, fresh.logits, rtol=0, atol=1e-10)
    assert float(other.extra["weight_ess"]) == pytest.approx(float(info.extra["weight_ess"]), rel=1e-10)
    assert np.abs(np.asarray(fresh.logits - policy.logits)).max() > 1e-3
