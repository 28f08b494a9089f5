"""Fisher matrices of both kinds, as products and as rows, against explicit matrices of scores."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from klimb import Batch, NetworkPolicy, fisher_vector_product, kl_divergence
from klimb.improve.fisher import fisher_rows
from klimb.policies.actions import Box, Discrete
from klimb.policies.parameters import trainable_filter
from problems import slow_except

ROWS = 7
BOX = Box((-2.0, 0.0), (2.0, float("inf")))
BOUNDED = Box((-2.0, 0.0), (2.0, 1.0))
KINDS = {
    "categorical": (Discrete(4), {}),
    "gaussian": (BOX, {}),
    "gaussian, σ of the state": (BOX, {"state_dependent_std": True}),
    "gaussian, gsde": (BOX, {"exploration": "gsde"}),
    "tanh gaussian": (BOUNDED, {"tanh_squash": True, "state_dependent_std": True}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
mostly_slow = pytest.mark.parametrize("kind", slow_except({"gaussian, σ of the state"}, KINDS))


def make_policy(kind: str, seed: int = 0) -> NetworkPolicy:
    """A small network away from its symmetric start, with a normaliser that does something."""
    key, key_noise = jax.random.split(jax.random.key(seed))
    actions, options = KINDS[kind]
    policy = NetworkPolicy(3, actions, hidden=(5,), key=key, **options)
    trainable, fixed = eqx.partition(policy, trainable_filter(policy))
    theta, unravel = ravel_pytree(trainable)
    noise = 0.4 * jax.random.normal(key_noise, theta.shape, theta.dtype)
    policy = eqx.combine(unravel(theta + noise), fixed)
    return eqx.tree_at(lambda p: p.encoder.normalizer.mean, policy, jnp.array([0.3, -1.0, 0.1]))


def split(policy):
    """θ and θ → policy, written here again so that the order of the library's own flattening is under test."""
    trainable, fixed = eqx.partition(policy, trainable_filter(policy))
    theta, unravel = ravel_pytree(trainable)
    return theta, lambda vector: eqx.combine(unravel(vector), fixed)


def observations(seed: int = 1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(ROWS, 3)))


@eqx.filter_jit
def explicit_fisher(policy, obs, weight):
    """Σ_s w_s E_a[∇log π ∇log πᵀ] / Σw: every action enumerated; Gaussians by quadrature over their noise."""
    theta, rebuild = split(policy)
    distribution = jax.vmap(policy)(obs)
    if hasattr(distribution, "logits"):
        actions, probabilities = jnp.tile(jnp.arange(4), (ROWS, 1)), distribution.probs
    else:
        # The score is a polynomial of degree 2 in the noise, its square of degree 4: 4 nodes are exact to 7.
        nodes, node_weights = np.polynomial.hermite_e.hermegauss(4)
        node_weights = node_weights / node_weights.sum()
        noise = np.array([(x, y) for x in nodes for y in nodes])
        actions = distribution.mean[:, None] + jnp.exp(distribution.log_std)[:, None] * noise
        probabilities = jnp.tile(np.outer(node_weights, node_weights).reshape(-1), (ROWS, 1))
    log_prob = lambda v, row, action: rebuild(v)(row).log_prob(action)  # noqa: E731
    scores = jax.vmap(jax.vmap(jax.grad(log_prob), (None, None, 0)), (None, 0, 0))(theta, obs, actions)
    return jnp.einsum("s,sa,sai,saj->ij", weight, probabilities, scores, scores) / jnp.sum(weight)


@eqx.filter_jit
def matrix_of_products(policy, obs, weight=None):
    """The matrix of v ↦ F v, column by column."""
    return jax.vmap(fisher_vector_product(policy, obs, weight), out_axes=1)(jnp.eye(split(policy)[0].size))


@each_kind
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_explicit_matrix_of_scores(x64, kind, weighted):
    policy, obs = make_policy(kind), observations()
    weight = jnp.array([0.0, 3.0, 0.5, 1.0, 0.0, 2.0, 0.1]) if weighted else None
    expected = explicit_fisher(policy, obs, jnp.ones(ROWS) if weight is None else weight)
    product = matrix_of_products(policy, obs, weight)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@mostly_slow
def test_vectors_are_ordered_as_ravel_pytree_of_the_trainable_arrays(x64, kind):
    """Between vectors that live on one named array, F is that array's own block, known in closed form."""
    policy, obs = make_policy(kind), observations()
    # In the output's bias the scores are the logits' own: F = E_s[diag(p) − p pᵀ]; in log σ it is 2 I.
    if kind == "categorical":
        where, probs = lambda p: p.network.biases[-1], np.asarray(jax.vmap(policy)(obs).probs)
        block = np.mean([np.diag(p) - np.outer(p, p) for p in probs], axis=0)
    elif kind == "gaussian, gsde":
        # The mean is centre + half-width · output, and σ does not depend on the bias: E_s[(half-width / σ)²].
        where, log_std = lambda p: p.network.biases[-1], np.asarray(jax.vmap(policy)(obs).log_std)
        block = np.diag(np.mean((BOX.half_width * np.exp(-log_std)) ** 2, axis=0))
    else:
        where, block = lambda p: p.log_std, 2 * np.eye(2)
    direction = jnp.array([1.0, -2.0, 3.0, 0.5][: len(block)])
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(policy, trainable_filter(policy)))
    marked, unravel = ravel_pytree(eqx.tree_at(where, zeros, direction))
    answer = unravel(matrix_of_products(policy, obs) @ marked)
    np.testing.assert_allclose(where(answer), block @ np.asarray(direction), rtol=0, atol=1e-12)


@each_kind
def test_is_symmetric_and_positive_semidefinite(x64, kind):
    matrix = np.asarray(matrix_of_products(make_policy(kind), observations()))
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-13)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues.min() > -1e-13
    # More parameters than the rows can pin down: F must have a null space, and must not be zero.
    assert eigenvalues.max() > 1e-2
    assert np.sum(eigenvalues < 1e-12) >= 1


@each_kind
@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_is_the_curvature_of_the_kl_in_both_directions(x64, kind, direction):
    """2 KL(θ, θ + tδ)/t² → δᵀFδ, with an error that falls in proportion to t."""
    policy, obs = make_policy(kind), observations()
    theta, rebuild = split(policy)
    delta = jax.random.normal(jax.random.key(3), theta.shape, theta.dtype)
    limit = delta @ matrix_of_products(policy, obs) @ delta

    @jax.jit
    def error(t):
        old, new = jax.vmap(policy)(obs), jax.vmap(rebuild(theta + t * delta))(obs)
        kl = kl_divergence(old, new) if direction == "old_new" else kl_divergence(new, old)
        return abs(2 * jnp.mean(kl) / t**2 / limit - 1)

    errors = [float(error(t)) for t in (1e-2, 1e-3, 1e-4)]
    assert errors[-1] < 1e-3
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.3)
    assert errors[2] / errors[1] == pytest.approx(0.1, rel=0.3)


@mostly_slow
def test_rows_of_weight_zero_have_no_say(x64, kind):
    policy, obs = make_policy(kind), observations()
    weight = jnp.ones(ROWS).at[2:4].set(0)
    kept = matrix_of_products(policy, obs[np.array([0, 1, 4, 5, 6])])
    np.testing.assert_allclose(matrix_of_products(policy, obs, weight), kept, rtol=0, atol=1e-13)


WEIGHT = (0.0, 3.0, 0.5, 1.0, 0.0, 2.0, 0.1)


def sampled(policy, obs):
    """One action a row."""
    return jax.vmap(policy)(obs).sample(jax.random.key(9))


@mostly_slow
def test_empirical_products_are_those_of_the_sampled_scores(x64, kind):
    policy, obs, weight = make_policy(kind), observations(), jnp.array(WEIGHT)
    action = sampled(policy, obs)
    theta, rebuild = split(policy)
    scores = jax.vmap(jax.grad(lambda v, row, a: rebuild(v)(row).log_prob(a)), (None, 0, 0))(theta, obs, action)
    expected = jnp.einsum("s,si,sj->ij", weight, scores, scores) / weight.sum()
    product = fisher_vector_product(policy, obs, weight, action=action)
    matrix = jax.jit(jax.vmap(product, out_axes=1))(jnp.eye(theta.size))
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    exact = matrix_of_products(policy, obs, weight)
    assert np.abs(matrix - exact).max() > 0.01 * np.abs(exact).max()


@mostly_slow
def test_empirical_products_average_to_the_exact_ones(x64, kind):
    """Over 4 000 draws of every row's action, within 4 standard errors of each product."""
    policy, obs = make_policy(kind), observations()
    vector = jax.random.normal(jax.random.key(4), split(policy)[0].shape)

    @jax.jit
    @jax.vmap
    def draw(key):
        return fisher_vector_product(policy, obs, action=jax.vmap(policy)(obs).sample(key))(vector)

    draws = np.asarray(draw(jax.random.split(jax.random.key(5), 4000)))
    exact = np.asarray(fisher_vector_product(policy, obs)(vector))
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) <= 4.5 * error + 1e-12).all()
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(exact)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_rows_make_the_matrix(x64, kind, fisher):
    """UᵀU = F for both kinds, one row a sample or one for every distribution parameter of a sample."""
    policy, obs, weight = make_policy(kind), observations(), jnp.array(WEIGHT)
    action, zeros = sampled(policy, obs), jnp.zeros(ROWS)
    batch = Batch(obs, action, zeros, zeros, zeros, weight)
    rows = fisher_rows(policy, batch, fisher)
    product = fisher_vector_product(policy, obs, weight, action=action if fisher == "empirical" else None)
    expected = jax.jit(jax.vmap(product, out_axes=1))(jnp.eye(split(policy)[0].size))
    np.testing.assert_allclose(rows.T @ rows, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert len(rows) == ROWS * (1 if fisher == "empirical" else 4)
