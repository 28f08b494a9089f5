"""The critic's fit: what it learns, what it ignores, and what it throws away."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import klimb
from klimb.estimate.values import explained_variance
from klimb.improve.critic_fit import CriticFit
from klimb.policies.critic import Critic
from klimb.types import Batch

ROWS, SIZE = 256, 3
FIT = CriticFit(critic_learning_rate=1e-2, critic_epochs=10, critic_num_minibatches=4)
fit = jax.jit(FIT.fit)


@pytest.fixture(scope="module")
def critic():
    return Critic(SIZE, hidden=(16,), key=jax.random.key(0))


def batch_of(obs, target, weight=None):
    zeros = jnp.zeros(ROWS)
    weight = jnp.ones(ROWS) if weight is None else jnp.asarray(weight, jnp.float32)
    obs, target = jnp.asarray(obs, jnp.float32), jnp.asarray(target, jnp.float32)
    return Batch(obs, jnp.zeros(ROWS, int), zeros, zeros, target, weight)


def linear(offset=0.0, scale=1.0):
    obs = np.random.default_rng(0).normal(size=(ROWS, SIZE))
    return obs, offset + scale * obs @ np.array([1.0, -2.0, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1000, 30), (-5, 1e-3)], ids=["unit", "large", "small"])
def test_it_learns_a_linear_function_at_any_scale_of_reward(critic, offset, scale):
    """One learning rate for all of them, because the critic works in the units of its targets."""
    obs, target = linear(offset, scale)
    learned, state = critic, FIT.start(critic)
    losses = []
    for key in jax.random.split(jax.random.key(1), 20):
        learned, state, info = fit(key, learned, state, batch_of(obs, target))
        losses.append(float(info.value_loss))
    error = np.mean((np.asarray(learned(jnp.asarray(obs, jnp.float32))) - target) ** 2) / np.var(target)
    assert error < 0.01
    assert losses[-1] < 0.02 < losses[0]
    # The loss is in units of the targets' variance: what it says is what is measured.
    assert losses[-1] == pytest.approx(error, abs=5e-3)


def test_rows_without_weight_have_no_say(critic):
    """Not even through the gradient, where a NaN times 0 would still be a NaN."""
    obs, target = linear()
    weight = np.ones(ROWS)
    weight[::5] = 0
    key, state = jax.random.key(2), FIT.start(critic)
    expected, _, _ = fit(key, critic, state, batch_of(obs, target, weight))
    moved = max(np.abs(a - b).max() for a, b in zip(critic.network.weights, expected.network.weights, strict=True))
    assert moved > 1e-3
    for rubbish in (1e6, np.nan, np.inf):
        dirty_obs, dirty_target = obs.copy(), target.copy()
        dirty_obs[::5], dirty_target[::5] = rubbish, rubbish
        actual, _, info = fit(key, critic, state, batch_of(dirty_obs, dirty_target, weight))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert np.isfinite(info.value_loss)


# An infinite observation is no such case: the normaliser clips it.
@pytest.mark.parametrize(("where", "bad"), [("target", np.nan), ("target", np.inf), ("obs", np.nan)])
def test_a_fit_that_is_not_finite_is_thrown_away_whole(critic, where, bad):
    obs, target = linear()
    (target if where == "target" else obs)[7] = bad
    state = FIT.start(critic)
    after, moments, _ = fit(jax.random.key(3), critic, state, batch_of(obs, target))
    jax.tree.map(np.testing.assert_array_equal, after, critic)
    jax.tree.map(np.testing.assert_array_equal, moments, state)


def test_batches_that_do_not_divide_are_refused(critic):
    obs, target = linear()
    with pytest.raises(ValueError, match="256 is not divisible by critic_num_minibatches = 5; choose num_steps = 255"):
        CriticFit(1e-2, 1, 5).fit(jax.random.key(0), critic, FIT.start(critic), batch_of(obs, target))


def test_explained_variance_equals_numpy():
    rng = np.random.default_rng(1)
    target, noise = rng.normal(3, 2, (2, 50)).astype(np.float32)
    weight = np.ones(50, np.float32)
    value = target + 0.5 * noise
    expected = 1 - np.var(target - value) / np.var(target)
    np.testing.assert_allclose(explained_variance(*map(jnp.asarray, (value, target, weight))), expected, rtol=1e-4)

    weight[::3], dirty = 0, value.copy()
    dirty[::3] = 1e6
    kept = weight > 0
    expected = 1 - np.var((target - value)[kept]) / np.var(target[kept])
    np.testing.assert_allclose(explained_variance(*map(jnp.asarray, (dirty, target, weight))), expected, rtol=1e-4)


@pytest.mark.parametrize(("make", "expected"), [("perfect", 1), ("constant", 0), ("opposite", -3), ("offset", 1)])
def test_explained_variance_of_known_critics(make, expected):
    target = jnp.arange(10.0)
    value = {"perfect": target, "constant": 0 * target + 7, "opposite": -target, "offset": target + 5}[make]
    np.testing.assert_allclose(explained_variance(value, target, jnp.ones(10)), expected, atol=1e-5)


def test_explained_variance_of_constant_targets_is_undefined():
    assert np.isnan(explained_variance(jnp.arange(4.0), jnp.ones(4), jnp.ones(4)))


def test_clipped_loss_is_the_larger_of_two_errors(critic):
    """One Adam step per epoch of the whole batch, against the formula written out: values move from far off targets."""
    obs, target = linear(scale=5)
    batch, eps = batch_of(obs, target), 0.3
    plain = CriticFit(
        critic_learning_rate=1e-2, critic_epochs=6, critic_num_minibatches=1, normalize_value_targets=False
    )
    clipping = dataclasses.replace(plain, critic_clip_eps=eps)
    theta, rebuild = klimb.flatten(critic)
    before = critic(batch.obs)

    def loss(vector):
        value = rebuild(vector)(batch.obs)
        inside = before + jnp.clip(value - before, -eps, eps)
        return jnp.mean(jnp.maximum((value - batch.value_target) ** 2, (inside - batch.value_target) ** 2))

    adam = optax.adam(1e-2, eps=1e-5)
    moments = adam.init(theta)
    for _ in range(6):
        update, moments = adam.update(jax.grad(loss)(theta), moments)
        theta = theta + update
    fitted, _, _ = clipping.fit(jax.random.key(0), critic, clipping.start(critic), batch)
    np.testing.assert_allclose(klimb.flatten(fitted).theta, theta, atol=2e-5)
    free, _, _ = plain.fit(jax.random.key(0), critic, plain.start(critic), batch)
    assert float(jnp.max(jnp.abs(klimb.flatten(free).theta - theta))) > 1e-3
    wide, _, _ = dataclasses.replace(plain, critic_clip_eps=1e6).fit(
        jax.random.key(0), critic, plain.start(critic), batch
    )
    np.testing.assert_allclose(klimb.flatten(wide).theta, klimb.flatten(free).theta, atol=1e-6)


def test_targets_are_fitted_as_they_are_without_normalisation(critic):
    unscaled = dataclasses.replace(FIT, normalize_value_targets=False)
    obs, target = linear(offset=100, scale=30)
    fitted, _, info = unscaled.fit(jax.random.key(0), critic, unscaled.start(critic), batch_of(obs, target))
    assert float(fitted.target.count) == 0
    assert float(fitted.target.mean) == 0
    # The loss is the squared error itself, in units of reward squared.
    assert float(info.value_loss) > 1000


def test_rounds_compute_targets_and_advantages_anew(critic):
    """The same as fits of one epoch each, on targets of the critic that the one before has left."""
    obs, target = linear()
    batch = batch_of(obs, target)
    rounds = dataclasses.replace(FIT, critic_epochs=6, normalize_value_targets=False)
    two = dataclasses.replace(rounds, critic_epochs=2)

    def estimate(critic):
        value = critic(batch.obs)
        return dataclasses.replace(batch, value_target=target + 0.5 * value, advantage=target - value)

    first, key = estimate(critic), jax.random.key(5)
    after, moments, info, advantage = rounds.fit_in_rounds(key, critic, rounds.start(critic), first, 3, estimate)
    now, state = critic, rounds.start(critic)
    for k, key_round in enumerate(jax.random.split(key, 3)):
        again = estimate(now)
        np.testing.assert_allclose(advantage[k], again.advantage, atol=1e-5)
        now, state, last = two.fit(key_round, now, state, again)
    np.testing.assert_allclose(klimb.flatten(after).theta, klimb.flatten(now).theta, atol=1e-5)
    assert float(info.value_loss) == pytest.approx(float(last.value_loss), rel=1e-4)
    assert jax.tree.structure(moments) == jax.tree.structure(state)
    assert float(jnp.max(jnp.abs(advantage[2] - advantage[0]))) > 0.05


def test_rounds_that_end_non_finite_are_discarded(critic):
    obs, target = linear()
    broken = batch_of(obs, np.full_like(target, np.nan))
    state = FIT.start(critic)
    after, moments, _, _ = FIT.fit_in_rounds(jax.random.key(0), critic, state, broken, 2, lambda critic: broken)
    assert eqx.tree_equal(after, critic)
    assert eqx.tree_equal(moments, state)


def test_the_learning_rate_follows_its_schedule(critic):
    """A third into the run, cosine leaves three quarters of it: the same fit as with a constant of that size."""
    obs, target = linear()
    batch = dataclasses.replace(batch_of(obs, target), fraction_done=jnp.float32(1 / 3))
    key, varying = jax.random.key(3), dataclasses.replace(FIT, critic_learning_rate_schedule="cosine")
    learned, _, info = jax.jit(varying.fit)(key, critic, FIT.start(critic), batch)
    constant = dataclasses.replace(FIT, critic_learning_rate=0.75e-2)
    expected, _, other = jax.jit(constant.fit)(key, critic, FIT.start(critic), batch)
    assert float(info.value_loss) == pytest.approx(float(other.value_loss), rel=1e-4)
    unchanged = fit(key, critic, FIT.start(critic), batch)[2]
    assert float(unchanged.value_loss) != pytest.approx(float(info.value_loss), rel=1e-2)
    np.testing.assert_allclose(learned(batch.obs), expected(batch.obs), rtol=0, atol=1e-4)
