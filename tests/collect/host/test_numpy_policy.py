"""The NumPy policy that collectors act by, against the JAX policy that learns."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.collect.host.collector import VectorCollector, numpy_policy_spec
from klimb.collect.host.numpy_policy import NumpyPolicySpec
from klimb.policies.actions import Box, Discrete
from klimb.policies.encoders import FlatEncoder
from klimb.policies.exploration import held_noise, sampled_action
from klimb.policies.memory import carry_size
from klimb.policies.networks import NetworkPolicy
from problems import slow_except

OBSERVATION, COPIES = 4, 40
UNEVEN = Box((-0.5, -2.0, 1.0), (0.25, 0.1, 4.0))
PARTLY = Box((-0.5, -np.inf, 0.0, -np.inf), (0.25, np.inf, np.inf, 3.0))
KINDS = {
    "categorical": (Discrete(5), {}),
    "bounded": (UNEVEN, {}),
    "partly unbounded": (PARTLY, {}),
    "state-dependent std": (UNEVEN, {"state_dependent_std": True}),
    "unbounded, state-dependent std": (PARTLY, {"state_dependent_std": True}),
    "bounded std": (PARTLY, {"log_std_bounds": (-0.1, 0.2)}),
    "bounded, state-dependent std": (UNEVEN, {"log_std_bounds": (-0.5, 0.3), "state_dependent_std": True}),
    "squashed, bounded std": (UNEVEN, {"log_std_bounds": (-0.1, 0.2), "tanh_squash": True}),
    "gsde": (PARTLY, {"exploration": "gsde"}),
    "bounded gsde": (UNEVEN, {"exploration": "gsde", "log_std_bounds": (-0.3, 0.3)}),
    "squashed gsde": (UNEVEN, {"exploration": "gsde", "tanh_squash": True}),
    "squashed": (UNEVEN, {"tanh_squash": True}),
    "layer norm": (UNEVEN, {"layer_norm": True}),
    "residual layer norm": (Discrete(5), {"layer_norm": True, "residual": True, "hidden": (6, 6, 5)}),
    "squashed, state-dependent std": (UNEVEN, {"tanh_squash": True, "state_dependent_std": True}),
    "gru": (UNEVEN, {"memory": "gru", "memory_size": 7}),
    "lstm": (Discrete(5), {"memory": "lstm", "memory_size": 7}),
}


def observations(seeds, rows, rng):
    """The third coordinate is constant, and the last is far from all others in one row of eight."""
    obs = rng.normal([3.0, -1.0, 0.0, 0.0], [2.0, 0.1, 0.0, 1.0], (seeds, rows, OBSERVATION))
    obs[..., 2] = 3.0
    obs[:, ::8, 3] += 1000.0
    return obs.astype(np.float32)


def policies(actions, seeds, **options):
    """Policies with a leading axis of seeds that differ in every number; and the part that is no array."""
    make = eqx.filter_vmap(lambda key: NetworkPolicy(OBSERVATION, actions, **{"hidden": (8, 6), **options}, key=key))
    policy = eqx.filter_jit(make)(jax.random.split(jax.random.key(seeds), seeds))
    rng = np.random.default_rng(0)
    like = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    weights, biases = policy.network.weights, policy.network.biases
    policy = eqx.tree_at(
        lambda p: (p.network.weights, p.network.biases),
        policy,
        ((*weights[:-1], 100 * weights[-1]), tuple(like(bias) for bias in biases)),
    )
    memory = jax.tree.map(lambda x: x + like(x), policy.memory)
    policy = eqx.tree_at(lambda p: p.memory, policy, memory, is_leaf=lambda x: x is None)
    norms = jax.tree.map(lambda x: x + like(x), policy.network.norms)
    policy = eqx.tree_at(lambda p: p.network.norms, policy, norms)
    if policy.log_std is not None:
        policy = eqx.tree_at(lambda p: p.log_std, policy, like(policy.log_std))
    seen = observations(seeds, 64, rng)
    seen[..., 3] = np.clip(seen[..., 3], -3, 3)
    normalizer = jax.vmap(lambda n, rows: n.update(rows, jnp.ones(len(rows))))(policy.encoder.normalizer, seen)
    return eqx.partition(eqx.tree_at(lambda p: p.encoder.normalizer, policy, normalizer), eqx.is_array)


def parameters_of(policy, static):
    """`[K, P]`: what a collector hands to its workers."""
    return VectorCollector._parameters(SimpleNamespace(_static=static), policy)


def remembered(static, obs):
    """What policies remember of copies in the middle of episodes; nothing of those without memory."""
    size = carry_size(static) or 0
    return np.random.default_rng(2).normal(size=(*obs.shape[:2], size)).astype(np.float32)


def in_jax(policy, static, obs, noise):
    """Actions of every seed, as the environment gets them without the clipping at the box, and what is remembered."""
    carry = remembered(static, obs)

    def one_seed(arrays, obs, noise, carry):
        own = carry if carry.shape[1] else None
        distribution, action, after = sampled_action(eqx.combine(arrays, static), obs, noise, own)
        return action, distribution.to_environment(action), carry if after is None else after

    return [np.asarray(x) for x in jax.jit(jax.vmap(one_seed))(policy, obs, noise, carry)]


def require_agreement(actions, seeds, limits=None, **options):
    policy, static = policies(actions, seeds, **options)
    if limits is not None:
        whole = eqx.combine(policy, static)
        normalizer = eqx.filter_vmap(lambda n: dataclasses.replace(n, **limits))(whole.encoder.normalizer)
        whole = eqx.tree_at(lambda p: p.encoder, whole, FlatEncoder(normalizer))
        policy, static = eqx.partition(whole, eqx.is_array)
    spec = numpy_policy_spec(static)
    rng = np.random.default_rng(1)
    obs = observations(seeds, COPIES, rng)
    normalised = jax.vmap(lambda n, rows: n(rows))(policy.encoder.normalizer, obs)
    assert (np.abs(normalised) == static.encoder.normalizer.clip).any(), "some observations have to be clipped"
    if isinstance(actions, Discrete):
        noise = rng.random((seeds, COPIES), np.float32)
    else:
        shape = held_noise(static) or actions.shape
        noise = rng.standard_normal((seeds, COPIES, *shape), np.float32)
    kept = obs.copy()
    numbers = parameters_of(jax.tree.map(np.array, policy), static)
    assert numbers.shape == (seeds, spec.size)
    action, taken, carry = spec.decider(numbers)(obs, noise, remembered(static, obs))
    expected, expected_taken, expected_carry = in_jax(policy, static, obs, noise)
    np.testing.assert_allclose(carry, expected_carry, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(obs, kept, err_msg="a rollout's observations are not the policy's to change")
    assert action.dtype == expected.dtype
    if isinstance(actions, Discrete):
        np.testing.assert_array_equal(action, expected)
        np.testing.assert_array_equal(taken, expected)
        assert len(np.unique(action)) == actions.n
    else:
        assert taken.dtype == np.float32
        np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-5)
        low, high = np.array(actions.low, np.float32), np.array(actions.high, np.float32)
        np.testing.assert_allclose(taken, np.clip(expected_taken, low, high), rtol=1e-5, atol=1e-5)
        assert ((taken >= low) & (taken <= high)).all()
    if options.get("log_std_bounds"):
        free, *_ = in_jax(*policies(actions, seeds, **{**options, "log_std_bounds": None}), obs, noise)
        assert (np.abs(action - free) > 0.01).any(), "bounds that are not reached show nothing"
    if seeds > 1:
        mixed, *_ = in_jax(jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), policy), static, obs, noise)
        assert (np.abs(action - mixed).reshape(seeds, -1).max(1) > 0.1).all(), "seeds that agree show nothing"


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_those_of_the_jax_policy(kind, seeds):
    actions, options = KINDS[kind]
    require_agreement(actions, seeds, **options)


@pytest.mark.parametrize("activation", slow_except({"silu"}, ("tanh", "relu", "silu", "gelu")))
def test_every_activation_is_that_of_the_jax_policy(activation):
    require_agreement(UNEVEN, 3, activation=activation)


def test_the_normalisers_own_limits_count():
    """A variance of 1 counts as constant, which those of the second and the last coordinate are below."""
    require_agreement(UNEVEN, 1, limits={"clip": 1.5, "variance_floor": 1.5})


def test_no_action_without_probability_is_taken():
    """At noise 0 and just below 1 the cumulative sum's ends decide: impossible first and last actions are passed by."""
    policy, static = policies(Discrete(4), 1)
    bias = jnp.asarray([[-1e4, 0.0, 0.0, -1e4]])
    policy = eqx.tree_at(lambda p: p.network.biases, policy, (*policy.network.biases[:-1], bias))
    obs = observations(1, 2, np.random.default_rng(0))
    noise = np.array([[0.0, np.nextafter(np.float32(1), np.float32(0))]], np.float32)
    decide = numpy_policy_spec(static).decider(parameters_of(policy, static))
    action, *_ = decide(obs, noise, remembered(static, obs))
    np.testing.assert_array_equal(action, in_jax(policy, static, obs, noise)[0])
    np.testing.assert_array_equal(action, [[1, 2]])


def shapes_of(kind, actions, **options):
    """A policy without its numbers."""
    return eqx.filter_eval_shape(lambda key: kind(4, actions, hidden=(8,), key=key, **options), jax.random.key(0))


def test_only_a_network_policy_itself_has_a_description():
    class Bolder(NetworkPolicy):
        """May be called otherwise than its base class."""

    assert numpy_policy_spec(shapes_of(NetworkPolicy, Discrete(2))) is not None
    assert numpy_policy_spec(shapes_of(Bolder, Discrete(2))) is None
    assert numpy_policy_spec(lambda obs: obs) is None


@pytest.mark.parametrize("kind", [*list(KINDS)[:3], "bounded std", "bounded gsde"])
def test_a_description_survives_json(kind):
    actions, options = KINDS[kind]
    spec = numpy_policy_spec(shapes_of(NetworkPolicy, actions, **options))
    again = NumpyPolicySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.shapes == spec.shapes


def test_worker_processes_start_without_jax():
    """It takes longer to import than everything else that they need."""
    code = 'import klimb.collect.host.worker, sys; assert "jax" not in sys.modules'
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
