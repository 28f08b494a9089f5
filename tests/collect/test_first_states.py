"""First states of episodes: which ones a bank gives, how often, and that rollouts with it are rollouts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.collect import first_states
from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.cartpole import CartPole
from klimb.policies.actions import Discrete
from klimb.policies.networks import NetworkPolicy

NUM_ENVS = 5


@dataclasses.dataclass(frozen=True)
class Banked(CartPole):
    """CartPole as if its reset were dear."""

    prefetch_resets = False
    bank_resets = True


@pytest.fixture(scope="module")
def policy():
    return NetworkPolicy(4, Discrete(2), hidden=(8,), key=jax.random.key(0))


def rollout_of(environment, num_steps, policy, **options):
    collector = CompiledCollector(environment, NUM_ENVS, num_steps, **options)
    start = collector.init(jax.random.key(1))
    state, rollout, _ = jax.jit(lambda key, state: collector.collect(key, policy, state))(jax.random.key(2), start)
    return start, state, rollout


def first_observations(rollout):
    """What episodes that begin in a rollout begin with, by copy."""
    begins = np.asarray(rollout.time) == 0
    begins[0] = False
    return [np.asarray(rollout.obs)[begins[:, n], n] for n in range(NUM_ENVS)]


def test_no_two_episodes_begin_alike_while_they_are_not_shorter_than_the_bank_expects(policy):
    """Two ends of each copy in 64 steps: both are of states of its own, drawn from the right distribution."""
    _, _, rollout = rollout_of(Banked(max_episode_steps=31), 64, policy)
    found = first_observations(rollout)
    shortest = np.diff(np.flatnonzero(np.asarray(rollout.time)[:, 0] == 0)).min()
    assert shortest < 32
    rows = np.concatenate([own[:2] for own in found])
    assert len(rows) >= NUM_ENVS + 1
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert np.abs(rows).max() <= 0.05  # CartPole begins within it


def test_more_ends_than_that_take_the_same_states_in_the_same_order(policy):
    _, _, rollout = rollout_of(Banked(max_episode_steps=4), 64, policy)
    for own in first_observations(rollout):
        assert len(own) == 15
        np.testing.assert_array_equal(own[0::2], np.broadcast_to(own[0], (8, 4)))
        np.testing.assert_array_equal(own[1::2], np.broadcast_to(own[1], (7, 4)))
        assert (own[0] != own[1]).any()


def test_each_rollout_has_a_bank_of_its_own(policy):
    collector = CompiledCollector(Banked(max_episode_steps=20), NUM_ENVS, 32)
    state = collector.init(jax.random.key(1))
    collect = jax.jit(lambda key, state: collector.collect(key, policy, state))
    seen = []
    for number in range(4):
        state, rollout, _ = collect(jax.random.key(number), state)
        seen += first_observations(rollout)
    rows = np.concatenate(seen)
    assert len(rows) >= 4 * NUM_ENVS
    assert len(np.unique(rows, axis=0)) >= 4 * NUM_ENVS


def test_rollouts_with_a_bank_are_stepped_as_ever(policy):
    """Up to the first end a copy's rows are those without a bank; each row follows from the one before."""
    plain = rollout_of(CartPole(max_episode_steps=20), 32, policy)[2]
    banked = rollout_of(Banked(max_episode_steps=20), 32, policy)[2]
    ended = np.asarray(plain.terminated | plain.truncated)
    for n in range(NUM_ENVS):
        rows = slice(0, int(np.argmax(ended[:, n])) + 1)
        np.testing.assert_allclose(plain.obs[rows, n], banked.obs[rows, n], atol=1e-6)
        np.testing.assert_array_equal(plain.action[rows, n], banked.action[rows, n])
    goes_on = ~np.asarray(banked.terminated | banked.truncated)[:-1]
    np.testing.assert_array_equal(np.asarray(banked.next_obs)[:-1][goes_on], np.asarray(banked.obs)[1:][goes_on])


def test_whole_episodes_reset_nothing_after_the_start(policy):
    """What follows an episode is not used, so that no state is drawn for it."""
    environment = Banked(max_episode_steps=20)
    begun, _, rollout = rollout_of(environment, 20, policy, whole_episodes=True)
    assert np.asarray(rollout.valid).sum(0).min() >= 8
    keys = jax.random.split(jax.random.key(0), (20, NUM_ENVS))

    def never(keys):
        raise AssertionError("nothing is reset")

    drawn = first_states.first_states(environment, never, keys, begun=(begun.env_state, begun.obs))
    assert drawn.columns is drawn.count is None
    assert drawn.at(None, None)[1] is begun.obs


def test_the_bank_costs_one_reset_in_32_steps():
    counted = []

    def reset(keys):
        counted.append(keys.shape)
        return jnp.zeros((len(keys), 1)), jnp.zeros((len(keys), 2))

    keys = jax.random.split(jax.random.key(0), (100, 3))
    states, obs = first_states.Bank(reset, keys).at(None, jnp.array([0, 1, 5]))
    assert counted == [(3,)]  # traced once for all rows
    assert states.shape == (3, 1)
    assert obs.shape == (3, 2)
    assert first_states.Bank(reset, keys)._states[1].shape == (4, 3, 2)
