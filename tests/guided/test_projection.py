"""The S-step: its divergence against the closed forms, and where it ends."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.guided.projection import OPTIMIZER, Targets, project
from klimb.improve.divergences import kl_divergence
from klimb.policies.distributions import DiagGaussian
from klimb.policies.parameters import flatten

B, D, A = 64, 2, 2


class Linear(eqx.Module):
    """A policy whose best projection is known."""

    weight: jax.Array
    log_std: jax.Array

    def __call__(self, obs: jax.Array) -> DiagGaussian:
        return DiagGaussian(mean=obs @ self.weight, log_std=self.log_std)


def random_targets(rng: np.random.Generator) -> tuple[jax.Array, jax.Array, jax.Array]:
    obs, mean = rng.normal(size=(B, D)), rng.normal(size=(B, A))
    lower = np.tril(0.3 * rng.normal(size=(B, A, A))) * (1 - np.eye(A)) + np.eye(A) * rng.uniform(0.3, 2, (B, 1, A))
    return jnp.asarray(obs), jnp.asarray(mean), jnp.asarray(lower)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_kl_is_that_of_full_covariances() -> None:
    obs, mean, lower = random_targets(np.random.default_rng(0))
    policy = DiagGaussian(mean=jnp.flip(mean, 0), log_std=jnp.full((B, A), -0.3))
    found = np.asarray(Targets.of(obs, mean, lower, jnp.ones(B)).kl(policy))
    for b in range(0, B, 9):
        cov, sigma = np.asarray(lower[b] @ lower[b].T), np.exp(-0.6) * np.eye(A)
        apart = np.asarray(policy.mean[b] - mean[b])
        logs = np.linalg.slogdet(cov)[1] - np.linalg.slogdet(sigma)[1]
        expected = 0.5 * (np.trace(np.linalg.solve(cov, sigma)) + apart @ np.linalg.solve(cov, apart) - A + logs)
        assert found[b] == pytest.approx(expected, rel=1e-10)


def test_the_kl_to_diagonal_covariances_is_klimbs_own() -> None:
    rng = np.random.default_rng(1)
    p, q = (DiagGaussian(*(jnp.asarray(rng.normal(size=(B, A)), jnp.float32) for _ in range(2))) for _ in range(2))
    lower = jax.vmap(jnp.diag)(jnp.exp(q.log_std))
    found = Targets.of(jnp.zeros((B, D)), q.mean, lower, jnp.ones(B)).kl(p)
    np.testing.assert_allclose(found, kl_divergence(p, q), rtol=1e-4, atol=1e-6)


def test_it_ends_at_the_closed_form_and_padding_plays_no_part() -> None:
    """Minimum of Σ w KL: weighted least squares in the metric of the precisions, and σ_j⁻² their weighted mean."""
    obs, mean, lower = (jnp.asarray(x, jnp.float32) for x in random_targets(np.random.default_rng(2)))
    weight = jnp.ones(B).at[:6].set(0.0)
    targets = Targets.of(obs, mean.at[:6].set(1e6), lower, weight)
    policy = Linear(jnp.zeros((D, A)), jnp.zeros(A))
    moments = OPTIMIZER.init(flatten(policy).theta)
    arguments = {"learning_rate": 1e-2, "epochs": 400, "minibatch_size": B}
    run = eqx.filter_jit(lambda policy, moments: project(jax.random.key(0), policy, targets, moments, **arguments))
    end = run(policy, moments)

    precision = np.linalg.inv(np.asarray(lower @ jnp.swapaxes(lower, 1, 2), np.float64))[6:]
    x, y = np.asarray(obs, np.float64)[6:], np.asarray(mean, np.float64)[6:]
    design = np.einsum("bi,ak->baik", x, np.eye(A)).reshape(len(x), A, D * A)
    normal = np.einsum("bam,bac,bcn->mn", design, precision, design)
    best = np.linalg.solve(normal, np.einsum("bam,bac,bc->m", design, precision, y)).reshape(D, A)
    np.testing.assert_allclose(end.policy.weight, best, atol=2e-3)
    of_variance = np.mean(np.diagonal(precision, axis1=1, axis2=2), axis=0)
    np.testing.assert_allclose(np.exp(-2 * end.policy.log_std), of_variance, rtol=1e-2)
    left = np.mean(np.asarray(targets.kl(jax.vmap(end.policy)(obs)))[6:])
    assert float(end.kl) == pytest.approx(float(left), rel=1e-4)
    before = np.mean(np.asarray(targets.kl(jax.vmap(policy)(obs)))[6:])
    assert left < before


def test_a_policy_that_is_its_own_target_stays() -> None:
    rng = np.random.default_rng(3)
    policy = Linear(jnp.asarray(rng.normal(size=(D, A)), jnp.float32), jnp.asarray([-0.5, 0.2]))
    obs = jnp.asarray(rng.normal(size=(B, D)), jnp.float32)
    lower = jnp.broadcast_to(jnp.diag(jnp.exp(policy.log_std)), (B, A, A))
    targets = Targets.of(obs, jax.vmap(policy)(obs).mean, lower, jnp.ones(B))
    moments = OPTIMIZER.init(flatten(policy).theta)
    run = eqx.filter_jit(
        lambda: project(jax.random.key(0), policy, targets, moments, learning_rate=1e-3, epochs=3, minibatch_size=20)
    )
    end = run()
    np.testing.assert_allclose(end.policy.weight, policy.weight, atol=1e-4)
    assert abs(float(end.kl)) < 1e-6
