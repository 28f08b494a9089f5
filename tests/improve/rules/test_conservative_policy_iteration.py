"""Conservative policy iteration: its promise against the exact J, its mixture and projection against closed forms."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from klimb import Batch, ConservativePolicyIteration, DiagGaussian, Status
from klimb.estimate.bounds import mixture_bound
from klimb.tabular.table import SoftmaxTable
from problems import batch_on_table, make_mdp, make_table, mean_kl, probabilities, slow_except, take

EXACT = {"num_minibatches": 1, "max_grad_norm": None, "damping": 0.0, "projection_steps": 6, "cg_iterations": 30}


def better_policy(old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
    """π' of new = (1 − α) old + α π'."""
    return (new - (1 - share) * old) / share


CASES = [(0, 0.9), (1, 0.5), (2, 0.99), (3, 0.9)]


@pytest.mark.parametrize("case", slow_except(CASES[:1], CASES))
def test_every_step_keeps_its_promise(x64, case):
    """(1 − γ)(J(π_new) − J(π)) ≥ the bound > 0 in step after step, with J by linear algebra; the bound recomputed."""
    seed, gamma = case
    mdp, policy = make_mdp(seed, gamma=gamma), make_table(seed + 1)
    rule = ConservativePolicyIteration(mixture=None, temperature=0.2, learning_rate=0.1, **EXACT)
    for _ in range(10):
        old = np.asarray(probabilities(policy))
        policy, _, info = take(rule, policy, batch_on_table(mdp, policy))
        new = np.asarray(probabilities(policy))
        share, promise = float(info.extra["mixture"]), float(info.extra["mixture_bound"])
        gained = float((1 - gamma) * (mdp.objective(jnp.asarray(new)) - mdp.objective(jnp.asarray(old))))
        assert info.status == Status.ACCEPTED
        assert 0 < promise <= gained
        assert 0 < share <= (np.sqrt(2) - 1) * (1 - gamma) / gamma
        # The π' of the mixture is a policy, and the bound is Kakade and Langford's for it.
        better = better_policy(old, new, share)
        np.testing.assert_allclose(better.sum(1), 1, atol=1e-6)
        assert better.min() > -1e-6
        advantage = np.asarray(mdp.advantages(jnp.asarray(old)))
        gains = (better * advantage).sum(1)
        mean = float(np.asarray(mdp.state_distribution(jnp.asarray(old))) @ gains)
        worst = np.abs(advantage).max() * min(1.0, np.abs(better - old).sum(1).max())
        assert worst >= np.abs(gains).max()
        assert float(info.extra["greedy_gain"]) == pytest.approx(mean, rel=1e-5)
        bounds = (1 - gamma) * np.asarray(mixture_bound(mean, worst, np.linspace(0, 1, 100_001), gamma))
        assert promise == pytest.approx(bounds.max(), rel=1e-3)
        assert share == pytest.approx(np.linspace(0, 1, 100_001)[bounds.argmax()], abs=2e-5)


def test_the_step_is_the_mixture_with_the_penalised_optimum(x64):
    """With a share of one's own and a fit to convergence: (1 − α) π + α π e^{A/λ}/Z in every state."""
    mdp, policy = make_mdp(0), make_table(1)
    batch, old = batch_on_table(mdp, policy), np.asarray(probabilities(policy))
    rule = ConservativePolicyIteration(mixture=0.3, temperature=0.4, learning_rate=0.02, epochs=4000, **EXACT)
    new, _, info = take(rule, policy, batch)
    better = old * np.exp(np.asarray(mdp.advantages(jnp.asarray(old))) / 0.4)
    better /= better.sum(1, keepdims=True)
    expected = 0.7 * old + 0.3 * better
    np.testing.assert_allclose(probabilities(new), expected, rtol=0, atol=2e-4)
    assert np.abs(expected - old).max() > 0.03
    assert float(info.extra["mixture"]) == pytest.approx(0.3)
    assert float(info.extra["projection_kl"]) < 1e-12


def test_what_the_projection_leaves_is_measured(x64):
    """One damped step does not reach the mixture: KL(mixture‖π_θ) from its definition."""
    mdp, policy = make_mdp(0), make_table(1)
    batch, old = batch_on_table(mdp, policy), np.asarray(probabilities(policy))
    fit = {"mixture": 0.9, "temperature": 0.1, "learning_rate": 0.1}
    exact, _, _ = take(ConservativePolicyIteration(**fit, **EXACT | {"projection_steps": 30}), policy, batch)
    rough, _, info = take(
        ConservativePolicyIteration(**fit, **EXACT | {"projection_steps": 1, "damping": 0.3}), policy, batch
    )
    states = np.asarray(mdp.state_distribution(jnp.asarray(old)))
    left = mean_kl(probabilities(exact), probabilities(rough), states)
    assert left > 1e-3
    assert float(info.extra["projection_kl"]) == pytest.approx(left, rel=1e-6)


class OneGaussian(eqx.Module):
    """The same Gaussian in every state."""

    mean: Float[Array, " D"]
    log_std: Float[Array, " D"]

    def __call__(self, obs: Array) -> DiagGaussian:
        return DiagGaussian(self.mean + 0 * obs[0], self.log_std)


def test_the_nearest_gaussian_to_a_mixture_has_its_mean_and_variance(x64):
    """KL(mixture‖N) is least at the moments of the mixture; expectations under π by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    policy = OneGaussian(jnp.array([0.5]), jnp.array([np.log(1.3)]))
    action, obs = jnp.asarray(0.5 + 1.3 * nodes)[:, None], jnp.zeros((64, 1))
    old, better = policy(obs[0]), DiagGaussian(jnp.array([1.1]), jnp.array([np.log(0.8)]))
    zeros = jnp.zeros(64)
    rows = Batch(obs, action, jax.vmap(old.log_prob)(action), zeros, zeros, jnp.asarray(weights / weights.sum()))
    share = 0.4
    excess = share * jnp.expm1(jax.vmap(better.log_prob)(action) - rows.log_prob)
    rule = ConservativePolicyIteration(**EXACT)
    theta = eqx.filter_jit(rule._project)(policy, rows, jnp.asarray(share), excess)
    mean = (1 - share) * 0.5 + share * 1.1
    variance = (1 - share) * (1.3**2 + 0.5**2) + share * (0.8**2 + 1.1**2) - mean**2
    np.testing.assert_allclose(theta, [mean, np.log(variance) / 2], rtol=0, atol=1e-8)


def test_the_projection_from_a_nearly_deterministic_policy_does_not_run_away(x64):
    """A Gauss-Newton step there is thousands of logits long: shortened, it stays near, and leads to the mixture."""
    policy = SoftmaxTable(jnp.array([[9.0, 0.0]]))
    pi, better, zeros = np.asarray(probabilities(policy))[0], np.array([0.5, 0.5]), jnp.zeros(2)
    rows = Batch(jnp.zeros(2, int), jnp.arange(2), jnp.log(pi), zeros, zeros, jnp.asarray(pi))
    for steps in (1, 30):
        rule = ConservativePolicyIteration(**EXACT | {"projection_steps": steps})
        theta = eqx.filter_jit(rule._project)(policy, rows, jnp.asarray(0.5), jnp.asarray(0.5 * (better / pi - 1)))
        reached = np.asarray(jax.nn.softmax(theta))
        assert 0.01 < mean_kl(pi[None], reached[None], np.ones(1)) <= np.log(2)
    np.testing.assert_allclose(reached, (pi + better) / 2, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_discount_decides_the_share(x64):
    """Without a future the whole step is safe; without a discount none is."""
    mdp, policy = make_mdp(0), make_table(1)
    batch = batch_on_table(mdp, policy)
    rule = ConservativePolicyIteration(mixture=None, temperature=0.2, learning_rate=0.1, **EXACT)
    myopic, _, info = take(rule, policy, dataclasses.replace(batch, gamma=0.0))
    assert float(info.extra["mixture"]) == 1
    assert float(info.extra["mixture_bound"]) == pytest.approx(float(info.extra["greedy_gain"]), rel=1e-12)
    assert np.abs(np.asarray(myopic.logits - policy.logits)).max() > 0.01
    still, _, info = take(rule, policy, dataclasses.replace(batch, gamma=1.0))
    assert Status(int(info.status)) is Status.NO_IMPROVEMENT
    np.testing.assert_array_equal(still.logits, policy.logits)
    assert float(info.extra["mixture"]) == float(info.extra["mixture_bound"]) == 0
    _, _, info = take(dataclasses.replace(rule, mixture=0.2), policy, dataclasses.replace(batch, gamma=1.0))
    assert info.status == Status.ACCEPTED
    assert float(info.extra["mixture_bound"]) == -np.inf


def test_the_share_does_not_depend_on_the_scale_of_rewards(x64):
    """Normalised advantages have another scale; gain and bound are reported in reward per step all the same."""
    mdp, policy = make_mdp(0), make_table(1)
    batch = batch_on_table(mdp, policy)
    rule = ConservativePolicyIteration(mixture=None, temperature=0.2, learning_rate=0.1, **EXACT)
    scaled = dataclasses.replace(batch, advantage=batch.advantage / 10, advantage_scale=10.0)
    _, _, info = take(rule, policy, batch)
    _, _, other = take(rule, policy, scaled, temperature=0.02)
    for name in ("mixture", "greedy_gain", "mixture_bound"):
        assert float(other.extra[name]) == pytest.approx(float(info.extra[name]), rel=1e-6), name


def test_a_batch_has_to_know_its_discount(x64):
    mdp, policy = make_mdp(0), make_table(1)
    batch = dataclasses.replace(batch_on_table(mdp, policy), gamma=None)
    with pytest.raises(ValueError, match="give the batch its gamma"):
        take(ConservativePolicyIteration(**EXACT), policy, batch)
