"""Statistics of a few seeds: interquartile means, bootstrap intervals, probabilities of improvement.

After Agarwal, Schwarzer, Castro, Courville, Bellemare (2021), "Deep reinforcement learning at the edge of the
statistical precipice". A stratum is an environment: it holds one score per seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from klimb.errors import ConfigError

WINDOW = 5
"""Iterations over which a learning curve is smoothed."""

FEW_SEEDS = 5
"""With fewer seeds a percentile interval is too narrow to rely on."""
FEW_SEEDS_NOTE = (
    f"Intervals from fewer than {FEW_SEEDS} seeds are too narrow: a 95 % interval from 3 seeds contains the true value "
    "in about 75 % of cases. Train more seeds before you rely on them."
)

Scores = Float[np.ndarray, " _"]
Statistic = Callable[[Float[np.ndarray, "*batch n"]], Float[np.ndarray, "*batch"]]


@dataclass(frozen=True)
class Estimate:
    """A statistic of the scores, and the ends of its percentile interval; these are NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How bootstrap intervals are computed.

    samples: number of resamples. seed: of the random numbers. confidence: of the interval, between 0 and 1.
    Raises ConfigError for values out of range.
    """

    samples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_resampling(self.samples, self.confidence)
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}; the seed of the bootstrap has to be at least 0")


class Reached(NamedTuple):
    """When a threshold was first reached: environment steps and seconds, both NaN if it never was."""

    env_steps: float
    wall_time: float


def interquartile_mean(
    scores: Float[np.ndarray, "*batch n"], weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """Mean of the middle half, over the last axis: 2 ∫ Q(u) du from u = ¼ to ¾.

    Q is the empirical quantile function: a step function on which the i-th smallest score is a step of width wᵢ. A
    score that straddles a quartile is weighted by the fraction inside, so the result is exact for every n: of 5 scores
    the second and the fourth have ¾ of the middle one's weight. For n divisible by 4 it is the mean of the n/2 scores
    in the middle.

    scores: NaN stands for a missing score and is skipped; the result is NaN where all are missing. weights: the wᵢ,
    positive, of any sum; None for equal ones. With weights 1/nₑ, strata of different sizes nₑ count equally.
    """
    missing = np.isnan(scores)
    width = np.where(missing, 0.0, 1.0 if weights is None else weights)
    total = width.sum(axis=-1, keepdims=True)
    order = np.argsort(scores, axis=-1)
    width = np.take_along_axis(width, order, axis=-1)
    ordered = np.take_along_axis(np.where(missing, 0.0, scores), order, axis=-1)
    upper = np.cumsum(width, axis=-1)
    inside = np.clip(np.minimum(upper, 0.75 * total) - np.maximum(upper - width, 0.25 * total), 0, None)
    middle, half = (inside * ordered).sum(axis=-1), 0.5 * total[..., 0]
    return np.divide(middle, half, out=np.full(middle.shape, np.nan), where=half > 0)


def stratified_bootstrap(
    scores: Sequence[Scores],
    statistic: Statistic = interquartile_mean,
    *,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic with its percentile interval; seeds are drawn with replacement within each stratum.

    scores: of each stratum. statistic: maps the strata, concatenated on the last axis, to one number: `[samples, n]`
    to `[samples]`. samples: number of resamples. seed: of the random numbers. confidence: between 0 and 1.
    The interval is NaN when a stratum has a single score, whose variance is unknown. Raises ConfigError for samples or
    a confidence out of range.
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
    """Interquartile mean of the scores of several environments, which count equally whatever their numbers of seeds.

    scores: of each environment. samples, seed, confidence: of the interval, as for `stratified_bootstrap`.
    """
    weights = np.concatenate([np.full(len(stratum), 1 / len(stratum)) for stratum in scores])

    def weighted_mean(resampled: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
        return interquartile_mean(resampled, weights)

    return stratified_bootstrap(scores, weighted_mean, samples=samples, seed=seed, confidence=confidence)


def probability_of_improvement(
    x: Sequence[Scores], y: Sequence[Scores], *, samples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """P(X > Y) + ½ P(X = Y) for a random seed of each, averaged over environments, with its bootstrap interval.

    In one environment it is U / (n m) with the U of Mann and Whitney; 1/2 means that neither is better.
    x, y: scores of each environment, in the same order. samples, seed, confidence: of the interval, as for
    `stratified_bootstrap`.
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
    """(score − lowest) / (highest − lowest); ½ where lowest and highest are equal.

    scores: to normalise. everyone: the scores of all algorithms, whose extremes are lowest and highest.
    """
    low, high = everyone.min(), everyone.max()
    return (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)


def trailing_mean(values: Float[np.ndarray, " n"], window: int = WINDOW) -> Float[np.ndarray, " n"]:
    """Mean over each value and the `window` − 1 values before it; at the start over as many values as there are.

    values: in order. window: number of values, at least 1.
    """
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def time_to_threshold(
    curve: Float[np.ndarray, " n"],
    env_steps: Float[np.ndarray, " n"],
    wall_time: Float[np.ndarray, " n"],
    threshold: float,
) -> Reached:
    """Environment steps and seconds at which the smoothed return first reaches the threshold.

    The return is smoothed over the last 5 iterations in which an episode ended.
    curve: return per iteration, NaN where no episode ended. env_steps, wall_time: steps and seconds at the end of each
    iteration. threshold: in units of the return.
    """
    finite = np.isfinite(curve)
    smooth = trailing_mean(curve[finite]) if finite.any() else np.empty(0)
    hits = np.flatnonzero(smooth >= threshold)
    if not len(hits):
        return Reached(math.nan, math.nan)
    first = np.flatnonzero(finite)[hits[0]]
    return Reached(float(env_steps[first]), float(wall_time[first]))


def median_time(times: Float[np.ndarray, " seeds"]) -> float:
    """Median over seeds of a time. NaN, a threshold never reached, counts as +∞; NaN if the median is +∞."""
    median = float(np.median(np.where(np.isnan(times), np.inf, times)))
    return median if math.isfinite(median) else math.nan


def from_few_seeds(num_seeds: int) -> bool:
    """Whether there is an interval from this number of seeds, and it is too narrow to rely on."""
    return 1 < num_seeds < FEW_SEEDS


def check_resampling(samples: int, confidence: float) -> None:
    """Check the options of a bootstrap. Raises ConfigError when one is out of range.

    samples: at least 1. confidence: between 0 and 1, both excluded.
    """
    if samples < 1:
        raise ConfigError(f"samples = {samples}; a bootstrap needs at least 1, and some 2,000 for a stable interval")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence:g} is not between 0 and 1; for 95 % intervals choose 0.95")


def _percentiles(value: float, drawn: Float[np.ndarray, " samples"], confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
