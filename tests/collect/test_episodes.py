"""Episodes counted across rollouts, against a plain recount."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klimb.collect.episodes import EpisodeTally


class Recount:
    """One row after the other."""

    def __init__(self, seeds, envs):
        self.time, self.sum = np.zeros((seeds, envs), int), np.zeros((seeds, envs))

    def __call__(self, reward, ended, valid, made):
        time = np.zeros(reward.shape, int)
        returns, lengths = ([[] for _ in self.time] for _ in range(2))
        for t, k, n in np.ndindex(reward.shape):
            if t >= made[n]:
                continue
            time[t, k, n] = self.time[k, n]
            if valid[t, k, n]:
                self.sum[k, n] += float(reward[t, k, n])
                if ended[t, k, n]:
                    returns[k].append(self.sum[k, n])
                    lengths[k].append(self.time[k, n] + 1)
            self.time[k, n] += 1
            if ended[t, k, n] or not valid[t, k, n]:
                self.time[k, n] = self.sum[k, n] = 0
        return time, returns, lengths


def mean(values):
    return np.mean(values) if values else np.nan


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4)),
    rollouts=st.integers(1, 4),
    ends=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    resets=st.sampled_from([0.0, 0.2]),
    is_late=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_several_rollouts_equal_a_recount(shape, rollouts, ends, resets, is_late, seed):
    """An episode goes on from one rollout into the next; a row that is not valid is part of none.

    Of copies that are late the first rows were made, and the others are as if they were not there.
    """
    rng = np.random.default_rng(seed)
    tally, recount = EpisodeTally(*shape[1:]), Recount(*shape[1:])
    for _ in range(rollouts):
        reward = (100 * rng.normal(size=shape)).astype(np.float32)
        ended, valid = rng.random(shape) < ends, rng.random(shape) >= resets
        made = rng.integers(1, shape[0] + 1, shape[2]) if is_late else np.full(shape[2], shape[0])
        was_made = np.arange(shape[0])[:, None, None] < made
        ended, valid = ended & was_made, valid & was_made
        time, summary = tally.count(reward, ended, valid, made if is_late else None)
        expected_time, returns, lengths = recount(reward, ended, valid, made)
        np.testing.assert_array_equal(np.where(was_made, time, 0), expected_time)
        np.testing.assert_array_equal(summary.count, [len(x) for x in returns])
        np.testing.assert_allclose(summary.mean_return, [mean(x) for x in returns], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(summary.mean_length, [mean(x) for x in lengths], rtol=1e-6)


def rows(*values, dtype=bool):
    """One seed, one copy."""
    return np.array(values, dtype)[:, None, None]


def test_a_rollout_in_which_nothing_ends_has_no_means():
    tally = EpisodeTally(2, 3)
    shape = (4, 2, 3)
    ended = np.zeros(shape, bool)
    ended[1, 0, 2] = True
    _, summary = tally.count(np.ones(shape, np.float32), ended, np.ones(shape, bool))
    np.testing.assert_array_equal(summary.count, [1, 0])
    np.testing.assert_array_equal(summary.mean_return, [2, np.nan])
    np.testing.assert_array_equal(summary.mean_length, [2, np.nan])


def test_a_row_that_carries_out_a_reset_counts_for_nothing():
    """As EnvPool has them: after the end a row whose reward and end belong to no episode."""
    tally = EpisodeTally(1, 1)
    reward = rows(1, 2, 1000, 4, 8, dtype=np.float32)
    time, summary = tally.count(reward, rows(False, True, True, False, True), rows(True, True, False, True, True))
    np.testing.assert_array_equal(time[:, 0, 0], [0, 1, 0, 0, 1])
    assert (summary.count, summary.mean_return, summary.mean_length) == (2, 7.5, 2)


def test_a_reset_forgets_the_episodes_under_way():
    tally = EpisodeTally(1, 1)
    reward, ended, valid = rows(5, 5, dtype=np.float32), rows(False, False), rows(True, True)
    tally.count(reward, ended, valid)
    tally.reset()
    time, summary = tally.count(reward, rows(False, True), valid)
    np.testing.assert_array_equal(time[:, 0, 0], [0, 1])
    assert summary.mean_return == 10


def test_returns_are_summed_in_double_precision():
    """In single precision 2²⁴ + 1 is 2²⁴, and a million rewards of 0.1 are off by a percent."""
    tally = EpisodeTally(1, 1)
    tally.count(rows(2**24, dtype=np.float32), rows(False), rows(True))
    for _ in range(4):
        tally.count(rows(1, dtype=np.float32), rows(False), rows(True))
    _, summary = tally.count(rows(-(2**24), dtype=np.float32), rows(True), rows(True))
    assert summary.mean_return == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_not_finite_spoils_no_other(bad):
    """Neither the other seed, nor the same copy's next episodes, in this rollout and in the next."""
    shape = (4, 2, 2)
    tally, reward, ended = EpisodeTally(2, 2), np.ones(shape, np.float32), np.zeros(shape, bool)
    valid = np.ones(shape, bool)
    ended[1] = True
    reward[0, 0, 0] = bad
    _, summary = tally.count(reward, ended, valid)
    np.testing.assert_array_equal(summary.count, [2, 2])
    np.testing.assert_array_equal(summary.mean_return, [bad, 2])
    np.testing.assert_array_equal(summary.mean_length, [2, 2])
    reward[0, 0, 0] = 1
    _, summary = tally.count(reward, ended, valid)
    np.testing.assert_array_equal(summary.mean_return, [4, 4])
    reward[3, 0, 0] = bad
    tally.count(reward, ended, valid)
    reward[3, 0, 0] = 1
    _, summary = tally.count(reward, ended, valid)
    np.testing.assert_array_equal(summary.mean_return, [bad, 4])
    _, summary = tally.count(reward, ended, valid)
    np.testing.assert_array_equal(summary.mean_return, [4, 4])


def test_returns_beyond_all_numbers_are_said_as_such_without_a_warning():
    """+∞ and −∞ in one episode, in two of one seed, and a sum that single precision can't hold."""
    tally = EpisodeTally(3, 1)
    reward = np.zeros((2, 3, 1), np.float32)
    reward[:, 0, 0], reward[:, 1, 0], reward[:, 2, 0] = (np.inf, -np.inf), (np.inf, -np.inf), (3e38, 3e38)
    ended = np.array([[[False], [True], [False]], [[True], [True], [True]]])
    _, summary = tally.count(reward, ended, np.ones_like(ended))
    assert np.isnan(summary.mean_return[:2]).all()
    assert np.isposinf(summary.mean_return[2])
