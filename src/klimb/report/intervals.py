"""The interval of the final evaluation's mean return over episodes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from klimb.report.data import Evaluation, SeedReturns

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The two ends of an interval, in units of the return."""

    low: float
    high: float


def over_episodes(evaluation: Evaluation) -> Interval | None:
    """The 95 % interval of the mean return of the policies that were evaluated: how far their episodes determine it.

    m ± t s, with m the mean over K seeds of their means, s² = Σₖ sₖ²/K², sₖ the standard error of seed k over its n
    episodes, and t the quantile of Student's distribution with K (n − 1) degrees of freedom. It says nothing about
    further seeds: the policies are taken as they are.

    evaluation: of the run. None where a seed has fewer than two episodes, or a number is missing.
    """
    return _interval(evaluation.mean, evaluation.seeds)


def of_seed(seed: SeedReturns) -> Interval | None:
    """The same of one seed. seed: its returns."""
    return _interval(seed.mean, [seed])


def student(mean: float, error: float, freedom: int) -> Interval:
    """Student's interval of a mean. error: its standard error. freedom: degrees of freedom, at least 1."""
    margin = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Interval(mean - margin, mean + margin)


def _interval(mean: float, seeds: list[SeedReturns]) -> Interval | None:
    error = math.sqrt(sum(seed.standard_error**2 for seed in seeds)) / len(seeds)
    freedom = sum(len(seed.returns) - 1 for seed in seeds)
    if min(len(seed.returns) for seed in seeds) < 2 or not np.isfinite([mean, error]).all():
        return None
    return student(mean, error, freedom)
