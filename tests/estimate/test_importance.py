"""Importance weights against the enumeration of every trajectory of a small finite-horizon MDP."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from klimb.estimate.importance import effective_sample_size, per_decision_weights, trajectory_weights

S, A, H, GAMMA = 2, 2, 3, 0.9


class Enumeration:
    """Every trajectory of H steps, a column each: its probability under π_β, log-ratios and rewards `[H, n]`."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.transition = rng.dirichlet(np.ones(S), (S, A))
        self.reward = rng.normal(size=(S, A))
        self.initial = rng.dirichlet(np.ones(S))
        self.behaviour, self.target = rng.dirichlet(np.ones(A), (2, S))
        paths = list(itertools.product(itertools.product(range(S), range(A)), repeat=H))
        state, action = np.array(paths).transpose(2, 1, 0)
        moves = self.transition[state[:-1], action[:-1], state[1:]].prod(0)
        self.probability = self.initial[state[0]] * moves * self.behaviour[state, action].prod(0)
        self.log_ratio = np.log(self.target / self.behaviour)[state, action]
        self.rewards = GAMMA ** np.arange(H)[:, None] * self.reward[state, action]

    def objective(self, policy):
        """J by going backwards through the values: no trajectory in it."""
        value = np.zeros(S)
        for _ in range(H):
            value = (policy * (self.reward + GAMMA * self.transition @ value)).sum(-1)
        return self.initial @ value


@pytest.fixture(scope="module")
def mdp():
    return Enumeration()


def test_weighted_returns_have_the_expectation_of_the_target_policy(x64, mdp):
    np.testing.assert_allclose(mdp.probability.sum(), 1, rtol=1e-14)
    np.testing.assert_allclose(mdp.probability @ mdp.rewards.sum(0), mdp.objective(mdp.behaviour), rtol=1e-12)
    expected = mdp.objective(mdp.target)
    assert abs(expected - mdp.objective(mdp.behaviour)) > 0.1

    whole = np.asarray(trajectory_weights(jnp.asarray(mdp.log_ratio)))
    decision = np.asarray(per_decision_weights(jnp.asarray(mdp.log_ratio)))
    assert abs(mdp.probability @ (whole * mdp.rewards.sum(0)) - expected) < 1e-10
    assert abs(mdp.probability @ (decision * mdp.rewards).sum(0) - expected) < 1e-10
    np.testing.assert_allclose(decision[-1], whole, rtol=1e-12)
    # Leaving out the ratio of the step itself, or only using it, is biased.
    assert abs(mdp.probability @ (decision / np.exp(mdp.log_ratio) * mdp.rewards).sum(0) - expected) > 1e-3
    assert abs(mdp.probability @ (np.exp(mdp.log_ratio) * mdp.rewards).sum(0) - expected) > 1e-3


@pytest.mark.parametrize("flags", ["none", "terminated", "truncated", "both"])
def test_per_decision_weights_start_anew_after_an_end(x64, flags):
    """Against products written out, for every placement of the flags over four steps."""
    rng, steps = np.random.default_rng(1), 4
    ends = np.array(list(itertools.product([False, True], repeat=2 * steps))).T.reshape(2, steps, -1)
    if flags == "terminated":
        ends[1] = False
    elif flags == "truncated":
        ends[0] = False
    elif flags == "none":
        ends[:] = False
    log_ratio = rng.normal(size=ends.shape[1:])
    expected = np.empty_like(log_ratio)
    for n in range(log_ratio.shape[1]):
        product = 1.0
        for t in range(steps):
            product *= np.exp(log_ratio[t, n])
            expected[t, n] = product
            product = 1.0 if ends[:, t, n].any() else product
    terminated = None if flags in ("none", "truncated") else jnp.asarray(ends[0])
    truncated = None if flags in ("none", "terminated") else jnp.asarray(ends[1])
    actual = per_decision_weights(jnp.asarray(log_ratio), terminated, truncated)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_products_are_accumulated_in_log_space():
    """1000 steps of log-ratio +5, −5, …: the partial products of the +5s alone are e²⁵⁰⁰, the product is 1."""
    alternating = jnp.tile(jnp.array([[5.0], [-5.0]]), (500, 1))
    np.testing.assert_array_equal(trajectory_weights(alternating), [1.0])
    np.testing.assert_allclose(per_decision_weights(alternating)[:4, 0], [np.exp(5), 1, np.exp(5), 1], rtol=1e-6)
    rise_and_fall = jnp.concatenate([jnp.full((500, 1), 5.0), jnp.full((500, 1), -5.0)])
    np.testing.assert_array_equal(trajectory_weights(rise_and_fall), [1.0])
    np.testing.assert_array_equal(per_decision_weights(rise_and_fall)[-1], [1.0])


def test_effective_sample_size_has_its_bounds_and_ignores_scale():
    n = 50
    weight = np.random.default_rng(2).gamma(0.3, size=n).astype(np.float32)
    exact = weight.astype(float).sum() ** 2 / (n * (weight.astype(float) ** 2).sum())
    # 1e±30 squared is outside float32.
    for scale in (1.0, 1e30, 1e-30):
        np.testing.assert_allclose(effective_sample_size(jnp.asarray(weight * np.float32(scale))), exact, rtol=1e-4)
    for scale in (1.0, 1e30):
        np.testing.assert_allclose(effective_sample_size(jnp.full(n, scale)), 1, rtol=1e-6)
        np.testing.assert_allclose(effective_sample_size(jnp.zeros(n).at[3].set(scale)), 1 / n, rtol=1e-6)
    assert 1 / n < exact < 1


def test_effective_sample_size_of_the_rows_that_count():
    weight = np.array([1.0, 2.0, 3.0, 1e9, np.nan], np.float32)
    counted = np.array([True, True, True, False, False])
    actual = effective_sample_size(jnp.asarray(weight), jnp.asarray(counted, jnp.float32))
    np.testing.assert_allclose(actual, 6**2 / (3 * (1 + 4 + 9)), rtol=1e-6)
    np.testing.assert_allclose(effective_sample_size(jnp.full(3, 7.0), jnp.array([1.0, 20.0, 0.5])), 1, rtol=1e-6)
    table = effective_sample_size(jnp.asarray(weight[:4].reshape(2, 2)))
    np.testing.assert_allclose(table, effective_sample_size(jnp.asarray(weight[:4])), rtol=1e-6)
