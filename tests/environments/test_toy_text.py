"""Toy-text environments, compiled: Gymnasium's transitions as often as in Gymnasium, seen as one-hot rows."""

from __future__ import annotations

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import TRPO, RunConfig, TabularMDP, TrainOptions
from klimb.environments.registry import TOY_TEXT
from klimb.environments.toy_text import Place, TabularEnvironment
from klimb.training.normalizers import NormalizerUpdates
from klimb.training.program import Program

DRAWS = 4000


@pytest.mark.parametrize("name", TOY_TEXT)
def test_steps_happen_as_often_as_the_table_says(name):
    """From three states with every action: each outcome within 5 standard deviations of its frequency."""
    env, table = klimb.make(name), gym.make(name).unwrapped.P
    assert env.id == f"jax:{name}"
    assert env.max_episode_steps == gym.spec(name).max_episode_steps
    keys = jax.random.split(jax.random.key(0), DRAWS)
    step = jax.jit(jax.vmap(env.step, (0, None, None)))
    for s in (1, len(table) // 2, len(table) - 2):
        for a in table[s]:
            moved = step(keys, Place(jnp.int32(s), jnp.int32(3)), jnp.int32(a))
            found = list(
                zip(*(np.asarray(x).tolist() for x in (moved.state.state, moved.reward, moved.terminated)), strict=True)
            )
            outcomes: dict[tuple, float] = {}
            for probability, *rest in table[s][a]:
                key = (int(rest[0]), float(np.float32(rest[1])), bool(rest[2]))
                outcomes[key] = outcomes.get(key, 0) + probability
            assert set(found) <= set(outcomes)
            for key, probability in outcomes.items():
                slack = 5 * np.sqrt(probability * (1 - probability) / DRAWS) + 1e-6
                assert found.count(key) / DRAWS == pytest.approx(probability, abs=slack)
    np.testing.assert_array_equal(moved.obs.argmax(-1), moved.state.state)
    np.testing.assert_array_equal(moved.obs.sum(-1), 1)


def test_episodes_begin_where_they_should_and_are_cut_off_in_time():
    env = klimb.make("Taxi-v4")
    first = np.asarray(jax.vmap(env.reset)(jax.random.split(jax.random.key(0), DRAWS))[0].state)
    expected = gym.make("Taxi-v4").unwrapped.initial_state_distrib
    assert set(first) <= set(np.flatnonzero(expected))
    assert len(set(first)) > 0.99 * np.count_nonzero(expected)
    late = env.step(jax.random.key(0), Place(jnp.int32(first[0]), jnp.int32(199)), jnp.int32(0))
    assert bool(late.truncated)
    assert not bool(late.terminated)
    endless = klimb.make("CliffWalking-v1")
    assert not bool(endless.step(jax.random.key(0), Place(jnp.int32(36), jnp.int32(10**6)), jnp.int32(0)).truncated)


def test_any_tabular_problem_is_an_environment():
    mdp = TabularMDP.random(0, 200, 3, 0.9, successors=2)
    env = TabularEnvironment.of(mdp, id="mine", max_episode_steps=20)
    assert env.observation_space.shape == (200,)
    assert env.action_space.n == 3
    place, row = env.reset(jax.random.key(0))
    moved = jax.jit(env.step)(jax.random.key(1), place, jnp.int32(2))
    assert float(moved.reward) == pytest.approx(float(mdp.reward[place.state, 2]))
    assert int(moved.state.state) in np.asarray(mdp.transition.successor[place.state, 2])
    assert int(row.argmax()) == int(place.state)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "gymnasium:FrozenLake-v1"])
def test_one_hot_rows_are_not_scaled(name):
    """Compiled or not: the options ask for it and the training leaves it."""
    options = TrainOptions(env_steps=32, num_envs=2, num_steps=8, hidden=(4,), critic_num_minibatches=1)
    environment = klimb.make(name)
    program = Program(RunConfig(name, TRPO(), options), environment)
    assert not environment.observations.is_scaled
    assert options.normalize_observations
    assert program.iteration.normalizers == NormalizerUpdates(policy=False, critic=False, start_with_rollout=False)


def test_other_observations_still_are():
    options = TrainOptions(env_steps=32, num_envs=2, num_steps=8, hidden=(4,), critic_num_minibatches=1)
    for name in ("CartPole-v1", "gymnasium:CartPole-v1"):
        program = Program(RunConfig(name, TRPO(), options), klimb.make(name))
        assert program.iteration.normalizers == NormalizerUpdates(policy=True, critic=True, start_with_rollout=True)
