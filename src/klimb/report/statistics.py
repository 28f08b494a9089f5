"""What a handful of seeds can say: interquartile means, bootstrap intervals, chances of doing better.

After Agarwal, Schwarzer, Castro, Courville, Bellemare (2021), "Deep reinforcement learning at the edge of the
statistical precipice". A stratum is an environment: it holds one score a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from klimb.errors import ConfigError

WINDOW = 5  # iterations that a learning curve is smoothed over

Scores = Float[np.ndarray, " _"]
Statistic = Callable[[Float[np.ndarray, "*batch n"]], Float[np.ndarray, "*batch"]]


@dataclass(frozen=True)
class Estimate:
    """A statistic of the scores as they are, and its percentile interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How bootstrap intervals are made."""

    samples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_resampling(self.samples, self.confidence)
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}; the seed of the bootstrap is a number from 0 on")


class Reached(NamedTuple):
    """When a threshold was first reached, both NaN if it never was."""

    env_steps: float
    wall_time: float


def interquartile_mean(
    scores: Float[np.ndarray, "*batch n"], weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """Mean of the middle half, over the last axis: 2 ∫ Q(u) du from u = ¼ to ¾.

    Q is the empirical quantile function: a staircase on which the i-th smallest score is a step of width wᵢ (1/n
    unless weights say otherwise). A step that lies across ¼ or ¾ counts by the part inside, so the result is exact
    for every n: of 5 scores the second and the fourth have ¾ of the middle one's weight. For n divisible by 4 it is
    the mean of the n/2 scores in the middle.

    `weights` need not sum to 1. With weights 1/nₑ each of several strata has the same say, whatever its size nₑ.
    """
    count = scores.shape[-1]
    width = np.ones(count) if weights is None else weights
    order = np.argsort(scores, axis=-1)
    upper = np.cumsum(width[order], axis=-1)
    lower, total = upper - width[order], width.sum()
    inside = np.clip(np.minimum(upper, 0.75 * total) - np.maximum(lower, 0.25 * total), 0, None)
    return np.asarray((inside * np.take_along_axis(scores, order, axis=-1)).sum(axis=-1) / (0.5 * total))


def stratified_bootstrap(
    scores: Sequence[Scores],
    statistic: Statistic = interquartile_mean,
    *,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Percentile interval of a statistic, seeds being drawn with replacement within each stratum.

    `statistic` maps the strata, put one after the other on the last axis, to one number: `[samples, n]` to
    `[samples]`. The interval is NaN when a stratum has a single score, whose spread nobody knows.
    """
    check_resampling(samples, confidence)
    value = float(statistic(np.concatenate(scores)))
    if min(map(len, scores)) < 2:
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [stratum[rng.integers(len(stratum), size=(samples, len(stratum)))] for stratum in scores]
    return _percentiles(value, statistic(np.concatenate(drawn, axis=-1)), confidence)


def aggregate_interquartile_mean(
    scores: Sequence[Scores], *, samples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """IQM of scores of several environments. All have the same say, however many seeds ran on each."""
    weights = np.concatenate([np.full(len(stratum), 1 / len(stratum)) for stratum in scores])

    def statistic(drawn: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
        return interquartile_mean(drawn, weights)

    return stratified_bootstrap(scores, statistic, samples=samples, seed=seed, confidence=confidence)


def probability_of_improvement(
    x: Sequence[Scores], y: Sequence[Scores], *, samples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """P(X > Y) + ½ P(X = Y) for a random seed of each, averaged over environments, with its bootstrap interval.

    In one environment it is U / (n m) with the U of Mann and Whitney; 1/2 means that neither does better.
    The k-th strata of x and of y belong to the same environment.
    """
    check_resampling(samples, confidence)
    better = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(x, y, strict=True)]
    value = float(np.mean([table.mean() for table in better]))
    if min(min(table.shape) for table in better) < 2:
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = np.zeros(samples)
    for table in better:
        rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=samples) / n for n in table.shape)
        drawn += ((rows @ table) * columns).sum(axis=1) / len(better)
    return _percentiles(value, np.clip(drawn, 0, 1), confidence)


def normalised(scores: Float[np.ndarray, " n"], everyone: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """(score − lowest) / (highest − lowest) with the extremes of everyone's scores; ½ where those are equal."""
    low, high = everyone.min(), everyone.max()
    return (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)


def trailing_mean(values: Float[np.ndarray, " n"], window: int = WINDOW) -> Float[np.ndarray, " n"]:
    """Mean of each value and those before it, `window` in all; of the first values, of as many as there are."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def time_to_threshold(
    curve: Float[np.ndarray, " n"],
    env_steps: Float[np.ndarray, " n"],
    wall_time: Float[np.ndarray, " n"],
    threshold: float,
) -> Reached:
    """Environment steps and seconds at which the smoothed return first reaches the threshold.

    The return is smoothed over the last 5 iterations in which an episode ended; iterations without one (NaN) are
    passed over.
    """
    finite = np.isfinite(curve)
    smooth = trailing_mean(curve[finite]) if finite.any() else np.empty(0)
    hits = np.flatnonzero(smooth >= threshold)
    if not len(hits):
        return Reached(math.nan, math.nan)
    first = np.flatnonzero(finite)[hits[0]]
    return Reached(float(env_steps[first]), float(wall_time[first]))


def median_time(times: Float[np.ndarray, " seeds"]) -> float:
    """Median over seeds, those that never got there (NaN) counting as later than all others; NaN if it is one."""
    median = float(np.median(np.where(np.isnan(times), np.inf, times)))
    return median if math.isfinite(median) else math.nan


def check_resampling(samples: int, confidence: float) -> None:
    """ConfigError for what no bootstrap can do."""
    if samples < 1:
        raise ConfigError(f"samples = {samples}; a bootstrap needs at least 1, and some 2,000 to be steady")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence:g} is not between 0 and 1; for 95 % intervals choose 0.95")


def _percentiles(value: float, drawn: Float[np.ndarray, " samples"], confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
