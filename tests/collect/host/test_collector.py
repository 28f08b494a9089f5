"""Rollouts of Gymnasium environments, replayed one environment at a time as the oracle."""

from __future__ import annotations

import itertools

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.collect.host.collector import VectorCollector
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment
from klimb.environments.seeds import environment_seeds
from klimb.policies.networks import NetworkPolicy
from problems import column_of

SEEDS, ENVS, STEPS = 2, 3, 17
LOW, HIGH = np.array([-0.5, -2.0], np.float32), np.array([0.25, 0.1], np.float32)


class Counting(gymnasium.Env):
    """obs = (copy, episode, step, sum of the actions received); a copy's episodes differ in length and in end.

    Episode e of copy c has 2 + (c + e) mod 4 steps. It terminates when c + e is even, is truncated when it is
    odd, and does both at once when it is a multiple of 5.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Box(LOW, HIGH)

    def __init__(self, copy: int) -> None:
        self.copy, self.episode, self.calls = copy, -1, 0

    def _obs(self):
        return np.array([self.copy, self.episode, self.time, self.total], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time, self.total = self.episode + 1, 0, 0.0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is out of bounds"
        self.calls += 1
        self.time += 1
        self.total += float(action.sum())
        over, kind = self.time == 2 + (self.copy + self.episode) % 4, self.copy + self.episode
        terminated = over and (kind % 2 == 0 or kind % 5 == 0)
        truncated = over and (kind % 2 == 1 or kind % 5 == 0)
        return self._obs(), 10.0 * self.episode + self.time, terminated, truncated, {}


def policies(environment, num_seeds, **options):
    """One policy a seed, with the leading axis of seeds, and the part that is no array."""
    size, actions = environment.observations, environment.actions
    make = eqx.filter_vmap(lambda key: NetworkPolicy(size, actions, hidden=(8,), key=key, **options))
    policy = make(jax.random.split(jax.random.key(0), num_seeds))
    # Policies that differ, so that one seed's rows under another's policy are noticed.
    weights = policy.network.weights
    policy = eqx.tree_at(lambda p: p.network.weights, policy, (*weights[:-1], 100 * weights[-1]))
    return eqx.partition(policy, eqx.is_array)


def one_of(policy):
    """The first seed's arrays."""
    return jax.tree.map(lambda x: x[0], policy)


def seeds_of_copies(collector, seed):
    """As a training has them."""
    _, num_seeds, num_envs = collector.shape
    return np.stack([environment_seeds(seed + k, 0, num_envs) for k in range(num_seeds)])


class Collection:
    """Two rollouts one after the other, `[K, T, N]` each, and what made them."""

    def __init__(self, environment, *, num_seeds=SEEDS, num_envs=ENVS, num_steps=STEPS):
        self.policy, static = policies(environment, num_seeds)
        self.static = static
        self.collector = VectorCollector(
            environment, static, one_of(self.policy), num_seeds=num_seeds, num_envs=num_envs, num_steps=num_steps
        )
        self.rollouts, self.summaries = zip(*self.collect(), strict=True)

    def collect(self, keys=((1, 2), (3, 4)), seed=0):
        self.collector.reset(seeds_of_copies(self.collector, seed))
        return [self.collector.collect(jnp.stack([jax.random.key(k) for k in pair]), self.policy) for pair in keys]

    def joined(self, name):
        """Both rollouts along time."""
        return np.concatenate([column_of(rollout, name) for rollout in self.rollouts], axis=1)


@pytest.fixture(scope="module")
def counting():
    copies = itertools.count(-1)  # the first copy is only asked for its spaces
    made = []

    def make():
        made.append(Counting(next(copies)))
        return made[-1]

    collection = Collection(GymnasiumEnvironment.from_maker("test:Counting-v0", make))
    collection.calls = [env.calls for env in made[1:]]
    yield collection
    collection.collector.close()


@pytest.fixture(scope="module")
def cartpole():
    collection = Collection(klimb.make("gymnasium:CartPole-v1"), num_steps=40)
    yield collection
    collection.collector.close()


def replay(copy, actions):
    """What one `Counting` environment does with these actions: a list of rows, reset where an episode ends."""
    env = Counting(copy)
    obs, _ = env.reset()
    rows, time = [], 0
    for action in actions:
        next_obs, reward, terminated, truncated, _ = env.step(np.clip(action, LOW, HIGH))
        rows.append((obs, next_obs, reward, terminated, truncated and not terminated, time))
        over = terminated or truncated
        obs, time = (env.reset()[0], 0) if over else (next_obs, time + 1)
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_every_column_equals_a_single_environment(counting):
    """Same-step autoreset, the true final observation, no fake row, both flags apart, no break between rollouts.

    Column (k, n) is copy k N + n: the layout is `[K, T, N]`. A row inserted by a reset would shift what follows.
    """
    names = ("obs", "next_obs", "reward", "terminated", "truncated", "time")
    columns, action = [counting.joined(name) for name in names], counting.joined("action")
    assert action.shape == (SEEDS, 2 * STEPS, ENVS, 2)
    assert columns[0].shape == (SEEDS, 2 * STEPS, ENVS, 4)
    for k, n in np.ndindex(SEEDS, ENVS):
        expected = replay(k * ENVS + n, action[k, :, n])
        for name, actual, column in zip(names, columns, expected, strict=True):
            np.testing.assert_allclose(actual[k, :, n], column, atol=1e-5, err_msg=name)
    terminated, truncated = columns[3:5]
    assert terminated.any()
    assert truncated.any()
    assert not (terminated & truncated).any()
    assert counting.joined("valid").all()
    assert counting.calls == [2 * STEPS] * (SEEDS * ENVS)  # every step of an environment is a row, and no other


def test_actions_are_clipped_at_the_environment_only(counting):
    """`Counting` refuses actions out of its bounds, and yet the stored ones are out of them."""
    action = counting.joined("action")
    outside = (action < LOW) | (action > HIGH)
    assert outside.any(axis=(0, 1, 2)).all()


def test_squashed_actions_reach_the_environment_squashed():
    """The rollout keeps u, of any size; the environment's running sum of actions is that of the squashed ones."""
    copies = itertools.count(-1)
    environment = GymnasiumEnvironment.from_maker("test:Counting-v0", lambda: Counting(next(copies)))
    policy, static = policies(environment, SEEDS, tanh_squash=True)
    collector = VectorCollector(environment, static, one_of(policy), num_seeds=SEEDS, num_envs=ENVS, num_steps=STEPS)
    collector.reset(seeds_of_copies(collector, 0))
    rollout, _ = collector.collect(jax.random.split(jax.random.key(0), SEEDS), policy)
    collector.close()
    assert (np.abs(rollout.action) > 1).any()
    taken = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * np.tanh(rollout.action)
    total = column_of(rollout, "next_obs")[..., 3] - column_of(rollout, "obs")[..., 3]
    np.testing.assert_allclose(total, taken.sum(-1), atol=1e-5)
    for k in range(SEEDS):
        own = eqx.combine(jax.tree.map(lambda x, k=k: x[k], policy), static)
        np.testing.assert_allclose(own(rollout.obs[k]).log_prob(rollout.action[k]), rollout.log_prob[k], atol=2e-5)


def recomputed(collection, rollout, k, of=None):
    policy = eqx.combine(jax.tree.map(lambda x: x[k if of is None else of], collection.policy), collection.static)
    return policy(rollout.obs[k]).log_prob(rollout.action[k])


@pytest.mark.parametrize("name", ["counting", "cartpole"])
def test_log_prob_is_that_of_each_seeds_own_policy(request, name):
    collection = request.getfixturevalue(name)
    for rollout, k in itertools.product(collection.rollouts, range(SEEDS)):
        np.testing.assert_allclose(recomputed(collection, rollout, k), rollout.log_prob[k], atol=2e-5)
        assert np.abs(recomputed(collection, rollout, k, of=1 - k) - rollout.log_prob[k]).max() > 0.05


@pytest.mark.parametrize("name", ["counting", "cartpole"])
def test_episode_summary_equals_a_recount_for_each_seed(request, name):
    collection = request.getfixturevalue(name)
    for k in range(SEEDS):
        running = np.zeros(ENVS)
        for rollout, summary in zip(collection.rollouts, collection.summaries, strict=True):
            returns, lengths = [], []
            for t, n in np.ndindex(rollout.reward.shape[1:]):
                running[n] += rollout.reward[k, t, n]
                if rollout.terminated[k, t, n] or rollout.truncated[k, t, n]:
                    returns.append(running[n])
                    lengths.append(int(rollout.time[k, t, n]) + 1)
                    running[n] = 0
            assert summary.count[k] == len(returns) > 0
            np.testing.assert_allclose(summary.mean_return[k], np.mean(returns), rtol=1e-6)
            np.testing.assert_allclose(summary.mean_length[k], np.mean(lengths), rtol=1e-6)


def test_rows_equal_gymnasium_step_by_step(cartpole):
    """Gymnasium's own physics from each recorded observation leads to the recorded successor."""
    obs, next_obs, action, terminated, reward = (
        cartpole.joined(name) for name in ("obs", "next_obs", "action", "terminated", "reward")
    )
    oracle = gymnasium.make("CartPole-v1").unwrapped
    oracle.reset(seed=0)
    ended = 0
    for k, t, n in np.ndindex(terminated.shape):
        oracle.state, oracle.steps_beyond_terminated = tuple(obs[k, t, n].astype(float)), None
        successor, expected_reward, over, _, _ = oracle.step(int(action[k, t, n]))
        np.testing.assert_allclose(next_obs[k, t, n], successor, atol=1e-5)
        assert reward[k, t, n] == expected_reward
        assert terminated[k, t, n] == over
        ended += over
    assert ended > 5
    assert not cartpole.joined("truncated").any()
    np.testing.assert_array_equal(obs[:, 1:][~terminated[:, :-1]], next_obs[:, :-1][~terminated[:, :-1]])
    assert (np.abs(obs[:, 1:][terminated[:, :-1]]) <= 0.05).all()


def test_seeds_and_copies_are_independent_and_repeatable(cartpole):
    """The same keys and seed give the same rollouts; another key for one seed leaves the other bit for bit."""
    first = cartpole.rollouts[0]
    starts = np.asarray(first.obs[:, 0]).reshape(SEEDS * ENVS, 4)
    assert len(np.unique(starts, axis=0)) == SEEDS * ENVS
    (again, _), (second, _) = cartpole.collect()
    jax.tree.map(np.testing.assert_array_equal, again, first)
    jax.tree.map(np.testing.assert_array_equal, second, cartpole.rollouts[1])
    ((other, _),) = cartpole.collect(keys=((1, 9),))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), other, first)
    np.testing.assert_array_equal(other.obs[1, 0], first.obs[1, 0])
    assert (other.action[1] != first.action[1]).any()
    ((elsewhere, _),) = cartpole.collect(keys=((1, 2),), seed=2)
    assert not np.isin(np.asarray(elsewhere.obs[:, 0]), starts).any()
