"""Rollouts with the derivatives of their steps: the rollout they would be without, and every row its own."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import klimb
from klimb.collect.host.collector import VectorCollector
from klimb.environments.seeds import environment_seeds
from klimb.environments.simulator_derivatives import Differentiator
from klimb.environments.simulator_state import physics_state
from klimb.policies.networks import NetworkPolicy
from klimb.types import Rollout
from problems import column_of

pytest.importorskip("mujoco")
SEEDS, ENVS, STEPS = 2, 2, 14


@pytest.fixture(scope="module")
def environment() -> Any:
    return klimb.make("gymnasium:InvertedPendulum-v5")


def collected(environment: Any, **options: Any) -> Rollout:
    """The second of two rollouts."""
    size, actions = environment.observations, environment.actions
    make = eqx.filter_vmap(lambda key: NetworkPolicy(size, actions, hidden=(8,), key=key))
    policy, static = eqx.partition(make(jax.random.split(jax.random.key(0), SEEDS)), eqx.is_array)
    one = jax.tree.map(lambda x: x[0], policy)
    collector = VectorCollector(environment, static, one, num_seeds=SEEDS, num_envs=ENVS, num_steps=STEPS, **options)
    try:
        collector.reset(np.stack([environment_seeds(3 + k, 0, ENVS) for k in range(SEEDS)]))
        for number in range(2):
            rollout, _ = collector.collect(jax.random.split(jax.random.key(number), SEEDS), policy)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), collector.rollout_shapes(eqx.combine(one, static)))
        assert shapes == jax.tree.map(lambda x: (x.shape[1:], x.dtype), rollout)
    finally:
        collector.close()
    return jax.tree.map(np.asarray, rollout)


@pytest.fixture(scope="module")
def here(environment: Any) -> Rollout:
    return collected(environment, derivatives=True)


def test_the_rollout_is_the_one_without(environment: Any, here: Rollout) -> None:
    without = collected(environment)
    assert without.derivatives is None
    assert here.terminated.any()
    for name in ("obs", "action", "log_prob", "reward", "terminated", "truncated", "next_obs", "valid", "time"):
        np.testing.assert_array_equal(column_of(here, name), column_of(without, name))


def test_every_row_has_the_derivatives_of_its_own_step(environment: Any, here: Rollout) -> None:
    """Observations of this task are positions and velocities, so that states can be made of them."""
    differentiator = Differentiator(environment.make())
    simulator = differentiator._inner
    found = here.derivatives
    assert found is not None
    for k, t, n in ((0, 0, 0), (0, 9, 1), (1, 5, 0), (1, STEPS - 1, 1)):
        simulator.set_state(*np.split(here.obs[k, t, n].astype(float), 2))
        numbers = differentiator(physics_state(simulator), here.action[k, t, n])
        dynamics = numbers[:20].reshape(4, 5)
        np.testing.assert_allclose(found.dynamics[k, t, n], dynamics, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.obs[k, t, n], np.eye(4), atol=1e-5)
        np.testing.assert_allclose(found.next_obs[k, t, n], dynamics, rtol=1e-3, atol=1e-3)


def test_of_whole_episodes_only_rows_that_count_have_derivatives(environment: Any) -> None:
    rollout = collected(environment, derivatives=True, whole_episodes=True)
    assert rollout.derivatives is not None
    assert not rollout.valid.all()
    np.testing.assert_array_equal(np.abs(rollout.derivatives.dynamics).max((-1, -2)) > 0, rollout.valid)


def test_a_rollout_without_a_valid_row_has_no_derivatives(environment: Any) -> None:
    vector = environment.vector(2)
    vector.reset(np.arange(2))
    states = vector.simulator_states()
    assert vector.differentiate(states[:0], np.zeros((0, 1), np.float32)).shape == (0, environment.derivatives.numbers)
    assert vector.differentiate(states, np.zeros((2, 1), np.float32)).shape == (2, environment.derivatives.numbers)
    vector.close()


@pytest.mark.slow
def test_a_worker_process_differentiates_as_this_one_does(environment: Any, here: Rollout) -> None:
    there = collected(environment, derivatives=True, workers=1)
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(ours, theirs)
