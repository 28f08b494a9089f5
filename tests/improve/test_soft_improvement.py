"""The penalised optimum π e^{A/λ}/Z on batches, against NumPy, a general optimiser and exact tables."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from klimb.improve.objectives import log_likelihood
from klimb.improve.soft_improvement import (
    WeightedFit,
    best_rows,
    relative_entropy_terms,
    soft_weights,
    solve_temperature,
    under_policy,
)
from klimb.policies.policy import action_distribution
from klimb.tabular.table import SoftmaxTable
from problems import A, S, batch_on_table, make_mdp, make_table, mean_kl, probabilities

ROWS = 40
solve = jax.jit(solve_temperature)


@pytest.fixture
def sample(x64):
    """Advantages and counts, some of them 0."""
    rng = np.random.default_rng(0)
    return jnp.asarray(2 * rng.normal(size=ROWS)), jnp.asarray(rng.integers(0, 3, size=ROWS).astype(float))


@pytest.fixture
def exact(x64):
    """A policy, its batch of exact expectations, and as tables its probabilities and advantages, and its states."""
    mdp, policy = make_mdp(0), make_table(1)
    batch, pi = batch_on_table(mdp, policy), np.asarray(probabilities(policy))
    return policy, batch, pi, np.asarray(batch.advantage).reshape(S, A), np.asarray(batch.weight).reshape(S, A).sum(1)


def kl_of_weights(advantage: np.ndarray, count: np.ndarray, temperature: float) -> float:
    """KL(q‖p), p ∝ count and q ∝ count · e^{A/λ}, from the definition."""
    p = count / count.sum()
    q = scipy.special.softmax(np.where(count > 0, np.log(np.maximum(count, 1e-300)) + advantage / temperature, -np.inf))
    return float(scipy.special.rel_entr(q, p).sum())


@pytest.mark.parametrize("temperature", [0.02, 0.7, 30.0])
def test_weights_are_the_normalised_exponentials(sample, temperature):
    advantage, count = (np.asarray(x) for x in sample)
    soft = soft_weights(*sample, temperature)
    partition = np.average(np.exp(advantage / temperature), weights=count)
    expected = np.where(count > 0, np.exp(advantage / temperature) / partition, 0)
    np.testing.assert_allclose(soft.weight, expected, rtol=1e-11)
    assert float(soft.log_partition) == pytest.approx(np.log(partition), rel=1e-12)
    assert float(soft.kl) == pytest.approx(kl_of_weights(advantage, count, temperature), rel=1e-9)


def test_weights_of_extreme_advantages_stay_finite():
    """In single precision: exponents of ±10⁸, and differences that are lost in rounding."""
    large = jnp.array([1e6, -1e6, 0.0, 1e6], jnp.float32)
    soft = soft_weights(large, jnp.array([1.0, 1.0, 1.0, 0.0]), 1e-2)
    np.testing.assert_allclose(soft.weight, [3, 0, 0, 0], rtol=1e-6)
    assert float(soft.kl) == pytest.approx(np.log(3), rel=1e-6)
    small = 1e-5 * jnp.array([1.0, -1.0, 0.5, -0.5], jnp.float32)
    variance = np.var(np.asarray(small, float))
    assert float(soft_weights(small, jnp.ones(4), 1.0).kl) == pytest.approx(variance / 2, rel=1e-3)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 1.0])
def test_the_temperature_is_the_minimum_of_the_dual(sample, epsilon):
    """By SciPy's minimiser on the dual written out; there the KL of the weights is ε, and no reweighting gains more."""
    advantage, count = (np.asarray(x) for x in sample)
    p = count / count.sum()

    def dual(log_temperature: float) -> float:
        t = np.exp(log_temperature)
        return t * epsilon + t * scipy.special.logsumexp(advantage / t, b=p)

    best = scipy.optimize.minimize_scalar(dual, bounds=(-6, 8), method="bounded", options={"xatol": 1e-10})
    found = float(solve(*sample, epsilon))
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert kl_of_weights(advantage, count, found) == pytest.approx(epsilon, rel=1e-9)
    # Strong duality: the gain at the optimum is the dual's minimum.
    gain = float(np.asarray(soft_weights(*sample, found).weight) @ (p * advantage))
    assert gain == pytest.approx(best.fun, rel=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(200):
        q = p * np.exp(rng.normal(size=ROWS) * rng.uniform(0, 2) + advantage * rng.uniform(0, 3))
        q /= q.sum()
        if scipy.special.rel_entr(q, p).sum() <= epsilon:
            assert q @ advantage <= best.fun + 1e-9


def test_a_limit_that_cannot_bind_gives_greedy_weights(sample):
    """Above log(1/share of the best row) even weight on that row alone is within ε."""
    advantage, count = sample
    temperature = solve(advantage, count, 50.0)
    spread = np.ptp(np.asarray(advantage)[np.asarray(count) > 0])
    assert float(temperature) == pytest.approx(1e-3 * spread, rel=1e-6)
    weight = np.asarray(soft_weights(advantage, count, temperature).weight)
    assert weight.argmax() == np.where(count > 0, advantage, -np.inf).argmax()
    assert weight.max() * count[weight.argmax()] / count.sum() == pytest.approx(1, abs=1e-6)


def test_equal_advantages_have_equal_weights(x64):
    for value in (0.0, 3.0):
        advantage = jnp.full(5, value)
        temperature = solve(advantage, jnp.ones(5), 0.1)
        np.testing.assert_allclose(soft_weights(advantage, jnp.ones(5), temperature).weight, 1, rtol=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_best_rows_hold_their_fraction_of_the_counts(sample, fraction):
    advantage, count = (np.asarray(x) for x in sample)
    chosen = np.asarray(best_rows(*sample, fraction))
    assert chosen.any()
    assert not chosen[count == 0].any()
    left_out = ~chosen & (count > 0)
    assert not left_out.any() or advantage[left_out].max() < advantage[chosen].min()
    assert count[chosen].sum() >= fraction * count.sum() - 1e-9
    worst = chosen & (advantage == advantage[chosen].min())
    assert count[chosen & ~worst].sum() < fraction * count.sum()


def test_rows_as_good_as_the_last_are_in(x64):
    advantage = jnp.array([1.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(best_rows(advantage, jnp.ones(4), 0.25), [True, False, True, True])


def test_relative_entropy_terms(x64):
    for log_weight in (-800.0, -3.0, -0.1, -1e-6, 0.0, 1e-9, 0.05, 2.0):
        w = np.exp(np.longdouble(log_weight))
        expected = w * log_weight - w + 1 if abs(log_weight) > 1e-3 else log_weight**2 / 2 * (1 + 2 * log_weight / 3)
        assert float(relative_entropy_terms(jnp.asarray(log_weight))) == pytest.approx(float(expected), rel=1e-6)
    assert float(relative_entropy_terms(jnp.asarray(-jnp.inf))) == 1


@functools.cache
def newton():
    """Minimises minus the weighted likelihood of a table: a few Newton steps, with the Hessian by autodiff."""

    @eqx.filter_jit
    def run(policy, batch, weight):
        rows = eqx.tree_at(lambda b: b.advantage, batch, weight)
        objective = lambda logits: log_likelihood(SoftmaxTable(logits.reshape(S, A)), rows)  # noqa: E731

        def step(logits, _):
            hessian, gradient = jax.hessian(objective)(logits), jax.grad(objective)(logits)
            return logits - jnp.linalg.pinv(hessian, rtol=1e-9) @ gradient, None

        return SoftmaxTable(jax.lax.scan(step, policy.logits.ravel(), None, length=12)[0].reshape(S, A))

    return run


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_most_likely_table_is_the_penalised_optimum(exact, temperature):
    """argmax over tables of mean e^{A/λ} log π_θ is π e^{A/λ}/Z(s) in every state, to 1e-8."""
    policy, batch, pi, advantage, states = exact
    weight = soft_weights(batch.advantage, batch.weight, temperature).weight
    best = np.asarray(probabilities(newton()(policy, batch, weight)))
    expected = pi * np.exp(advantage / temperature)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(best, expected, rtol=0, atol=1e-8)
    assert np.abs(expected - pi).max() > 0.02
    # It is the maximum of the penalised problem: no other policy has a larger gain minus price.
    price = lambda p: states @ (p * advantage).sum(1) - temperature * mean_kl(p, pi, states)  # noqa: E731
    rng = np.random.default_rng(0)
    for _ in range(100):
        other = expected * np.exp(rng.normal(size=(S, A)) * rng.uniform(0, 1))
        assert price(other / other.sum(1, keepdims=True)) <= price(expected) + 1e-12


def test_the_joint_kl_is_that_of_states_and_policy(exact):
    """At the dual's λ: ε = KL of the reweighted states + mean KL(π'‖π) over them (chain rule)."""
    _, batch, pi, advantage, states = exact
    temperature = float(solve(batch.advantage, batch.weight, 0.05))
    joint = states[:, None] * pi * np.exp(advantage / temperature)
    joint /= joint.sum()
    new_states = joint.sum(1)
    improved = joint / new_states[:, None]
    of_states = scipy.special.rel_entr(new_states, states).sum()
    of_policy = mean_kl(improved, pi, new_states)
    assert of_states + of_policy == pytest.approx(0.05, rel=1e-9)
    assert of_states > 1e-3
    assert of_policy > 1e-3


def test_on_data_of_another_policy_means_are_the_policys(exact):
    policy, batch, _, _, states = exact
    behaviour = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(5), (S, A))))
    older = eqx.tree_at(
        lambda b: (b.log_prob, b.weight),
        batch,
        (jnp.log(behaviour).reshape(-1), jnp.asarray((states[:, None] * behaviour).reshape(-1))),
    )
    rows = under_policy(action_distribution(policy, older.obs), older)
    np.testing.assert_allclose(rows.weight, batch.weight, rtol=1e-12)
    assert np.abs(np.asarray(older.weight - batch.weight)).max() > 0.01


def test_the_fit_climbs_the_penalised_likelihood(exact):
    """With a price on KL(π‖π_θ), c, and weights w: the optimum of a table is (w + c)/(E_π w + c) · π in every state."""
    policy, batch, pi, advantage, _ = exact
    weight = np.exp(advantage)
    fit = WeightedFit(0.03, 1500, 1, None)
    run = eqx.filter_jit(lambda w: fit(jax.random.key(0), policy, fit.init(policy), batch, w, kl_coef=2.0))
    reached = np.asarray(jax.nn.softmax(run(jnp.asarray(weight.reshape(-1))).theta.reshape(S, A)))
    expected = pi * (weight + 2)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(reached, expected, rtol=0, atol=2e-4)
    assert np.abs(expected - pi).max() > 0.03
