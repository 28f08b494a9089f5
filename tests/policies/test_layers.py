"""Layer normalisation, residual layers and initialisations."""

from __future__ import annotations

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.policies.actions import Box, Discrete
from klimb.policies.layers import LayerOptions
from klimb.policies.mlp import MLP, LayerNorm
from klimb.policies.parameters import flatten
from klimb.policies.weights import INITIALIZATIONS

SIZES = [3, 6, 6, 2]


def network(options, key=0):
    """One whose normalisation has scales and offsets that differ."""
    made = MLP(SIZES, activation="tanh", output_gain=1.0, key=jax.random.key(key), layers=options)
    norms = tuple(LayerNorm(n.scale * (1 + 0.1 * i), n.offset + 0.2 * i) for i, n in enumerate(made.norms))
    return eqx.tree_at(lambda m: m.norms, made, norms)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_layers_equal_numpy(x64, layer_norm, residual):
    made = network(LayerOptions(layer_norm, residual))
    x = np.random.default_rng(0).normal(size=(5, 3))
    features = x
    for i in range(2):
        units = features @ np.asarray(made.weights[i]) + np.asarray(made.biases[i])
        if layer_norm:
            units = (units - units.mean(1, keepdims=True)) / np.sqrt(units.var(1, keepdims=True) + 1e-5)
            units = units * (1 + 0.1 * i) + 0.2 * i
        features = np.tanh(units) + (features if residual and i == 1 else 0)
    np.testing.assert_allclose(made.hidden(jnp.asarray(x)), features, rtol=1e-10)
    expected = features @ np.asarray(made.weights[2]) + np.asarray(made.biases[2])
    np.testing.assert_allclose(made(jnp.asarray(x)), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "variance"), [("glorot", 2 / (40 + 60)), ("he", 2 / 40), ("lecun", 1 / 40), ("orthogonal", 2 / 60)]
)
def test_initial_weights_have_the_variance_of_their_name(name, variance):
    """With the gain √2 of hidden layers; orthonormal rows of length 60 have elements of variance 1/60."""
    made = MLP(
        [40, 60, 2],
        activation="relu",
        output_gain=0.01,
        key=jax.random.key(0),
        layers=LayerOptions(initialization=name),
    )
    weight = np.asarray(made.weights[0])
    assert weight.var() == pytest.approx(variance, rel=0.1)
    assert abs(weight.mean()) < 4 * (variance / weight.size) ** 0.5
    assert np.abs(np.asarray(made.weights[1])).max() < 0.05
    assert set(INITIALIZATIONS) == {"glorot", "he", "lecun", "orthogonal"}


def test_default_layers_are_those_of_before():
    """No parameters are added, and the order of the others is kept."""
    policy = klimb.NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(0))
    assert flatten(policy).theta.size == 3 * 4 + 4 + 4 * 2 + 2
    both = klimb.NetworkPolicy(3, Discrete(2), hidden=(4,), layer_norm=True, key=jax.random.key(0))
    assert flatten(both).theta.size == flatten(policy).theta.size + 8
    np.testing.assert_array_equal(both.network.weights[0], policy.network.weights[0])


def test_statistics_are_absorbed_before_the_normalisation():
    policy = klimb.NetworkPolicy(3, Box((-1.0,), (1.0,)), hidden=(6, 6), layer_norm=True, key=jax.random.key(0))
    rows = jnp.asarray(np.random.default_rng(0).normal(2, 3, (50, 3)), jnp.float32)
    policy, _ = policy.observe(rows, jnp.ones(50))
    before = policy(rows).mean
    policy, _ = policy.observe(rows + 1, jnp.ones(50))
    np.testing.assert_allclose(policy(rows).mean, before, rtol=1e-4, atol=1e-6)


def test_files_hold_what_changes_the_function(tmp_path):
    for folder, options, version in (("a", {}, 3), ("b", {"layer_norm": True, "residual": True}, 4)):
        policy = klimb.NetworkPolicy(3, Discrete(4), hidden=(5, 5), key=jax.random.key(1), **options)
        klimb.save_policy(policy, tmp_path / folder)
        described = json.loads((tmp_path / folder / "policy.json").read_text())
        assert described["version"] == version
        assert {name: described.get(name) for name in ("layer_norm", "residual")} == {
            "layer_norm": options.get("layer_norm"),
            "residual": options.get("residual"),
        }
        obs = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)
        np.testing.assert_array_equal(klimb.load_policy(tmp_path / folder)(obs).logits, policy(obs).logits)


@pytest.mark.slow
def test_a_training_with_them_resumes_to_the_same_bits(tmp_path):
    env = "gymnasium:CartPole-v1"
    options = {"num_envs": 4, "num_steps": 32, "hidden": (6, 6), "checkpoint_every": 1}
    options |= {"layer_norm": True, "residual": True, "initialization": "he"}
    whole = klimb.train(env, klimb.TRPO(), env_steps=1024, **options)
    klimb.train(env, klimb.TRPO(), env_steps=512, run_dir=tmp_path / "run", **options)
    resumed = klimb.resume(tmp_path / "run", env_steps=1024)
    np.testing.assert_array_equal(*(flatten(run.policy).theta for run in (whole, resumed)))
    assert len(whole.policy.network.norms) == 2
