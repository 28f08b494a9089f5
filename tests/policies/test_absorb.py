"""An update of the statistics leaves policy and critic the functions that they were; Adam's moments follow."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.improve.optimizer import Optimizer, moments_after
from klimb.policies.actions import Box, Discrete
from klimb.policies.critic import Critic
from klimb.policies.encoders import Encoder, FlatEncoder
from klimb.policies.networks import NetworkPolicy
from klimb.policies.normalizer import Normalizer, Rescaling
from klimb.policies.observations import BoxObservations
from klimb.policies.parameters import flatten
from klimb.policies.policy import keeps_statistics, observe

F = 3


class Embedding(Encoder):
    """Statistics that are absorbed by an own trainable layer, not by the one behind."""

    normalizer: Normalizer
    weight: jax.Array
    bias: jax.Array

    @property
    def num_features(self):
        return 4

    def features(self, inputs):
        return jnp.tanh(self.normalizer(inputs) @ self.weight + self.bias)

    def observe(self, obs, weight):
        new = self.normalizer.update(obs, weight)
        change = self.normalizer.rescaling(new, obs, weight)
        layer = (change.scale[:, None] * self.weight, self.bias + change.shift @ self.weight)
        return Embedding(new, *layer), Rescaling(jnp.ones(4), jnp.zeros(4), change.exact)


def embedding(key):
    return Embedding(Normalizer.identity((F,)), jax.random.normal(key, (F, 4)), jnp.ones(4))


NETWORKS = {
    "discrete": lambda key: NetworkPolicy(F, Discrete(4), hidden=(5,), key=key),
    "box": lambda key: NetworkPolicy(F, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(5, 4), key=key),
    "gsde": lambda key: NetworkPolicy(F, Box((-1.0,), (1.0,)), hidden=(5, 4), exploration="gsde", key=key),
    "linear": lambda key: NetworkPolicy(F, Discrete(4), hidden=(), key=key),
    "critic": lambda key: Critic(F, hidden=(5,), key=key),
    "own encoder": lambda key: NetworkPolicy(F, Discrete(4), hidden=(5,), encoder=embedding(key), key=key),
}


def batches(seed: int):
    """Three batches, each of another mean and scale; one coordinate is constant at first, one has a large offset."""
    rng = np.random.default_rng(seed)
    for k, (mean, scale) in enumerate(((0.0, 1.0), (3.0, 0.2), (-1.0, 20.0))):
        obs = rng.normal(mean, scale, (40, F)) + np.array([0, 1e3, 0])
        obs[:, 2] = 0.7 if k == 0 else obs[:, 2] * 1e-3
        yield jnp.asarray(obs)


def outputs(network, obs):
    result = network(obs)
    return result if isinstance(result, jax.Array) else eqx.filter(result, eqx.is_array)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("box", "gsde", "linear") else []) for name in NETWORKS],
)
def test_new_statistics_change_no_output(x64, name):
    network = jax.tree.map(
        lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, NETWORKS[name](jax.random.key(0))
    )
    theta, rebuild = flatten(network)
    network = rebuild(theta + jax.random.normal(jax.random.key(1), theta.shape))
    first, *later = batches(0)
    network, _ = observe(network, first, jnp.ones(len(first)))
    for obs in later:
        new, rescaling = observe(network, obs, jnp.ones(len(obs)))
        assert rescaling is not None
        assert rescaling.exact == _unclipped(network, new, obs).all()
        rows = jnp.concatenate([first, obs])
        kept = rows[_unclipped(network, new, rows)]
        assert len(kept) > 20
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            outputs(new, kept),
            outputs(network, kept),
        )
        assert _normalizer(new).count > _normalizer(network).count
        network = new


def _normalizer(network) -> Normalizer:
    return network.encoder.normalizer


def _unclipped(old, new, obs):
    rows = np.ones(len(obs), bool)
    for network in (old, new):
        n = _normalizer(network)
        rows &= (np.abs((obs - n.mean) / n.scale) <= n.clip).all(axis=1)
    return rows


def test_the_first_statistics_are_not_absorbed():
    """Fresh weights are meant for scaled observations."""
    policy = NETWORKS["box"](jax.random.key(0))
    obs = next(batches(0))
    new, _ = observe(policy, obs, jnp.ones(len(obs)))
    jax.tree.map(np.testing.assert_array_equal, new.network, policy.network)
    np.testing.assert_allclose(np.mean(new.encoder(obs), axis=0), 0, atol=1e-2)


def test_a_coordinate_that_starts_to_vary_does_not_explode():
    """Constant over 1 000 rows, then 1 in one of them: a deviation near rounding would make 10⁴ of it, or clip it."""
    policy = NETWORKS["box"](jax.random.key(0))
    rows = jnp.zeros((1000, F)).at[:, 0].set(jnp.linspace(-1, 1, 1000))
    policy, _ = observe(policy, rows, jnp.ones(1000))
    rare = rows.at[0, 2].set(1.0)
    for _ in range(4):
        new, _ = observe(policy, rare, jnp.ones(1000))
        move = np.abs(np.asarray(new(rare).mean - policy(rare).mean)).max()
        assert move < 0.05
        assert np.abs(np.asarray(new.encoder(rare))).max() <= 10
        policy = new


def test_who_keeps_statistics():
    obs = jax.ShapeDtypeStruct((F,), jnp.float32)
    assert all(keeps_statistics(make(jax.random.key(0)), obs) for make in NETWORKS.values())
    assert not keeps_statistics(lambda obs: obs, obs)

    class Plain(Encoder):
        num_features = F

        def features(self, inputs):
            return inputs

    assert not keeps_statistics(NetworkPolicy(F, Discrete(2), encoder=Plain(), key=jax.random.key(0)), obs)
    assert isinstance(FlatEncoder.of(BoxObservations((F,))).observe(jnp.ones((2, F)), jnp.ones(2)), tuple)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box", "discrete", "critic"])
def test_gradients_and_moments_follow_the_reparametrisation(x64, name):
    """θ' = A θ: gradients and their mean become A⁻ᵀ g, mean squares (A⁻ᵀ)² v, with A by autodiff."""
    network = jax.tree.map(
        lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, NETWORKS[name](jax.random.key(0))
    )
    first, second, _ = batches(1)
    network, _ = observe(network, first, jnp.ones(len(first)))
    new, rescaling = observe(network, second, jnp.ones(len(second)))
    theta, rebuild = flatten(network)
    new_theta, new_rebuild = flatten(new)
    matrix = jax.jacobian(lambda theta: flatten(rebuild(theta).absorb(rescaling)).theta)(theta)
    np.testing.assert_allclose(matrix @ theta, new_theta, rtol=1e-9, atol=1e-12)
    transposed_inverse = np.linalg.inv(matrix).T

    obs = second[_unclipped(network, new, second)]
    target = jax.random.normal(jax.random.key(2), jax.tree.leaves(outputs(network, obs))[0].shape)

    def loss(network):
        return jnp.sum(jnp.square(jax.tree.leaves(outputs(network, obs))[0] - target))

    before = jax.grad(lambda theta: loss(rebuild(theta)))(theta)
    after = jax.grad(lambda theta: loss(new_rebuild(theta)))(new_theta)
    np.testing.assert_allclose(transposed_inverse @ before, after, rtol=1e-6, atol=1e-8 * np.abs(after).max())

    optimizer = Optimizer.make("adam", None)
    _, moments = optimizer.apply_gradient(theta, before, optimizer.init(theta), 0.1)
    state = {"moments": moments, "multiplier": jnp.float32(3)}
    followed = moments_after(rescaling, new, state)
    assert followed["multiplier"] == 3
    (old_adam,), (new_adam,) = ([m for m in s if hasattr(m, "mu")] for s in (moments, followed["moments"]))
    np.testing.assert_allclose(new_adam.mu, transposed_inverse @ old_adam.mu, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(new_adam.nu, np.square(transposed_inverse) @ old_adam.nu, rtol=1e-9, atol=1e-15)
    assert new_adam.count == old_adam.count
    assert moments_after(None, new, state) is state
