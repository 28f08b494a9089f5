"""Φ of guided policy search: its value by hand, its gradient by finite differences, and where it meets the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import Batch, OffPolicyGradient, Rollout
from klimb.guided.objective import phi
from klimb.policies.distributions import DiagGaussian
from klimb.types import Mixture, Residuals, Trajectory

T, N, D = 5, 7, 2


def gaussian(theta, obs):
    """A policy with six parameters: action mean linear in the observation, and a log σ."""
    return DiagGaussian(mean=obs @ theta[:4].reshape(2, 2), log_std=jnp.broadcast_to(theta[4:], obs.shape))


@pytest.fixture
def samples(x64):
    rng = np.random.default_rng(0)
    obs, reward = jnp.asarray(rng.normal(size=(T, N, D))), jnp.asarray(rng.normal(size=(T, N)))
    theta = jnp.asarray(0.3 * rng.normal(size=6))
    return theta, obs, gaussian(theta, obs).sample(jax.random.key(0)), reward


def behaviour(obs, action, *parameters):
    log_prob = jnp.stack([gaussian(theta, obs).log_prob(action) for theta in parameters])
    return Mixture(log_prob, jnp.log(jnp.full(len(parameters), 1 / len(parameters))))


def value(theta, samples, mixture, regularisation):
    _, obs, action, reward = samples
    return phi(gaussian(theta, obs).log_prob(action), mixture, reward, regularisation=regularisation).value


@pytest.mark.slow
def test_the_value_is_the_sum_that_the_paper_writes(samples):
    theta, obs, action, reward = samples
    others = [theta + 0.1, theta - 0.2, theta * 0.5]
    mixture = behaviour(obs, action, *others)
    new = theta + 0.05
    ours = np.asarray(gaussian(new, obs).log_prob(action))
    theirs = np.asarray(mixture.log_prob)
    expected = 0.0
    for t in range(T):
        weights = [
            np.exp(ours[: t + 1, i].sum()) / np.mean([np.exp(theirs[k, : t + 1, i].sum()) for k in range(3)])
            for i in range(N)
        ]
        expected += np.dot(weights, np.asarray(reward)[t]) / sum(weights) + 0.3 * np.log(sum(weights))
    assert value(new, samples, mixture, 0.3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("regularisation", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_the_gradient_is_that_of_finite_differences(samples, regularisation):
    theta, obs, action, _ = samples
    mixture = behaviour(obs, action, theta + 0.1, theta - 0.2)
    new = theta + 0.05
    gradient = jax.grad(value)(new, samples, mixture, regularisation)
    step = 1e-6
    for i in range(6):
        ends = [value(new.at[i].add(sign * step), samples, mixture, regularisation) for sign in (1, -1)]
        assert float(gradient[i]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.slow
def test_on_the_policys_own_samples_it_is_the_per_decision_off_policy_gradient(samples):
    """Self-normalised at every step, it takes that step's mean reward as its baseline; the rest is the same."""
    theta, obs, action, reward = samples
    log_prob = gaussian(theta, obs).log_prob(action)
    flag = jnp.zeros((T, N), bool)
    rollout = Rollout(obs, action, log_prob, reward, flag, flag, obs, ~flag)
    centred = reward - reward.mean(axis=1, keepdims=True)
    flat = jax.tree.map(lambda x: x.reshape(T * N, *x.shape[2:]), (obs, action, log_prob, centred))
    batch = Batch(
        *flat,
        value_target=flat[3],
        weight=jnp.ones(T * N),
        trajectory=Trajectory(rollout, Residuals(centred, jnp.ones((T, N)), jnp.ones((T, N)))),
    )
    rule = OffPolicyGradient(weighting="per_decision", self_normalise=False, max_weight=None)
    off_policy = jax.grad(lambda v: T * rule._objective(gaussian(v, batch.obs), batch))(theta)
    guided = jax.grad(value)(theta, samples, behaviour(obs, action, theta), 0.0)
    np.testing.assert_allclose(guided, off_policy, rtol=1e-10)
    assert value(theta, samples, behaviour(obs, action, theta), 0.0) == pytest.approx(float(reward.sum(0).mean()))


@pytest.mark.slow
def test_the_effective_sample_size_and_what_the_regulariser_is_for(samples):
    theta, obs, action, reward = samples
    mixture = behaviour(obs, action, theta)
    near = phi(gaussian(theta, obs).log_prob(action), mixture, reward, regularisation=0.0)
    np.testing.assert_allclose(near.ess, 1.0)
    np.testing.assert_allclose(near.log_normaliser, np.log(N))
    # Far from all samples the normalised weights still sum to one, and only log Z tells.
    far = phi(gaussian(theta + 3.0, obs).log_prob(action), mixture, reward, regularisation=0.0)
    assert (np.asarray(far.ess)[1:] < 0.5).all()
    assert far.log_normaliser[-1] < near.log_normaliser[-1] - 10
    assert abs(float(far.mean_return)) <= float(jnp.abs(reward).max(axis=1).sum())


def test_weights_beyond_all_floats_stay_finite(samples):
    theta, obs, action, reward = samples
    mixture = behaviour(obs, action, theta)
    log_prob = gaussian(theta, obs).log_prob(action) - 1e5
    result = phi(log_prob, mixture, reward, regularisation=0.1)
    assert jnp.isfinite(result.value)
    np.testing.assert_allclose(result.ess, 1.0, rtol=1e-6)
