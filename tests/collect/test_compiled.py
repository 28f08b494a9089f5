"""Rollouts of compiled environments, recounted in NumPy, and of a scripted one whose every number is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.collect.compiled import CompiledCollector
from klimb.environments.base import CompiledEnvironment, Transition
from klimb.environments.control.cartpole import CartPole
from klimb.policies.actions import Discrete
from klimb.policies.distributions import DiagGaussian
from klimb.policies.networks import NetworkPolicy

NUM_ENVS, NUM_STEPS = 6, 45


@pytest.fixture(scope="module")
def policy():
    return NetworkPolicy(4, Discrete(2), hidden=(8,), key=jax.random.key(0))


@pytest.fixture(scope="module")
def collector():
    # Random pushes topple the pole after 20 steps or so: with a limit of 20 both kinds of end occur.
    return CompiledCollector(dataclasses.replace(CartPole(), max_episode_steps=20), NUM_ENVS, NUM_STEPS)


@pytest.fixture(scope="module")
def collect(collector, policy):
    return jax.jit(lambda key, state: collector.collect(key, policy, state))


@pytest.fixture(scope="module")
def rollouts(collector, collect):
    """Two rollouts, one after the other: (states before, between and after, rollouts, summaries)."""
    start = collector.init(jax.random.key(1))
    between, first, first_summary = collect(jax.random.key(2), start)
    after, second, second_summary = collect(jax.random.key(3), between)
    return (start, between, after), (first, second), (first_summary, second_summary)


def joined(rollouts, name):
    return np.concatenate([np.asarray(getattr(rollout, name)) for rollout in rollouts[1]])


def test_each_row_follows_from_the_one_before(rollouts):
    """obs[t+1] is next_obs[t] unless the episode ended; then it is the start of another one. Rollouts join on."""
    obs, next_obs, terminated, truncated, time = (
        joined(rollouts, name) for name in ("obs", "next_obs", "terminated", "truncated", "time")
    )
    ended = terminated | truncated
    assert terminated.any()
    assert truncated.any()
    np.testing.assert_array_equal(obs[1:][~ended[:-1]], next_obs[:-1][~ended[:-1]])
    # CartPole starts within ±0.05 in every coordinate and ends elsewhere.
    assert (np.abs(obs[1:][ended[:-1]]) <= 0.05).all()
    assert (np.abs(next_obs[ended]) > 0.05).any(-1).all()
    assert len(np.unique(obs[1:][ended[:-1]], axis=0)) == ended[:-1].sum()  # no two episodes start alike
    counted = np.zeros(NUM_ENVS, int)
    for t in range(2 * NUM_STEPS):
        np.testing.assert_array_equal(time[t], counted)
        counted = np.where(ended[t], 0, counted + 1)
    assert joined(rollouts, "valid").all()


def test_terminated_and_truncated_say_which(rollouts):
    """Terminated is the pole or the cart out of bounds, in the true successor; truncated the clock alone."""
    next_obs, terminated, truncated, time = (
        joined(rollouts, name) for name in ("next_obs", "terminated", "truncated", "time")
    )
    out_of_bounds = (np.abs(next_obs[..., 0]) > 2.4) | (np.abs(next_obs[..., 2]) > 12 * np.pi / 180)
    np.testing.assert_array_equal(terminated, out_of_bounds)
    np.testing.assert_array_equal(truncated, (time == 19) & ~out_of_bounds)


def test_episode_summary_equals_a_recount(rollouts):
    """Episodes count in the rollout they end in, with all of their steps, also those of the rollout before."""
    running = np.zeros(NUM_ENVS)
    for rollout, summary in zip(rollouts[1], rollouts[2], strict=True):
        returns, lengths = [], []
        for t, n in np.ndindex(NUM_STEPS, NUM_ENVS):
            running[n] += rollout.reward[t, n]
            if rollout.terminated[t, n] or rollout.truncated[t, n]:
                returns.append(running[n])
                lengths.append(int(rollout.time[t, n]) + 1)
                running[n] = 0
        assert summary.count == len(returns) > 0
        np.testing.assert_allclose(summary.mean_return, np.mean(returns), rtol=1e-6)
        np.testing.assert_allclose(summary.mean_length, np.mean(lengths), rtol=1e-6)
    np.testing.assert_array_equal(rollouts[0][2].episode_return, running)


def test_log_prob_is_that_of_the_policy(rollouts, policy):
    """The ratio recomputed at the policy that collected is 1 to rounding."""
    for rollout in rollouts[1]:
        log_prob = policy(rollout.obs).log_prob(rollout.action)
        np.testing.assert_allclose(np.exp(log_prob - rollout.log_prob), 1, atol=1e-6)
    actions = joined(rollouts, "action")
    assert 0.35 < actions.mean() < 0.65  # 540 near-even coins: ±0.15 is 7 standard errors


def test_the_key_decides_everything(rollouts, collect):
    start, first = rollouts[0][0], rollouts[1][0]
    again = collect(jax.random.key(2), start)[1]
    jax.tree.map(np.testing.assert_array_equal, again, first)
    other = collect(jax.random.key(4), start)[1]
    np.testing.assert_array_equal(other.obs[0], first.obs[0])
    assert (other.action != first.action).any()


class ResetAtEveryStep(CartPole):
    """CartPole, with its fresh states made in the loop instead of ahead of it."""

    prefetch_resets = False


def test_fresh_states_made_ahead_are_the_same(rollouts, collector, policy):
    assert collector.environment.prefetch_resets
    environment = ResetAtEveryStep(max_episode_steps=collector.environment.max_episode_steps)
    late = CompiledCollector(environment, NUM_ENVS, NUM_STEPS)
    _, rollout, _ = jax.jit(lambda key, state: late.collect(key, policy, state))(jax.random.key(2), rollouts[0][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), rollout, rollouts[1][0])


@dataclass(frozen=True)
class Script(CompiledEnvironment):
    """Episodes of five steps that end by termination and by the clock at once; obs = (step, what came in).

    Nothing in it is random, and the reward of step t is 10ᵗ, so that a return spells out its steps.
    """

    id = "test:Script-v0"
    length: int = 5

    @property
    def observation_space(self):
        return gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    @property
    def action_space(self):
        return gymnasium.spaces.Box(np.float32(-0.5), np.float32(0.25), (1,), np.float32)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(2)

    def step(self, key, state, action):
        over = state + 1 >= self.length
        obs = jnp.stack([state + 1.0, action[0]])
        return Transition(state + 1, obs, 10.0**state, over, over)


def gaussian(obs):
    return DiagGaussian(mean=jnp.zeros(1), log_std=jnp.zeros(1))


def still(obs):
    return DiagGaussian(mean=jnp.zeros(1), log_std=jnp.full(1, -50.0))


def collected(policy, num_steps, state=None):
    """(state, rollout, summary) of three copies of the script."""
    collector = CompiledCollector(Script(), 3, num_steps)
    state = collector.init(jax.random.key(0)) if state is None else state
    return jax.jit(lambda key, s: collector.collect(key, policy, s))(jax.random.key(1), state)


def test_two_short_rollouts_are_one_long_one():
    """Without chance, collecting 7 and 7 steps gives what 14 at once give, whatever the episodes' ends."""
    expected_state, expected, _ = collected(still, 14)
    state, first, first_summary = collected(still, 7)
    state, second, second_summary = collected(still, 7, state)
    for name in ("obs", "next_obs", "reward", "terminated", "truncated", "time"):
        both = np.concatenate([getattr(first, name), getattr(second, name)])
        np.testing.assert_allclose(both, getattr(expected, name), atol=1e-15, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-15), state, expected_state)

    np.testing.assert_array_equal(expected.time[:, 0], [*range(5), *range(5), *range(4)])
    np.testing.assert_array_equal(expected.reward[:, 0], 10.0 ** np.array([*range(5), *range(5), *range(4)]))
    np.testing.assert_array_equal(expected.next_obs[:, 0, 0], [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4])
    for summary in (first_summary, second_summary):
        assert (summary.count, summary.mean_return, summary.mean_length) == (3, 11111, 5)


def test_a_termination_on_the_last_tick_is_a_termination():
    _, rollout, _ = collected(gaussian, 10)
    np.testing.assert_array_equal(np.flatnonzero(rollout.terminated[:, 0]), [4, 9])
    assert not rollout.truncated.any()
    # Only the environment sees the clipped action; what is stored, and its log-prob, is what was sampled.
    action = np.asarray(rollout.action[..., 0])
    assert action.min() < -0.5
    assert action.max() > 0.25
    np.testing.assert_allclose(rollout.next_obs[..., 1], np.clip(action, -0.5, 0.25), atol=1e-7)
    np.testing.assert_allclose(rollout.log_prob, -0.5 * action**2 - 0.5 * np.log(2 * np.pi), atol=1e-6)


def test_no_episode_ended_is_said_as_nan():
    _, _, summary = collected(gaussian, 3)
    assert summary.count == 0
    assert np.isnan(summary.mean_return)
    assert np.isnan(summary.mean_length)
