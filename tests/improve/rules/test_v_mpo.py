"""V-MPO: weights, fit and multiplier against closed forms, and REPS as its special case."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from klimb import REPS, VMPO, Status
from problems import A, S, batch_on_table, make_mdp, make_table, mean_kl, probabilities, take

FULL = {"num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """A policy, its batch of exact expectations, and as tables its probabilities, advantages and the rows' weights."""
    mdp, policy = make_mdp(0), make_table(1)
    batch = batch_on_table(mdp, policy)
    columns = (np.asarray(column).reshape(S, A) for column in (batch.advantage, batch.weight))
    return policy, batch, np.asarray(probabilities(policy)), *columns


def better_half(advantage: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rows of the largest advantages, one by one, until half of the weight is in."""
    chosen = np.zeros(advantage.size, bool)
    for row in np.argsort(-advantage, axis=None):
        if weight.ravel()[chosen].sum() >= weight.sum() / 2:
            break
        chosen[row] = True
    return chosen.reshape(advantage.shape)


def test_the_fit_converges_to_the_solution_of_its_lagrangian(problem):
    """max mean ψ log π_θ − α KL(π‖π_θ) is at π (ψ + α)/Z in every state, ψ ∝ e^{A/η} on the better half."""
    policy, batch, pi, advantage, weight = problem
    rule = VMPO(initial_multiplier=0.5, learning_rate=0.02, epochs=2500, **FULL)
    new, _, info = take(rule, policy, batch)
    half = better_half(advantage, weight)
    assert 0.5 <= weight[half].sum() / weight.sum() < 0.7
    p = weight[half] / weight[half].sum()
    q = scipy.special.softmax(np.log(p) + advantage[half] / float(info.extra["temperature"]))
    assert scipy.special.rel_entr(q, p).sum() == pytest.approx(0.1, rel=1e-6)
    assert float(info.extra["weight_kl"]) == pytest.approx(0.1, rel=1e-6)
    psi = np.zeros((S, A))
    psi[half] = q * weight.sum() / weight[half]
    expected = pi * (psi + 0.5)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities(new), expected, rtol=0, atol=3e-4)
    assert np.abs(expected - pi).max() > 0.1


@pytest.mark.slow
def test_with_all_rows_and_no_price_it_is_reps(problem):
    policy, batch, *_ = problem
    options = {"epochs": 20, **FULL}
    mine, _, info = take(
        VMPO(epsilon_temperature=0.2, top_fraction=1.0, max_multiplier=1e-12, **options), policy, batch
    )
    theirs, _, other = take(REPS(epsilon=0.2, **options), policy, batch)
    np.testing.assert_allclose(mine.logits, theirs.logits, rtol=0, atol=1e-9)
    assert float(info.extra["temperature"]) == pytest.approx(float(other.extra["temperature"]), rel=1e-12)
    half, _, _ = take(VMPO(epsilon_temperature=0.2, max_multiplier=1e-12, **options), policy, batch)
    assert np.abs(np.asarray(half.logits - theirs.logits)).max() > 1e-3


def test_the_multiplier_survives_and_follows_the_violation(problem):
    """log α_{k+1} = log α_k + step (KL_k − ε), KL_k that of the policy returned."""
    policy, batch, _, _, weight = problem
    rule, state, expected = VMPO(epsilon=1e-4, **FULL), None, 1.0
    states = weight.sum(1) / weight.sum()
    for _ in range(3):
        before = probabilities(policy)
        policy, state, info = take(rule, policy, batch, state)
        assert float(info.extra["multiplier"]) == pytest.approx(expected, rel=1e-10)
        expected *= np.exp(20.0 * (mean_kl(before, probabilities(policy), states) - 1e-4))
        assert float(state.multiplier) == pytest.approx(expected, rel=1e-10)
    assert expected != pytest.approx(1.0, rel=1e-4)


def test_a_rejected_step_leaves_the_multiplier_alone(problem):
    policy, batch, *_ = problem
    spoilt = eqx.tree_at(lambda b: b.advantage, batch, batch.advantage.at[0].set(jnp.nan))
    _, after, info = take(VMPO(**FULL), policy, spoilt)
    assert Status(int(info.status)) is Status.NONFINITE
    assert after.multiplier == 1


@pytest.mark.slow
def test_the_multiplier_finds_the_price_of_the_limit(problem):
    """Step after step on one batch, each to convergence: KL = epsilon; with a loose limit α falls to its floor."""
    policy, batch, *_ = problem
    rule, state = VMPO(epsilon=0.02, learning_rate=0.01, epochs=400, **FULL), None
    for _ in range(60):
        _, state, info = take(rule, policy, batch, state)
    assert float(info.kl_old_new) == pytest.approx(0.02, rel=0.05)
    assert 0.01 < float(state.multiplier) < 100
    state = None
    for _ in range(60):
        _, state, _ = take(rule, policy, batch, state, epsilon=3.0)
    assert float(state.multiplier) == pytest.approx(1e-6)
