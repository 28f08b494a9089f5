"""A rollout keeps the true successors of few rows, and loses none."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import klimb
from klimb.collect.host.collector import VectorCollector
from klimb.environments.seeds import environment_seeds
from klimb.estimate.values import values
from klimb.policies.critic import Critic
from klimb.policies.networks import NetworkPolicy
from klimb.types import Rollout
from problems import column_of

T, N = 16, 3


class Short(gymnasium.Env):
    """Episodes of `length` steps; an observation is (number of the episode, steps since it began)."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, length: int = 1) -> None:
        self.length, self.episode, self.time = length, 0, 0

    def _obs(self):
        return np.array([self.episode, self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        return self._obs(), float(action), self.time == self.length, False, {}


@pytest.fixture(scope="module")
def rollouts():
    """The same steps twice: with all successors, and with those of ends and of the last row."""
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, T, N, 2)).astype(np.float32)
    ends = rng.random((T, N)) < 0.3
    terminated = ends & (rng.random((T, N)) < 0.5)
    after[:-1] = np.where(ends[:-1, :, None], after[:-1], obs[1:])
    number, flag = np.zeros((T, N), np.float32), np.ones((T, N), bool)
    every = Rollout(*map(jnp.asarray, (obs, number, number, number, terminated, ends & ~terminated, after, flag)))
    step, successor = np.full((T, N), T, np.int32), np.zeros((T, N, 2), np.float32)
    for n in range(N):
        rows = np.concatenate([[T - 1], np.flatnonzero(ends[:-1, n])])
        step[: len(rows), n], successor[: len(rows), n] = rows, after[rows, n]
    room = int((step < T).sum(0).max()) + 1
    few = dataclasses.replace(every, successor=jnp.asarray(successor[:room]), successor_step=jnp.asarray(step[:room]))
    return every, few


def test_those_that_are_kept_tell_all(rollouts):
    every, few = rollouts
    assert len(few.successor) < T
    np.testing.assert_array_equal(few.next_obs, every.next_obs)
    assert jax.tree.structure(few.with_all_successors()) == jax.tree.structure(every)
    np.testing.assert_array_equal(few.with_all_successors().successor, every.successor)


@pytest.mark.parametrize("truncates", [True, False])
def test_values_are_those_of_the_true_successors(rollouts, truncates):
    critic = Critic(2, hidden=(4,), key=jax.random.key(0))
    every, few = rollouts
    counts = ~np.asarray(every.terminated)
    if not truncates:
        every, few = (dataclasses.replace(x, truncated=jnp.zeros_like(x.truncated)) for x in rollouts)
        counts &= ~np.asarray(rollouts[0].truncated)
    expected = critic(every.next_obs.reshape(-1, 2)).reshape(T, N)
    for rollout in (every, few):
        value, next_value = jax.jit(values)(critic, rollout)
        np.testing.assert_allclose(value, critic(every.obs.reshape(-1, 2)).reshape(T, N), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(next_value[counts], expected[counts], rtol=1e-6, atol=1e-6)


def short(length):
    return klimb.GymnasiumEnvironment.from_maker("short", lambda: Short(length))


def collector_of(environment, **options):
    (size,) = environment.observation_space.shape
    policy = NetworkPolicy(size, environment.actions, hidden=(4,), key=jax.random.key(0))
    arrays, static = eqx.partition(policy, eqx.is_array)
    policy = jax.tree.map(lambda x: jnp.stack([x, x]), arrays)
    collector = VectorCollector(environment, static, arrays, num_seeds=2, num_envs=2, num_steps=40, **options)
    seeds = np.stack([environment_seeds(seed, 0, 2) for seed in (0, 1)])
    return collector, policy, seeds


@pytest.mark.parametrize(("length", "room"), [(1, 40), (3, 24), (8, 6), (100, 6)])
def test_there_is_room_for_every_end(length, room):
    """It grows in steps, so that the program which learns is compiled seldom, and stays where it was."""
    collector, policy, seeds = collector_of(short(length))
    collector.reset(seeds)
    keys = jax.random.split(jax.random.key(0), 2)
    time, episode = 0, 1
    for _ in range(2):
        rollout, _ = collector.collect(keys, policy)
        assert rollout.successor.shape == (2, room, 2, 2)
        after = column_of(rollout, "next_obs")
        for t in range(40):
            assert (np.asarray(rollout.obs[:, t]) == [episode, time]).all()
            assert (after[:, t] == [episode, time + 1]).all()
            over = time + 1 == length
            time, episode = (0, episode + 1) if over else (time + 1, episode)
    assert jax.tree.map(jnp.shape, collector.blank().columns.successor) == (2, room, 2, 2)
    collector.close()


def test_of_whole_episodes_there_is_one_end():
    collector, policy, seeds = collector_of(short(5), whole_episodes=True)
    collector.reset(seeds)
    rollout, _ = collector.collect(jax.random.split(jax.random.key(0), 2), policy)
    assert rollout.successor.shape == (2, 2, 2, 2)
    assert (np.asarray(rollout.valid).sum(1) == 5).all()
    assert (column_of(rollout, "next_obs")[:, :5, :, 1] == np.arange(1, 6)[:, None]).all()
    collector.close()


def test_a_checkpoint_knows_the_room():
    """Other shapes are another program, whose last bits may be others."""
    environment = klimb.make("gymnasium:CartPole-v1")
    collector, _, seeds = collector_of(environment)
    collector.reset(seeds)
    collector._room = 24
    captured = collector.capture()
    collector.close()
    other, _, _ = collector_of(environment)
    other.restore(seeds, captured)
    assert other.blank().columns.successor.shape[1] == 24
    older = {name: value for name, value in captured.items() if name != "room"}
    other.restore(seeds, older)
    other.close()
