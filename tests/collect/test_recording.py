"""Recording: whole episodes, what the policy did in them and how probable it was, by the conventions of evaluation."""

from __future__ import annotations

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import DemonstrationError, NetworkPolicy
from klimb.environments.host import HostEnvironment, HostStep, HostVector
from klimb.policies.actions import Box, Discrete
from problems import slow_except


def make_policy(observations: int, actions) -> NetworkPolicy:
    policy = NetworkPolicy(observations, actions, hidden=(8,), key=jax.random.key(0))
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, 30 * policy.network.weights[-1])


@pytest.mark.parametrize("env", slow_except({"CartPole-v1"}, ("CartPole-v1", "gymnasium:CartPole-v1")))
def test_recorded_episodes_are_whole_and_say_what_the_policy_did(env):
    policy = make_policy(4, Discrete(2))
    demonstrations = klimb.record(policy, env, episodes=20, seed=3)
    assert demonstrations.num_episodes == 20
    np.testing.assert_array_equal(demonstrations.returns, demonstrations.lengths)
    expected = policy(jnp.asarray(demonstrations.obs)).log_prob(jnp.asarray(demonstrations.action))
    np.testing.assert_allclose(demonstrations.log_prob, expected, rtol=1e-5, atol=1e-6)
    # Inside an episode the successor is the next row's observation.
    inside = ~demonstrations.ended[:-1]
    np.testing.assert_array_equal(demonstrations.next_obs[:-1][inside], demonstrations.obs[1:][inside])
    assert demonstrations.terminated[demonstrations.ended].any()
    again = klimb.record(policy, env, episodes=20, seed=3)
    np.testing.assert_array_equal(again.obs, demonstrations.obs)
    assert not np.array_equal(klimb.record(policy, env, episodes=20, seed=4).obs[:5], demonstrations.obs[:5])


def test_a_recorded_episode_can_be_played_again():
    """Gymnasium's own CartPole, started where the recording started, gives the same observations and rewards."""
    demonstrations = klimb.record(make_policy(4, Discrete(2)), "CartPole-v1", episodes=3, seed=1)
    env = gymnasium.make("CartPole-v1").unwrapped
    for start, length in zip(
        np.cumsum(demonstrations.lengths) - demonstrations.lengths, demonstrations.lengths, strict=True
    ):
        env.reset()
        env.state = tuple(map(float, demonstrations.obs[start]))
        env.steps_beyond_terminated = None
        for row in range(start, start + length):
            obs, reward, terminated, _, _ = env.step(int(demonstrations.action[row]))
            np.testing.assert_allclose(obs, demonstrations.next_obs[row], rtol=0, atol=1e-4)
            assert reward == demonstrations.reward[row]
            assert terminated == demonstrations.terminated[row]


def test_modes_are_the_episodes_of_an_evaluation_and_have_no_log_probs():
    policy = make_policy(3, Box((-2.0,), (2.0,)))
    demonstrations = klimb.record(policy, "Pendulum-v1", episodes=4, deterministic=True)
    assert np.isnan(demonstrations.log_prob).all()
    np.testing.assert_allclose(
        demonstrations.action, policy(jnp.asarray(demonstrations.obs)).mode(), rtol=1e-4, atol=1e-5
    )
    assert demonstrations.truncated[demonstrations.ended].all()
    assert demonstrations.lengths.tolist() == [200] * 4
    evaluation = klimb.evaluate(policy, "Pendulum-v1", episodes=4)
    np.testing.assert_allclose(demonstrations.returns, evaluation.returns, rtol=1e-5)
    with pytest.raises(DemonstrationError, match="are missing in 800 of 800 rows"):
        demonstrations.check_log_probs()


@pytest.mark.slow
def test_gaussian_samples_are_kept_as_they_were_and_squashed_ones_in_the_box():
    policy = make_policy(3, Box((-2.0,), (2.0,)))
    wide = eqx.tree_at(lambda p: p.log_std, policy, jnp.array([1.0]))
    assert np.abs(klimb.record(wide, "Pendulum-v1", episodes=2).action).max() > 2
    squashed = NetworkPolicy(3, Box((-2.0,), (2.0,)), hidden=(8,), tanh_squash=True, key=jax.random.key(0))
    demonstrations = klimb.record(squashed, "Pendulum-v1", episodes=2)
    assert np.abs(demonstrations.action).max() <= 2
    distribution = squashed(jnp.asarray(demonstrations.obs))
    pre_tanh = distribution.from_environment(jnp.asarray(demonstrations.action))
    np.testing.assert_allclose(distribution.log_prob(pre_tanh), demonstrations.log_prob, rtol=1e-3, atol=1e-3)


def test_a_recording_has_at_least_one_episode():
    with pytest.raises(ValueError, match="episodes = 0; demonstrations need at least 1"):
        klimb.record(make_policy(4, Discrete(2)), "CartPole-v1", episodes=0)
    with pytest.raises(klimb.PolicyFileError, match="reads observations of shape"):
        klimb.record(make_policy(4, Discrete(2)), "Pendulum-v1", episodes=1)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_host_environment_the_episodes_are_those_of_an_evaluation(deterministic):
    """Both draw the same keys, and both give every copy its share; 20 episodes are more than there are copies."""
    policy = make_policy(4, Discrete(2))
    how = {"episodes": 20, "seed": 5, "deterministic": deterministic}
    evaluation = klimb.evaluate(policy, "gymnasium:CartPole-v1", **how)
    demonstrations = klimb.record(policy, "gymnasium:CartPole-v1", **how)
    np.testing.assert_array_equal(np.sort(demonstrations.returns), np.sort(evaluation.returns))


def test_sampled_returns_agree_with_an_evaluation():
    policy = make_policy(4, Discrete(2))
    recorded = klimb.record(policy, "CartPole-v1", episodes=300, seed=1).returns
    ended = []
    evaluated = klimb.evaluate(
        policy, "CartPole-v1", episodes=300, seed=2, deterministic=False, on_episodes=lambda *now: ended.append(now)
    )
    evaluated, lengths = evaluated.returns, evaluated.lengths
    # After every 64 steps, as far as there are more than before.
    numbers = [0, *(int((lengths <= steps).sum()) for steps in range(64, lengths.max() + 64, 64))]
    assert ended == [(number, 300) for number in dict.fromkeys(numbers)]
    error = np.sqrt((recorded.var(ddof=1) + evaluated.var(ddof=1)) / 300)
    assert abs(recorded.mean() - evaluated.mean()) < 4 * error


class NextStepReset(HostVector):
    """Copy c has episodes of c + 1 steps; the step after an end carries out the reset, with a reward to be ignored."""

    def __init__(self, copies: int) -> None:
        self.time, self.resetting = np.zeros(copies, int), np.zeros(copies, bool)

    def _obs(self) -> np.ndarray:
        return np.stack([np.arange(len(self.time)), self.time], 1).astype(np.float32)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        return self._obs()

    def step(self, action: np.ndarray) -> HostStep:
        valid = ~self.resetting
        self.time = np.where(valid, self.time + 1, 0)
        ended = valid & (self.time == np.arange(len(valid)) + 1)
        self.resetting = ended
        reward = np.where(valid, 1, 100).astype(np.float32)
        return HostStep(self._obs(), self._obs(), reward, ended, np.zeros_like(ended), valid)

    def close(self) -> None: ...


class NextStepResetting(HostEnvironment):
    id = "test:NextStepReset"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def vector(self, copies: int, *, restart: bool = False) -> HostVector:
        return NextStepReset(copies)


def test_rows_that_only_reset_are_dropped_and_short_episodes_are_not_recorded_more_often():
    ended = []
    demonstrations = klimb.record(
        make_policy(2, Discrete(2)), NextStepResetting(), episodes=20, on_episodes=lambda *now: ended.append(now)
    )
    assert (demonstrations.reward == 1).all()
    copy = demonstrations.obs[demonstrations.ended, 0].astype(int)
    np.testing.assert_array_equal(demonstrations.lengths, copy + 1)
    # 20 episodes on 16 copies: two of each of the first four, one of each of the others.
    np.testing.assert_array_equal(np.bincount(copy), [2] * 4 + [1] * 12)
    np.testing.assert_array_equal(demonstrations.next_obs[:, 1], demonstrations.obs[:, 1] + 1)
    # The first four copies end their second episodes after 3, 5, 7 and 9 steps; at the start nothing has ended.
    assert ended == [(number, 20) for number in (0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20)]
