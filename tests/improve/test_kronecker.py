"""The Kronecker-factored preconditioner: its blocks against the Fisher matrix, and what it saves conjugate gradient."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import NetworkPolicy
from klimb.improve import kronecker
from klimb.improve.fisher import fisher_rows, linearise
from klimb.improve.kronecker import Factors, preconditioned
from klimb.improve.natural_direction import conjugate_gradient
from klimb.policies.actions import Box, Discrete
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch
from problems import slow_except

BOX = Box((-1.0, -2.0), (1.0, 3.0))
POLICIES = {
    "gaussian": (BOX, {}),
    "discrete": (Discrete(3), {}),
    "squashed": (BOX, {"tanh_squash": True}),
    "state-dependent": (BOX, {"state_dependent_std": True}),
    "gsde": (BOX, {"exploration": "gsde"}),
    "layer norm and residual": (BOX, {"layer_norm": True, "residual": True}),
}


def policy_of(name: str, hidden: tuple[int, ...] = (6, 6), inputs: int = 4) -> NetworkPolicy:
    actions, options = POLICIES[name]
    policy = NetworkPolicy(inputs, actions, hidden=hidden, key=jax.random.key(0), **options)
    theta, rebuild = flatten(policy)
    return rebuild(theta + 0.3 * jax.random.normal(jax.random.key(1), theta.shape))


def batch_of(policy: NetworkPolicy, rows: int, scale: float = 1.0) -> Batch:
    obs = scale * jax.random.normal(jax.random.key(2), (rows, policy.network.sizes[0]))
    distribution = action_distribution(policy, obs)
    action = distribution.sample(jax.random.key(3))
    advantage = jax.random.normal(jax.random.key(4), (rows,))
    return Batch(obs, action, distribution.log_prob(action), advantage, jnp.zeros(rows), jnp.ones(rows))


def test_factors_are_the_inverse_of_a_kronecker_product(x64):
    rng = np.random.default_rng(0)
    x, d, share = rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), np.full(50, 1 / 50)
    factors = Factors.of(jnp.asarray(x), jnp.asarray(d), jnp.asarray(share), 0.3)
    rows = np.hstack([x, np.ones((50, 1))])
    a, g = rows.T @ rows / 50, d.T @ d / 50
    ratio = np.sqrt((np.trace(a) / 4) / (np.trace(g) / 2))
    matrix = np.kron(a + ratio * np.sqrt(0.3) * np.eye(4), g + np.sqrt(0.3) / ratio * np.eye(2))
    vector = rng.normal(size=(4, 2))
    weight, bias = factors.apply(jnp.asarray(vector[:3]), jnp.asarray(vector[3]))
    expected = np.linalg.solve(matrix, vector.ravel()).reshape(4, 2)
    np.testing.assert_allclose(np.vstack([weight, bias]), expected, rtol=1e-10)


@pytest.mark.parametrize("name", slow_except({"gaussian"}, POLICIES))
def test_the_blocks_of_one_row_are_those_of_the_fisher_matrix(x64, name):
    """Of one observation a block is a Kronecker product, and the mean over random signs is the exact one."""
    policy = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, policy_of(name))
    one = batch_of(policy, 1)
    many = jax.tree.map(lambda x: jnp.repeat(x, 20_000, axis=0) if jnp.ndim(x) else x, one)
    inputs, derivatives, others = eqx.filter_jit(kronecker._rows)(policy, many)
    factor = fisher_rows(policy, one, "exact")
    fisher = factor.T @ factor
    numbers = flatten(policy).rebuild(jnp.arange(float(len(fisher))))
    for x, d, weight, bias in zip(inputs, derivatives, numbers.network.weights, numbers.network.biases, strict=True):
        own = np.concatenate([weight, bias[None]]).astype(int).ravel()
        a = np.outer(np.append(x[0], 1), np.append(x[0], 1))
        block = np.kron(a, d.T @ d / len(d))
        np.testing.assert_allclose(block, fisher[np.ix_(own, own)], rtol=0, atol=0.06 * np.abs(block).max())
    for rows, where in zip(
        jax.tree.leaves(others), jax.tree.leaves(kronecker._others(numbers_of(numbers))), strict=True
    ):
        own = np.asarray(where).astype(int).ravel()
        diagonal = np.mean(np.square(rows.reshape(len(rows), -1)), axis=0)
        np.testing.assert_allclose(diagonal, np.diag(fisher)[own], rtol=0.06, atol=1e-12)


def numbers_of(policy: NetworkPolicy) -> NetworkPolicy:
    """The trainable arrays."""
    return eqx.filter(policy, kronecker.trainable_filter(policy))


@pytest.mark.parametrize("name", slow_except({"gaussian"}, POLICIES))
def test_is_symmetric_and_positive_definite(x64, name):
    policy = policy_of(name)
    apply = preconditioned("kronecker", policy, batch_of(policy, 64), damping=0.1)
    size = flatten(policy).theta.size
    matrix = jax.jit(jax.vmap(apply))(jnp.eye(size))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9 * np.abs(matrix).max())
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0


@pytest.mark.parametrize("name", slow_except({"gaussian"}, ("gaussian", "discrete", "layer norm and residual")))
def test_four_products_come_closer_to_the_exact_direction_than_ten_without(x64, name):
    policy = policy_of(name, hidden=(16, 16), inputs=8)
    batch = batch_of(policy, 512, scale=4.0)
    theta, rebuild = flatten(policy)
    linear = linearise(lambda v: action_distribution(rebuild(v), batch.obs), theta, batch.weight)
    gradient = linear.pull_back(
        jax.grad(lambda d: jnp.mean(d.log_prob(batch.action) * batch.advantage))(linear.distribution)
    )

    @partial(jax.jit, static_argnames=("iterations", "kind"))
    def solve(iterations, kind, tolerance=0.0):
        linear = linearise(lambda v: action_distribution(rebuild(v), batch.obs), theta, batch.weight)
        preconditioner = preconditioned(kind, policy, batch, damping=1e-3)
        return conjugate_gradient(
            lambda v: linear.product(v) + 1e-3 * v,
            gradient,
            iterations=iterations,
            tolerance=tolerance,
            preconditioner=preconditioner,
        ).x

    damped = jax.jit(lambda v: linear.product(v) + 1e-3 * v)
    exact = solve(3000, "none", 1e-12)

    def cosine(x):
        inner = lambda u, v: float(jnp.vdot(u, damped(v)))  # noqa: E731
        return inner(x, exact) / np.sqrt(inner(x, x) * inner(exact, exact))

    assert cosine(solve(4, "kronecker")) > cosine(solve(10, "none"))
    assert cosine(solve(4, "kronecker")) > 0.7
    assert cosine(solve(300, "kronecker")) > 0.999


def test_rows_of_weight_zero_have_no_say():
    policy = policy_of("gaussian")
    batch = batch_of(policy, 60)
    padded = Batch(
        **{
            name: jnp.concatenate([getattr(batch, name), jnp.zeros_like(getattr(batch, name)[:20])])
            for name in ("obs", "action", "log_prob", "advantage", "value_target", "weight")
        }
    )
    vector = jax.random.normal(jax.random.key(9), flatten(policy).theta.shape)
    results = [
        jax.jit(lambda one: preconditioned("kronecker", policy, one, damping=0.1)(vector))(one)
        for one in (batch, padded)
    ]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)


def test_other_policies_are_solved_without():
    gaussian = policy_of("gaussian")
    batch = batch_of(gaussian, 8)
    remembering = NetworkPolicy(4, BOX, hidden=(6,), memory="gru", key=jax.random.key(0))
    assert preconditioned("kronecker", remembering, batch, damping=0.1) is None
    assert preconditioned("kronecker", lambda obs: gaussian(obs), batch, damping=0.1) is None
    assert preconditioned("none", gaussian, batch, damping=0.1) is None


def test_a_factor_that_rounding_has_spoilt_is_replaced():
    matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]])  # Not positive definite.
    np.testing.assert_allclose(kronecker._inverse(matrix, jnp.float32(0.5)), np.eye(2) / 1.5, rtol=1e-6)
