"""The value of a policy from episodes of another one: importance sampling and doubly robust estimators.

N episodes stand side by side, padded to T steps with rewards and log-ratios of 0: after its end an episode keeps its
weight and earns nothing. Everything is computed in double precision, and products of ratios as sums of logarithms.

The estimators take the number of times that each episode counts. All of them being 1, they estimate from the data; with
the numbers of a resample, they estimate for the bootstrap; and with the probabilities of all episodes that can happen,
they return the expectation of an unbiased estimator, or the limit of a consistent one.

ρ_{0:t} = Π_{t' ≤ t} π(a_t'|s_t') / π_β(a_t'|s_t') is the weight of the decisions up to step t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Count = Float[np.ndarray, "*resamples N"]
"""How often each episode counts, not negative."""
Estimates = Float[np.ndarray, "*resamples"]
RESAMPLES_AT_ONCE = 64
"""Resamples whose weighted sums are held in memory together."""


class Episodes(NamedTuple):
    """N episodes of at most T steps. After the end of an episode all of its numbers are 0.

    reward: r_t. log_ratio: log π(a_t|s_t) − log π_β(a_t|s_t).
    q, v: Q(s_t, a_t) and V(s_t) = E_{a∼π} Q(s_t, a) of a model of the evaluated policy, for doubly robust estimates.
    gamma: discount per step, in [0, 1].
    """

    reward: Float[np.ndarray, "T N"]
    log_ratio: Float[np.ndarray, "T N"]
    q: Float[np.ndarray, "T N"]
    v: Float[np.ndarray, "T N"]
    gamma: float

    @property
    def log_weight(self) -> Float[np.ndarray, "T N"]:
        """log ρ_{0:t}."""
        return np.cumsum(self.log_ratio, axis=0, dtype=np.float64)

    @property
    def discount(self) -> Float[np.ndarray, "T 1"]:
        """γᵗ."""
        return self.gamma ** np.arange(len(self.reward), dtype=np.float64)[:, None]

    @property
    def returns(self) -> Float[np.ndarray, " N"]:
        """Σ_t γᵗ r_t of each episode."""
        return (self.discount * self.reward).sum(axis=0)


def behaviour_return(episodes: Episodes, count: Count) -> Estimates:
    """The mean return of the episodes as they are: the value of the policy that made them."""
    return _mean(episodes.returns, count)


def importance_sampling(episodes: Episodes, count: Count) -> Estimates:
    """(1/N) Σ_n ρ_{0:T} Σ_t γᵗ r_t: unbiased (Precup, Sutton and Singh 2000, "Eligibility traces for off-policy policy
    evaluation")."""
    return _mean(np.exp(episodes.log_weight[-1]) * episodes.returns, count)


def weighted_importance_sampling(episodes: Episodes, count: Count) -> Estimates:
    """Σ_n ρ_{0:T} Σ_t γᵗ r_t / Σ_n ρ_{0:T}: consistent, with some bias and less variance (the same paper)."""
    weight = _scaled(episodes.log_weight[-1:])[0]
    return _ratio(count @ (weight * episodes.returns), count @ weight)


def per_decision(episodes: Episodes, count: Count) -> Estimates:
    """(1/N) Σ_n Σ_t γᵗ ρ_{0:t} r_t: unbiased; no reward has the ratios of later decisions (the same paper)."""
    weight = np.exp(episodes.log_weight)
    return _mean((episodes.discount * weight * episodes.reward).sum(axis=0), count)


def weighted_per_decision(episodes: Episodes, count: Count) -> Estimates:
    """Σ_t γᵗ Σ_n ρ_{0:t} r_t / Σ_n ρ_{0:t}: the weights of every step are divided by their mean. Consistent.

    (Thomas 2015, "Safe reinforcement learning": consistent weighted per-decision importance sampling.)
    """
    weight = _scaled(episodes.log_weight)
    return _sum_of_ratios(episodes.discount * weight * episodes.reward, weight, count)


def doubly_robust(episodes: Episodes, count: Count) -> Estimates:
    """(1/N) Σ_n Σ_t γᵗ (ρ_{0:t} (r_t − Q(s_t, a_t)) + ρ_{0:t−1} V(s_t)), with ρ_{0:−1} = 1.

    It is the recursion v_t = V(s_t) + ρ_t (r_t + γ v_{t+1} − Q(s_t, a_t)) of Jiang and Li (2016, "Doubly robust
    off-policy value evaluation for reinforcement learning"), written out. Unbiased for every Q that does
    not depend on the episode itself: the better Q is, the smaller is the variance.
    """
    weight = np.exp(episodes.log_weight)
    corrected = weight * (episodes.reward - episodes.q) + _before(weight) * episodes.v
    return _mean((episodes.discount * corrected).sum(axis=0), count)


def weighted_doubly_robust(episodes: Episodes, count: Count) -> Estimates:
    """The same with the weights of every step divided by their mean. Consistent, with some bias.

    (Thomas and Brunskill 2016, "Data-efficient off-policy policy evaluation for reinforcement learning".)
    """
    weight = _scaled(episodes.log_weight)
    before = _before(weight)
    corrections = episodes.discount * weight * (episodes.reward - episodes.q)
    baselines = episodes.discount * before * episodes.v
    return np.asarray(_sum_of_ratios(corrections, weight, count) + _sum_of_ratios(baselines, before, count))


ESTIMATORS: dict[str, Callable[[Episodes, Count], Estimates]] = {
    "importance_sampling": importance_sampling,
    "weighted_importance_sampling": weighted_importance_sampling,
    "per_decision": per_decision,
    "weighted_per_decision": weighted_per_decision,
    "doubly_robust": doubly_robust,
    "weighted_doubly_robust": weighted_doubly_robust,
}
NEEDS_MODEL = ("doubly_robust", "weighted_doubly_robust")


def effective_episodes(log_weight: Float[np.ndarray, "*steps N"]) -> Float[np.ndarray, "*steps"]:
    """(Σ w)² / Σ w² over the last axis: N for equal weights, 1 where one episode has all the weight (Kong 1992).

    log_weight: log w. 0 where all weights are 0.
    """
    weight = _scaled(log_weight)
    return _ratio(np.square(weight.sum(axis=-1)), np.square(weight).sum(axis=-1))


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its interval."""

    value: float
    low: float
    high: float


def with_intervals(
    episodes: Episodes,
    estimators: dict[str, Callable[[Episodes, Count], Estimates]],
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> dict[str, Interval]:
    """Estimates with their percentile intervals of the bootstrap over episodes (Efron 1979).

    The model of a doubly robust estimate is not fitted again for each resample.

    estimators: functions of this file by name; all of them see the same resamples. resamples: how many, at least 1.
    seed: of the random numbers. confidence: of the intervals, between 0 and 1.
    """
    number, rng = episodes.reward.shape[1], np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in estimators}
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - first)
        count = rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        for name, estimator in estimators.items():
            drawn[name].append(estimator(episodes, count))
    tail, once = (1 - confidence) / 2, np.ones(number)
    made = {}
    for name, estimator in estimators.items():
        low, high = np.quantile(np.concatenate(drawn[name]), [tail, 1 - tail])
        made[name] = Interval(float(estimator(episodes, once)), float(low), float(high))
    return made


def _mean(value: Float[np.ndarray, " N"], count: Count) -> Estimates:
    return np.asarray(count @ value / count.sum(axis=-1))


def _sum_of_ratios(numerator: np.ndarray, denominator: np.ndarray, count: Count) -> Estimates:
    """Σ_t (Σ_n c_n x_tn) / (Σ_n c_n y_tn)."""
    return np.asarray(_ratio(count @ numerator.T, count @ denominator.T).sum(axis=-1))


def _ratio(numerator: np.ndarray | np.float64, denominator: np.ndarray | np.float64) -> np.ndarray:
    """0 where the denominator is 0: no episode that counts can be of the evaluated policy."""
    positive = np.asarray(denominator > 0)
    return np.asarray(np.where(positive, numerator / np.where(positive, denominator, 1), 0))


def _scaled(log_weight: np.ndarray) -> np.ndarray:
    """Weights over the largest of their step: what they are divided by cancels, and nothing overflows."""
    largest = np.max(log_weight, axis=-1, keepdims=True)
    return np.exp(log_weight - np.where(np.isfinite(largest), largest, 0))


def _before(weight: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T N"]:
    """The weights of the step before; 1 before the first."""
    return np.concatenate([np.ones_like(weight[:1]), weight[:-1]])
