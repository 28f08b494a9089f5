"""Demonstrations: what is refused, and how episodes are packed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import klimb
from klimb import DemonstrationError, Demonstrations
from klimb.policies.actions import Box, Discrete

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
    told = {"actions": Discrete(2), "environment": "jax:CartPole-v1", "source": "the test"}
    return Demonstrations(**fields | told | columns)


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
    ({"action": np.zeros((20, 1), np.int32)}, "not all in 0 … 1"),
    ({"action": np.zeros(20, np.float32)}, "actions are float32, and discrete ones are integers"),
    ({"actions": Box((-1.0,), (1.0,))}, "actions are int32, and those of a box are floating-point numbers"),
    (
        {"actions": Box((-1.0,), (1.0,)), "action": np.zeros((20, 2), np.float32)},
        r"have the shape \(2,\), its action space has 1 dimensions",
    ),
    ({"obs": np.zeros((), np.float32)}, "obs has no rows, reward has 20"),
    ({"next_obs": np.zeros((20, 3), np.float32)}, r"obs is \(20, 4\) and next_obs \(20, 3\)"),
    ({"log_prob": np.zeros((20, 1), np.float32)}, r"log_prob has the shape \(20, 1\); it has to be one number per row"),
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


def test_an_episode_that_ends_both_ways_has_terminated_and_padding_is_blank():
    demonstrations = make_demonstrations(log_prob=np.full(20, np.nan, np.float32), truncated=spoilt("truncated", 2, 1))
    assert demonstrations.terminated[2]
    assert demonstrations.num_episodes == 6
    rollout = demonstrations.rollout(4)
    valid = np.asarray(rollout.valid)
    assert not valid.all()
    assert not (np.asarray(rollout.terminated) & np.asarray(rollout.truncated)).any()
    # Log-probs are carried as they are; in padding everything is zero.
    assert np.isnan(np.asarray(rollout.log_prob)[valid]).all()
    for column in jax.tree.leaves(rollout):
        assert not np.asarray(column)[~valid].any()
    assert rollout.time.dtype == np.int32


def test_bounds_and_dimensions_of_boxes_are_compared():
    column = {"action": np.zeros((20, 1), np.float32), "obs": np.zeros((20, 3), np.float32)}
    column["next_obs"] = column["obs"]
    make_demonstrations(**column, actions=Box((-2.0,), (2.0,))).check_fit(klimb.make("Pendulum-v1"))
    with pytest.raises(DemonstrationError, match=r"low=\(-1.0,\).* takes Box\(low=\(-2.0,\), high=\(2.0,\)\)"):
        make_demonstrations(**column, actions=Box((-1.0,), (2.0,))).check_fit(klimb.make("Pendulum-v1"))
    column["action"] = np.zeros((20, 2), np.float32)
    with pytest.raises(DemonstrationError, match=r"high=\(2.0, 2.0\)\); jax:Pendulum-v1 takes"):
        make_demonstrations(**column, actions=Box((-2.0,) * 2, (2.0,) * 2)).check_fit(klimb.make("Pendulum-v1"))


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
