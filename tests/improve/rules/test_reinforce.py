"""REINFORCE against autodiff of the exact J and against the enumeration of every trajectory."""

from __future__ import annotations

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from klimb import Batch, Reinforce, rewards_to_go
from klimb.estimate.returns import total_returns
from problems import GAMMA, A, S, batch_on_table, make_mdp, make_table, take


@pytest.fixture
def exact(x64):
    """An MDP, a policy, its exact batch, and ∇J by autodiff of the exact objective."""
    mdp, policy = make_mdp(0), make_table(1)
    gradient = jax.jit(jax.grad(lambda logits: mdp.objective(jax.nn.softmax(logits))))(policy.logits)
    return policy, batch_on_table(mdp, policy), np.asarray(gradient)


@pytest.mark.parametrize("learning_rate", [1.0, 1e-2])
def test_sgd_step_is_the_learning_rate_times_the_exact_gradient(exact, learning_rate):
    """The batch's weights are normalised, d^π(s) π(a|s) with Σ = 1, so the step is α (1 − γ) ∇J."""
    policy, batch, gradient = exact
    new, _, info = take(Reinforce(learning_rate=learning_rate, optimizer="sgd"), policy, batch)
    expected = learning_rate * (1 - GAMMA) * gradient
    np.testing.assert_allclose(new.logits - policy.logits, expected, rtol=0, atol=1e-10)
    assert np.abs(expected).max() > 1e-4
    assert float(info.extra["grad_norm"]) == pytest.approx((1 - GAMMA) * np.linalg.norm(gradient), rel=1e-10)


def test_adam_takes_the_same_gradient_through_its_first_step(exact):
    """Bias-corrected moments make Adam's first direction g/(|g| + 1e-5), element by element."""
    policy, batch, gradient = exact
    # Scaled down to where the 1e-5 matters, so that the size of g is tested and not only its sign.
    small = eqx.tree_at(lambda b: b.advantage, batch, 1e-4 * batch.advantage)
    new, _, _ = take(Reinforce(learning_rate=0.1), policy, small)
    g = 1e-4 * (1 - GAMMA) * gradient
    np.testing.assert_allclose(new.logits - policy.logits, 0.1 * g / (np.abs(g) + 1e-5), rtol=0, atol=1e-10)


def test_on_data_of_another_policy_rows_are_weighted_by_the_ratio(exact):
    """As with rollouts collected during the last update: E_β[ρ Â ∇log π] is E_π[Â ∇log π] in the states of the data."""
    policy, batch, gradient = exact
    behaviour = jax.nn.softmax(jax.random.normal(jax.random.key(5), (S, A)))
    states = jnp.asarray(batch.weight).reshape(S, A).sum(axis=1, keepdims=True)
    old = eqx.tree_at(
        lambda b: (b.log_prob, b.weight), batch, (jnp.log(behaviour).reshape(-1), (states * behaviour).reshape(-1))
    )
    new, _, _ = take(Reinforce(learning_rate=1.0, optimizer="sgd"), policy, old)
    np.testing.assert_allclose(new.logits - policy.logits, (1 - GAMMA) * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 10.0])
def test_max_grad_norm_limits_the_norm_of_the_whole_gradient(exact, max_grad_norm):
    """A limit on the norm shortens the step and keeps its direction, which a limit on elements does not."""
    policy, batch, gradient = exact
    g = (1 - GAMMA) * gradient
    new, _, info = take(Reinforce(learning_rate=1.0, optimizer="sgd", max_grad_norm=max_grad_norm), policy, batch)
    expected = g * min(1, max_grad_norm / np.linalg.norm(g))
    assert (np.linalg.norm(g) > max_grad_norm) == (max_grad_norm < 1)
    np.testing.assert_allclose(new.logits - policy.logits, expected, rtol=0, atol=1e-12)
    assert float(info.extra["grad_norm"]) == pytest.approx(np.linalg.norm(g), rel=1e-10)


SHARES = [("linear", 0.25, 0.75), ("cosine", 0.25, 0.5 + 0.5**1.5), ("linear", 0.0, 1.0), ("constant", 0.25, 1.0)]


@pytest.mark.parametrize(("schedule", "fraction_done", "share"), SHARES)
def test_the_learning_rate_follows_its_schedule(exact, schedule, fraction_done, share):
    policy, batch, gradient = exact
    batch = eqx.tree_at(lambda b: b.fraction_done, batch, jnp.array(fraction_done))
    rule = Reinforce(learning_rate=1.0, optimizer="sgd", learning_rate_schedule=schedule)
    new, _, info = take(rule, policy, batch)
    assert float(info.extra.get("learning_rate", 1.0)) == pytest.approx(share, rel=1e-12)
    np.testing.assert_allclose(new.logits - policy.logits, share * (1 - GAMMA) * gradient, rtol=0, atol=1e-12)


def test_entropy_bonus_adds_its_own_gradient(exact):
    """∂H/∂logit_a = −π_a (log π_a + H) in each state, weighted by how often the state occurs."""
    policy, batch, gradient = exact
    new, _, _ = take(Reinforce(learning_rate=1.0, optimizer="sgd", ent_coef=0.3), policy, batch)
    d = np.asarray(batch.weight).reshape(S, A).sum(axis=1, keepdims=True)
    log_pi = np.asarray(batch.log_prob).reshape(S, A)
    entropy = -np.sum(np.exp(log_pi) * log_pi, axis=1, keepdims=True)
    bonus = d * -np.exp(log_pi) * (log_pi + entropy)
    np.testing.assert_allclose(new.logits - policy.logits, (1 - GAMMA) * gradient + 0.3 * bonus, rtol=0, atol=1e-12)


class Enumerated:
    """Every trajectory of T steps: its probability, and the gradient that REINFORCE takes from it alone."""

    T, S, A = 3, 2, 2

    def __init__(self) -> None:
        mdp = make_mdp(7, self.S, self.A, concentration=1.0)
        self.mdp = eqx.tree_at(lambda m: m.reward, mdp, mdp.reward + 2)
        self.policy = make_table(2, self.S, self.A)
        self.pi = jax.nn.softmax(self.policy.logits)
        paths = np.array(list(itertools.product(range(self.S), range(self.A), repeat=self.T)))
        self.state, self.action = paths[:, 0::2], paths[:, 1::2]
        p = np.asarray(self.mdp.initial)[self.state[:, 0]]
        for t in range(self.T):
            p = p * np.asarray(self.pi)[self.state[:, t], self.action[:, t]]
            if t + 1 < self.T:
                p = p * np.asarray(self.mdp.transition)[self.state[:, t], self.action[:, t], self.state[:, t + 1]]
        self.probability = p
        self.reward = np.asarray(self.mdp.reward)[self.state, self.action]

    def exact_gradient(self) -> np.ndarray:
        """∇ of the undiscounted J over T steps, by autodiff through the exact state marginals."""

        def objective(logits: Array) -> Array:
            pi = jax.nn.softmax(logits)
            return jnp.sum(self.mdp.state_marginals(pi, self.T) @ jnp.sum(pi * self.mdp.reward, axis=1))

        return np.asarray(jax.jit(jax.grad(objective))(self.policy.logits))

    def returns(self, causal: bool) -> np.ndarray:
        """`[paths, T]`: reward-to-go, or the whole return at every step."""
        reward, never = jnp.asarray(self.reward.T), jnp.zeros(self.reward.T.shape, bool)
        over = never.at[-1].set(True)
        to_go = rewards_to_go(reward, over, never, gamma=1.0)
        return np.asarray(to_go if causal else total_returns(to_go, over, never)).T

    def gradients(self, advantage: np.ndarray) -> np.ndarray:
        """`[paths, S, A]`: Σ_t ∇log π Â_t of each path, as the sgd step on that path's T rows."""
        return np.asarray(self._gradients(*map(jnp.asarray, (self.state, self.action, advantage))))

    @functools.cached_property
    def _gradients(self):
        rule = Reinforce(learning_rate=1.0, optimizer="sgd")

        @jax.jit
        @jax.vmap
        def one(state: Array, action: Array, advantage: Array) -> Array:
            log_prob = jax.vmap(self.policy)(state).log_prob(action)
            batch = Batch(state, action, log_prob, advantage, jnp.zeros(self.T), jnp.ones(self.T))
            new, _, _ = rule.step(jax.random.key(0), self.policy, rule.init(self.policy), batch)
            return self.T * (new.logits - self.policy.logits)

        return one

    def mean(self, gradient: np.ndarray) -> np.ndarray:
        return np.einsum("n,nsa->sa", self.probability, gradient)

    def variance(self, gradient: np.ndarray) -> float:
        """Total variance: the trace of the covariance matrix."""
        return float(self.probability @ np.sum(np.square(gradient - self.mean(gradient)), axis=(1, 2)))


@pytest.fixture(scope="module")
def every() -> Enumerated:
    with jax.enable_x64(True):
        return Enumerated()


def test_a_constant_baseline_keeps_the_expected_gradient_and_lowers_its_variance(x64, every):
    """E[∇log π (Â − b)] is ∇J for every b; the batch average as b makes it less noisy, a silly b noisier."""
    assert every.probability.sum() == pytest.approx(1, abs=1e-12)
    exact, to_go = every.exact_gradient(), every.returns(causal=True)
    average = float(every.probability @ to_go.mean(axis=1))
    variance = {}
    for name, baseline in (("none", 0.0), ("average", average), ("silly", -10.0)):
        gradient = every.gradients(to_go - baseline)
        np.testing.assert_allclose(every.mean(gradient), exact, rtol=0, atol=1e-10)
        variance[name] = every.variance(gradient)
    assert variance["average"] < 0.5 * variance["none"] < variance["silly"]


def test_causality_keeps_the_expected_gradient_and_lowers_its_variance(x64, every):
    """The whole return and the reward-to-go have the same expected gradient; causality removes noise."""
    whole, to_go = (every.gradients(every.returns(causal)) for causal in (False, True))
    np.testing.assert_allclose(every.mean(whole), every.exact_gradient(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(every.mean(to_go), every.exact_gradient(), rtol=0, atol=1e-10)
    assert every.variance(to_go) < 0.9 * every.variance(whole)
