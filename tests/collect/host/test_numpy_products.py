"""NumPy's decisions for actions of several parts and under masks, against the JAX policy that learns."""

from __future__ import annotations

import json
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.collect.host.collector import VectorCollector, numpy_policy_spec
from klimb.collect.host.numpy_policy import NumpyPolicySpec
from klimb.policies.exploration import sampled_action
from problems import slow_except
from test_contract_spaces import KINDS, OBSERVED, VECTOR, allowed_everywhere, choice_columns, make_case, random_masks

FLAT = {name: kind for name, kind in KINDS.items() if kind.observations is VECTOR and kind.memory is None}
"""Those that NumPy decides for; with memory in test_numpy_policy.py."""


def observations(policy, seeds, rows, rng):
    obs = rng.normal(size=(seeds, rows, OBSERVED)).astype(np.float32)
    if policy.observations.encoded is policy.observations:
        return obs
    masks = random_masks(policy.actions.choices, seeds * rows, rng).reshape(seeds, rows, -1)
    return np.concatenate([obs, masks], axis=-1)


def nothing(obs):
    """What a policy without memory remembers."""
    return np.zeros((*obs.shape[:2], 0), np.float32)


def stacked(kind, seeds):
    """The policies of several seeds, the part that is no array, and a decider."""
    parts = [eqx.partition(make_case(kind, seed).policy, eqx.is_array) for seed in range(seeds)]
    arrays = jax.tree.map(lambda *x: np.stack(x), *(arrays for arrays, _ in parts))
    static = parts[0][1]
    spec = numpy_policy_spec(static)
    spec = NumpyPolicySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    return arrays, static, spec.decider(VectorCollector._parameters(SimpleNamespace(_static=static), arrays))


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", slow_except({"product", "masked hybrid"}, FLAT))
def test_actions_are_those_of_the_jax_policy(kind, seeds):
    arrays, static, decide = stacked(kind, seeds)
    policy, rng = eqx.combine(arrays, static), np.random.default_rng(seeds)
    obs = observations(policy, seeds, 100, rng)
    actions = static.actions
    noise = rng.random((seeds, 100, *actions.shape), np.float32)
    kept = obs.copy()
    action, taken, _ = decide(obs, noise, nothing(obs))
    np.testing.assert_array_equal(obs, kept)

    def one_seed(arrays, obs, noise):
        distribution, action, _ = sampled_action(eqx.combine(arrays, static), obs, noise)
        return action, actions.clip(distribution.to_environment(action))

    expected, expected_taken = jax.jit(jax.vmap(one_seed))(arrays, jnp.asarray(obs), jnp.asarray(noise))
    assert action.dtype == taken.dtype == expected.dtype == actions.dtype
    np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(taken, expected_taken, rtol=1e-5, atol=1e-5)
    flat = np.reshape(action, (seeds, 100, -1))
    assert all(len(np.unique(flat[..., column])) > 1 for column in choice_columns(actions))


@pytest.mark.parametrize("kind", [name for name, kind in FLAT.items() if kind.masked])
def test_no_forbidden_choice_is_ever_taken(kind):
    """10⁵ times, at both ends of the uniform numbers too."""
    _, static, decide = stacked(kind, 1)
    rng = np.random.default_rng(0)
    obs = observations(static, 1, 1000, rng)
    masks = obs[0, :, OBSERVED:]
    for turn in range(102):
        noise = rng.random((1, 1000, *static.actions.shape), np.float32)
        if turn < 2:
            noise[:] = [0, 1 - 2.0**-23][turn]
        action, taken, _ = decide(obs, noise, nothing(obs))
        assert allowed_everywhere(static.actions, action, masks)
        assert allowed_everywhere(static.actions, taken, masks)
