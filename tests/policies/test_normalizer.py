"""Running statistics against NumPy over all the data, and that no gradient moves them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.policies.actions import Box, Discrete
from klimb.policies.critic import Critic
from klimb.policies.networks import NetworkPolicy
from klimb.policies.normalizer import Normalizer
from klimb.policies.parameters import flatten, trainable_filter

update = jax.jit(Normalizer.update)


def merged(chunks, dtype):
    normalizer = Normalizer.identity(chunks[0].shape[1:])
    for chunk in chunks:
        normalizer = update(normalizer, jnp.asarray(chunk, dtype), jnp.ones(len(chunk), dtype))
    return normalizer


@pytest.mark.parametrize("shape", [(3,), ()], ids=["vector", "scalar"])
def test_merged_updates_equal_the_statistics_of_all_the_data(x64, shape):
    rng = np.random.default_rng(0)
    chunks = [rng.normal(10 * k, 1 + k, (size, *shape)) for k, size in enumerate((7, 64, 1, 200))]
    data = np.concatenate(chunks)
    normalizer = merged(chunks, float)
    np.testing.assert_allclose(normalizer.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance, data.var(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.scale, data.std(0), rtol=1e-12)
    assert normalizer.count == len(data)
    expected = np.clip((data - data.mean(0)) / data.std(0), -10, 10)
    np.testing.assert_allclose(normalizer(jnp.asarray(data)), expected, atol=1e-11)


def test_an_update_keeps_the_limits():
    start = Normalizer(jnp.zeros(2), jnp.ones(2), jnp.zeros(()), clip=2.0, variance_floor=0.5)
    obs = jnp.array([[0.0, 0.0], [2.0, 1.0], [100.0, 0.0]])
    new = update(start, obs[:2], jnp.ones(2))
    assert (new.clip, new.variance_floor) == (2.0, 0.5)
    # Variances 1 and 1/4: the second coordinate is centred only.
    np.testing.assert_allclose(new(obs), [[-1.0, -0.5], [1.0, 0.5], [2.0, -0.5]], rtol=1e-6)


def test_a_large_offset_does_not_cancel_the_variance_in_float32():
    """E[x²] − E[x]² would be off by more than the variance itself, 1e8 · 6e-8 ≫ 1."""
    rng = np.random.default_rng(1)
    chunks = [rng.normal(1e4, 1, (500, 2)).astype(np.float32) for _ in range(4)]
    normalizer = merged(chunks, jnp.float32)
    np.testing.assert_allclose(normalizer.variance, np.concatenate(chunks).astype(float).var(0), rtol=1e-3)


@pytest.mark.parametrize("before", [0, 5], ids=["fresh", "running"])
def test_rows_without_weight_and_non_finite_rows_are_left_out(x64, before):
    rng = np.random.default_rng(2)
    start = Normalizer.identity((2,))
    if before:
        start = update(start, jnp.asarray(rng.normal(size=(before, 2))), jnp.ones(before))
    data, weight = rng.normal(3, 2, (8, 2)), np.ones(8)
    data[1, 0], data[2, 1], data[3] = np.nan, np.inf, -np.inf
    data[4], weight[4] = 1e6, 0
    data[5], weight[5] = np.nan, 0
    kept = [0, 6, 7]
    after = update(start, jnp.asarray(data), jnp.asarray(weight))
    expected = update(start, jnp.asarray(data[kept]), jnp.ones(len(kept)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), after, expected)

    nothing = update(start, jnp.asarray(data), jnp.zeros(8))
    jax.tree.map(np.testing.assert_array_equal, nothing, start)
    nothing = update(start, jnp.full((8, 2), jnp.nan), jnp.ones(8))
    jax.tree.map(np.testing.assert_array_equal, nothing, start)


def test_a_constant_coordinate_stays_near_zero():
    """0.1 is no float32: its mean is off by rounding, which must not be divided by its own deviation."""
    obs = jnp.stack([jnp.full(1000, 0.1), jnp.arange(1000.0)], axis=-1)
    normalizer = update(Normalizer.identity((2,)), obs, jnp.ones(1000))
    assert np.abs(normalizer(obs)[:, 0]).max() < 1e-2
    np.testing.assert_allclose(np.std(normalizer(obs)[:, 1]), 1, rtol=1e-5)


def test_outliers_are_clipped():
    normalizer = Normalizer.identity((2,))
    np.testing.assert_array_equal(normalizer(jnp.array([[1e6, -3.0], [-jnp.inf, 10.5]])), [[10, -3], [-10, 10]])


@pytest.mark.parametrize(
    ("owner", "parameters"),
    [
        (lambda key: NetworkPolicy(3, Discrete(4), hidden=(5,), key=key), 3 * 5 + 5 + 5 * 4 + 4),
        (lambda key: NetworkPolicy(3, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(5,), key=key), 3 * 5 + 5 + 5 * 2 + 2 + 2),
        (lambda key: Critic(3, hidden=(5,), key=key), 3 * 5 + 5 + 5 + 1),
    ],
    ids=["discrete policy", "box policy", "critic"],
)
def test_the_statistics_are_not_trainable(owner, parameters):
    """θ holds weights, biases and log-deviations, and nothing else; another θ leaves the statistics alone."""
    model = owner(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (50, 3)) * 4 + 2
    model = eqx.tree_at(lambda m: m.encoder.normalizer, model, model.encoder.normalizer.update(obs, jnp.ones(50)))
    marks = trainable_filter(model)
    assert not any(jax.tree.leaves(marks.encoder.normalizer))
    theta, rebuild = flatten(model)
    assert theta.shape == (parameters,)
    moved = rebuild(theta + 1)
    jax.tree.map(np.testing.assert_array_equal, moved.encoder.normalizer, model.encoder.normalizer)
    np.testing.assert_array_equal(moved.network.biases[0], model.network.biases[0] + 1)
