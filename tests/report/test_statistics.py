"""Interquartile means, bootstrap intervals, probabilities of improvement and times, each against an oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from klimb.errors import ConfigError
from klimb.report.statistics import (
    Resampling,
    aggregate_interquartile_mean,
    interquartile_mean,
    median_time,
    normalised,
    probability_of_improvement,
    stratified_bootstrap,
    time_to_threshold,
    trailing_mean,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        ([9.0, 0.0, 3.0], (0.25 * 0 + 1 * 3 + 0.25 * 9) / 1.5),
        ([1.0, 2.0, 4.0, 100.0], 3.0),
        ([50.0, 1.0, 2.0, 3.0, 7.0], (0.75 * 2 + 3 + 0.75 * 7) / 2.5),
        ([0.0, 1.0, 2.0, 4.0, 8.0, 90.0], (0.5 * 1 + 2 + 4 + 0.5 * 8) / 3),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [4, 8, 40])
def test_interquartile_mean_is_the_trimmed_mean_where_a_quarter_is_whole(n):
    scores = np.random.default_rng(n).standard_cauchy((3, n))
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=1))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 11])
def test_interquartile_mean_is_that_of_every_score_four_times(n):
    """Copies do not change the empirical distribution, and with four of each the trimmed mean is exact."""
    scores = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(np.repeat(scores, 4), 0.25))


def test_whole_weights_count_copies():
    scores, copies = np.array([5.0, -1.0, 2.0, 9.0]), np.array([1.0, 3.0, 2.0, 4.0])
    expected = interquartile_mean(np.repeat(scores, copies.astype(int)))
    assert interquartile_mean(scores, copies) == pytest.approx(float(expected))


@pytest.mark.parametrize("missing", [0, 1, 4])
def test_missing_scores_are_skipped(missing):
    scores = np.random.default_rng(missing).normal(size=(3, 7))
    padded = np.insert(scores, [0] * missing, np.nan, axis=-1)
    np.testing.assert_allclose(interquartile_mean(padded), interquartile_mean(scores), rtol=1e-12)
    weights = np.arange(1.0, 8.0)
    padded_weights = np.insert(weights, [0] * missing, 100.0)
    expected = interquartile_mean(scores, weights)
    np.testing.assert_allclose(interquartile_mean(padded, padded_weights), expected, rtol=1e-12)
    assert np.isnan(interquartile_mean(np.full((2, 5), np.nan))).all()


def test_intervals_cover_what_they_estimate():
    """Three environments of different levels, 10 seeds each: 95 % intervals of the IQM of normal scores."""
    rng, levels = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    truth = aggregate_interquartile_mean([level + rng.normal(size=40_000) for level in levels], samples=1).value
    covered = 0
    for repetition in range(300):
        scores = [level + rng.normal(size=10) for level in levels]
        estimate = aggregate_interquartile_mean(scores, samples=400, seed=repetition)
        assert estimate.low <= estimate.high
        covered += estimate.low <= truth <= estimate.high
    assert 0.88 <= covered / 300 <= 0.99


def test_strata_are_resampled_each_on_its_own():
    rng = np.random.default_rng(1)
    strata = [100.0 * level + rng.normal(size=8) for level in range(4)]
    apart = stratified_bootstrap(strata, lambda x: x.mean(axis=-1))
    pooled = stratified_bootstrap([np.concatenate(strata)], lambda x: x.mean(axis=-1))
    assert apart.value == pytest.approx(pooled.value)
    assert apart.high - apart.low < 1.5
    assert pooled.high - pooled.low > 50


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    scores = np.random.default_rng(2).normal(3, 2, size=400)
    estimate = stratified_bootstrap([scores], lambda x: x.mean(axis=-1), samples=4000, confidence=0.9)
    error = 1.645 * scores.std() / 20
    np.testing.assert_allclose(
        (estimate.low, estimate.high), scores.mean() + np.array([-error, error]), atol=0.1 * error
    )


def test_a_bootstrap_is_repeatable_and_depends_on_its_seed():
    scores = [np.random.default_rng(3).normal(size=7)]
    assert stratified_bootstrap(scores, seed=4) == stratified_bootstrap(scores, seed=4)
    assert stratified_bootstrap(scores, seed=4) != stratified_bootstrap(scores, seed=5)


def test_a_single_seed_has_no_interval():
    one, several = np.array([1.0]), np.array([1.0, 2.0, 3.0])
    for estimate in (stratified_bootstrap([several, one]), probability_of_improvement([several], [one])):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


def test_environments_have_the_same_say_whatever_their_seeds():
    few, many = np.zeros(2), np.ones(30)
    assert aggregate_interquartile_mean([few, many]).value == pytest.approx(0.5)


def test_probability_of_improvement_by_brute_force_with_ties():
    rng = np.random.default_rng(5)
    x = [rng.integers(0, 4, size=n).astype(float) for n in (5, 9)]
    y = [rng.integers(0, 4, size=n).astype(float) for n in (6, 4)]
    chances = []
    for a, b in zip(x, y, strict=True):
        wins = [(p > q) + 0.5 * (p == q) for p, q in itertools.product(a, b)]
        chances.append(sum(wins) / len(wins))
    there, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert there.value == pytest.approx(np.mean(chances))
    assert there.value + back.value == pytest.approx(1)
    assert 0 <= there.low <= there.value <= there.high <= 1


def test_probability_of_improvement_is_mann_and_whitneys_u():
    rng = np.random.default_rng(6)
    x, y = rng.normal(0.5, size=12), rng.normal(size=9)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement([x], [y]).value == pytest.approx(u / (12 * 9))


def test_the_interval_of_a_probability_is_that_of_drawn_seeds():
    rng = np.random.default_rng(7)
    x, y = rng.normal(0.4, size=10), rng.normal(size=12)
    drawn = []
    for _ in range(4000):
        a, b = rng.choice(x, size=10), rng.choice(y, size=12)
        drawn.append(np.mean(a[:, None] > b) + 0.5 * np.mean(a[:, None] == b))
    estimate = probability_of_improvement([x], [y], samples=8000)
    np.testing.assert_allclose((estimate.low, estimate.high), np.quantile(drawn, [0.025, 0.975]), atol=0.02)


def test_certain_improvement():
    estimate = probability_of_improvement([np.array([5.0, 6.0, 7.0])] * 3, [np.array([1.0, 2.0, 3.0])] * 3)
    assert estimate.value == pytest.approx(1)
    assert estimate.low == pytest.approx(1)
    assert estimate.high <= 1


STEPS = np.arange(1, 11) * 100.0
SECONDS = np.arange(1, 11) * 0.5


def test_time_to_threshold():
    curve = np.arange(10.0)  # the mean of the last five is the value two before
    assert time_to_threshold(curve, STEPS, SECONDS, 5.0) == (800.0, 4.0)
    assert time_to_threshold(curve, STEPS, SECONDS, 7.0) == (1000.0, 5.0)
    assert np.isnan(time_to_threshold(curve, STEPS, SECONDS, 7.1)).all()
    assert time_to_threshold(curve, STEPS, SECONDS, 0.0) == (100.0, 0.5)


def test_one_lucky_iteration_is_not_enough():
    curve = np.array([0.0, 0, 0, 0, 100, 0, 0, 0, 0, 0])
    assert np.isnan(time_to_threshold(curve, STEPS, SECONDS, 50.0)).all()


def test_iterations_without_an_episode_are_passed_over():
    curve = np.array([np.nan, 0, np.nan, 0, np.nan, 0, np.nan, 0, 0, 50])
    assert time_to_threshold(curve, STEPS, SECONDS, 0.0) == (200.0, 1.0)
    assert time_to_threshold(curve, STEPS, SECONDS, 10.0) == (1000.0, 5.0)
    assert np.isnan(time_to_threshold(np.full(10, np.nan), STEPS, SECONDS, -1e9)).all()


def test_trailing_mean():
    values = np.random.default_rng(8).normal(size=9)
    expected = [values[max(0, i - 2) : i + 1].mean() for i in range(9)]
    np.testing.assert_allclose(trailing_mean(values, 3), expected)


def test_seeds_that_never_arrive_are_the_latest():
    assert median_time(np.array([10.0, np.nan, 30.0])) == 30.0
    assert median_time(np.array([10.0, 20.0, np.nan, 30.0])) == 25.0
    assert np.isnan(median_time(np.array([10.0, np.nan])))
    assert np.isnan(median_time(np.array([10.0, np.nan, np.nan])))


def test_normalised_scores():
    np.testing.assert_allclose(normalised(np.array([-5.0, 0.0]), np.array([-10.0, -5.0, 0.0])), [0.5, 1])
    np.testing.assert_allclose(normalised(np.array([3.0]), np.array([3.0, 3.0])), [0.5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"confidence": 0.0}, "confidence = 0 "),
        ({"confidence": 95.0}, "choose 0.95"),
        ({"confidence": float("nan")}, "confidence = nan"),
    ],
)
def test_absurd_resampling_is_refused(options, words):
    scores = [np.array([1.0, 2.0])]
    for refuse in (
        lambda: Resampling(**options),
        lambda: stratified_bootstrap(scores, **options),
        lambda: probability_of_improvement(scores, scores, **options),
    ):
        with pytest.raises(ConfigError, match=words):
            refuse()
