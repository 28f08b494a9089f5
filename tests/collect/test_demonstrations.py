"""Demonstrations: what is refused, how episodes are packed, and recording them from a policy."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import DemonstrationError, Demonstrations, NetworkPolicy
from klimb.policies.networks import Box, Discrete

LENGTHS = [3, 1, 7, 2, 2, 5]


def make_demonstrations(lengths=LENGTHS, **columns) -> Demonstrations:
    rng, rows = np.random.default_rng(0), sum(lengths)
    ends = np.cumsum(lengths) - 1
    flags = np.zeros(rows, bool)
    terminated, truncated = flags.copy(), flags.copy()
    terminated[ends[::2]] = True
    truncated[ends[1::2]] = True
    fields = {
        "obs": rng.normal(size=(rows, 4)).astype(np.float32),
        "action": rng.integers(2, size=rows).astype(np.int32),
        "log_prob": np.full(rows, -0.7, np.float32),
        "reward": np.arange(rows, dtype=np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "next_obs": rng.normal(size=(rows, 4)).astype(np.float32),
    }
    return Demonstrations(**fields | columns, actions=Discrete(2), environment="jax:CartPole-v1", source="the test")


def spoilt(name: str, row: int, value: float) -> np.ndarray:
    column = getattr(make_demonstrations(), name).copy()
    column[row] = value
    return column


NONE = np.zeros(20, bool)
REFUSED = [
    (
        {name: np.zeros((0, 4) if "obs" in name else 0, np.float32) for name in ("obs", "next_obs", "reward")},
        "is empty",
    ),
    ({"reward": np.zeros(19, np.float32)}, "obs has 20 rows, reward has 19"),
    ({"obs": spoilt("obs", 4, np.nan)}, r"obs of row 4 is not finite \(1 such rows\)"),
    ({"reward": spoilt("reward", 9, np.inf)}, "reward of row 9 is not finite"),
    ({"terminated": NONE, "truncated": NONE}, "cut off: the last 20 of its 20 rows"),
    ({"truncated": spoilt("truncated", 19, 0)}, "cut off: the last 5 of its 20 rows"),
    ({"action": spoilt("action", 2, 2)}, "not all in 0 … 1"),
    ({"action": spoilt("action", 2, -1)}, "not all in 0 … 1"),
]


@pytest.mark.parametrize(("columns", "line"), REFUSED, ids=[line[:30] for _, line in REFUSED])
def test_what_is_no_whole_episodes_is_refused(columns, line):
    with pytest.raises(DemonstrationError, match=f"^the test.*{line}"):
        make_demonstrations(**columns)


def test_returns_and_lengths_are_by_episode():
    demonstrations = make_demonstrations()
    assert demonstrations.num_episodes == 6
    assert demonstrations.lengths.tolist() == LENGTHS
    assert demonstrations.returns.tolist() == [sum(rows) for rows in np.split(np.arange(20), np.cumsum(LENGTHS)[:-1])]


@pytest.mark.parametrize("max_columns", [1, 3, 32])
def test_packing_keeps_every_row_once_and_episodes_whole(max_columns):
    demonstrations = make_demonstrations()
    rollout = demonstrations.rollout(max_columns)
    valid = np.asarray(rollout.valid)
    assert valid.shape[1] == min(max_columns, 6)
    assert sorted(np.asarray(rollout.reward)[valid]) == list(range(20))
    for n in range(valid.shape[1]):
        column = jax.tree.map(lambda x, n=n: np.asarray(x[:, n])[valid[:, n]], rollout)
        # Rewards number the rows: inside an episode they count up, and time starts anew after every end.
        ended = column.terminated | column.truncated
        assert ended[-1]
        assert (np.diff(column.reward)[~ended[:-1]] == 1).all()
        expected = np.concatenate([np.arange(len(part)) for part in np.split(ended, np.flatnonzero(ended)[:-1] + 1)])
        assert column.time.tolist() == expected.tolist()
        rows = column.reward.astype(int)
        np.testing.assert_array_equal(column.obs, demonstrations.obs[rows])
        np.testing.assert_array_equal(column.action, demonstrations.action[rows])
    if max_columns == 3:
        assert len(valid) == 7  # the longest alone, the others in the two other columns


def test_other_environments_are_refused_with_both_sides():
    demonstrations = make_demonstrations()
    demonstrations.check_fit(klimb.make("CartPole-v1"))
    with pytest.raises(
        DemonstrationError, match=r"recorded on jax:CartPole-v1 .* \(4,\); jax:Pendulum-v1 gives \(3,\)"
    ):
        demonstrations.check_fit(klimb.make("Pendulum-v1"))
    three = dataclasses.replace(demonstrations, actions=Discrete(3))
    with pytest.raises(DemonstrationError, match=r"Discrete\(n=3\); jax:CartPole-v1 takes Discrete\(n=2\)"):
        three.check_fit(klimb.make("CartPole-v1"))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "are missing"), (-np.inf, r"are not finite \(-inf\)")])
def test_log_probs_that_are_no_numbers_are_refused(value, words):
    make_demonstrations().check_log_probs()
    with pytest.raises(DemonstrationError, match=rf"log-probs {words} in 1 of 20 rows, the first is row 7; .*--determ"):
        make_demonstrations(log_prob=spoilt("log_prob", 7, value)).check_log_probs()


# Recording.


def make_policy(observations: int, actions) -> NetworkPolicy:
    policy = NetworkPolicy(observations, actions, hidden=(8,), key=jax.random.key(0))
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, 30 * policy.network.weights[-1])


@pytest.mark.parametrize("env", ["CartPole-v1", "gymnasium:CartPole-v1"])
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
    with pytest.raises(DemonstrationError, match="are missing in 800 of 800 rows"):
        demonstrations.check_log_probs()


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
