"""How good a policy is, from episodes that another policy has made: `estimate_return`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.errors import ConfigError, WrongObject, shown
from klimb.estimate.fitted_q import Steps, cross_fitted
from klimb.estimate.off_policy import (
    ESTIMATORS,
    NEEDS_MODEL,
    Episodes,
    Interval,
    behaviour_return,
    effective_episodes,
    with_intervals,
)
from klimb.estimate.recorded_decisions import Decisions, decisions
from klimb.policies.policy import policy_of

MIN_ESS = 10.0
RESAMPLES = 2000
CONFIDENCE = 0.95
LARGEST_LOG_WEIGHT = 600.0
"""Above it, products of weights and returns are no numbers in double precision any more."""


@dataclass(frozen=True)
class ReturnEstimate:
    """The value of a policy, as it follows from the episodes of another one.

    estimates: by the names of `klimb.estimate.off_policy.ESTIMATORS`. behaviour: the mean return of the episodes as
    they are. Intervals are percentile intervals of the bootstrap over episodes.
    ess: effective number of episodes, by the weights of whole episodes. ess_by_step: by those of the decisions up to
    each step. largest_weight: the largest weight of an episode, as a share of their sum.
    episodes, steps: in the data. truncated: episodes that were cut off; their returns are those up to there.
    gamma: discount per step. confidence, resamples: of the intervals.
    """

    estimates: dict[str, Interval]
    behaviour: Interval
    ess: float
    ess_by_step: Float[np.ndarray, " T"]
    largest_weight: float
    episodes: int
    steps: int
    truncated: int
    gamma: float
    confidence: float
    resamples: int


def estimate_return(
    policy: PyTree,
    demonstrations: Any,
    *,
    gamma: float,
    min_ess: float = MIN_ESS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    values: tuple[np.ndarray, np.ndarray] | None = None,
) -> ReturnEstimate:
    """The expected return Σ_t γᵗ r_t of a policy that samples its actions, from episodes of another policy.

    policy: a callable pytree, with or without memory, or a `klimb.Run` of one seed.
    demonstrations: R rows of whole episodes, with the log-probs of the policy that made them (`klimb.record`). A
    truncated episode counts with its return up to there.
    gamma: discount per step, in [0, 1]; 1 for the return that `klimb.evaluate` measures with samples.
    min_ess: number of effective episodes below which nothing is estimated. resamples: of the bootstrap.
    seed: of the bootstrap, of the folds of episodes and of the policy's samples.
    values: Q(s_t, a_t) and V(s_t) of every row, `[R]` each, where they are known; None for those of a model that
    is fitted to the same episodes (`klimb.estimate.fitted_q`). It takes two episodes.

    Raises ConfigError for options out of range and for too small an effective sample size, DemonstrationError for
    episodes without log-probs or of other spaces than the policy's, WrongObject for what is no policy or no
    demonstrations.
    """
    _check_options(gamma, min_ess, resamples)
    _check_data(demonstrations, values)
    demonstrations.check_log_probs("importance weights need them: klimb record without --deterministic keeps them")
    made = decisions(policy_of(policy), demonstrations, seed=seed)
    log_ratio = made.log_prob - demonstrations.log_prob.astype(np.float64)
    arrangement = _Arrangement.of(demonstrations)
    episodes = arrangement.episodes(demonstrations, log_ratio, gamma)
    log_weight = episodes.log_weight
    ess = float(effective_episodes(log_weight[-1]))
    _require_sample_size(ess, log_weight, min_ess, demonstrations)
    if values is None and demonstrations.num_episodes >= 2:
        values = cross_fitted(_steps(demonstrations, arrangement.time, made), gamma=gamma, seed=seed)
    if values is not None:
        episodes = episodes._replace(q=arrangement.padded(values[0]), v=arrangement.padded(values[1]))
    usable = {name: each for name, each in ESTIMATORS.items() if values is not None or name not in NEEDS_MODEL}
    intervals = with_intervals(
        episodes,
        {"behaviour": behaviour_return, **usable},
        resamples=resamples,
        seed=seed,
        confidence=CONFIDENCE,
    )
    return ReturnEstimate(
        behaviour=intervals.pop("behaviour"),
        estimates=intervals,
        ess=ess,
        ess_by_step=effective_episodes(log_weight),
        largest_weight=float(1 / np.exp(log_weight[-1] - log_weight[-1].max()).sum()),
        episodes=demonstrations.num_episodes,
        steps=len(demonstrations.reward),
        truncated=int((demonstrations.truncated & ~demonstrations.terminated).sum()),
        gamma=gamma,
        confidence=CONFIDENCE,
        resamples=resamples,
    )


@dataclass(frozen=True)
class _Arrangement:
    """Where the rows of R steps stand in `[T, N]`, an episode in each column.

    time: of each row, since its episode began. column: the number of its episode.
    """

    time: Int[np.ndarray, " R"]
    column: Int[np.ndarray, " R"]

    @classmethod
    def of(cls, demonstrations: Demonstrations) -> _Arrangement:
        lengths = demonstrations.lengths
        start = np.repeat(np.cumsum(lengths) - lengths, lengths)
        return cls(np.arange(len(start)) - start, np.repeat(np.arange(len(lengths)), lengths))

    def padded(self, rows: Float[np.ndarray, " R"]) -> Float[np.ndarray, "T N"]:
        """Rows as columns of episodes, with 0 after the ends."""
        table = np.zeros((int(self.time.max()) + 1, int(self.column[-1]) + 1))
        table[self.time, self.column] = rows
        return table

    def episodes(self, demonstrations: Demonstrations, log_ratio: Float[np.ndarray, " R"], gamma: float) -> Episodes:
        """The episodes, without a model. log_ratio: of every row. gamma: discount per step."""
        reward = self.padded(demonstrations.reward.astype(np.float64))
        return Episodes(reward, self.padded(log_ratio), np.zeros_like(reward), np.zeros_like(reward), gamma)


def _steps(demonstrations: Demonstrations, time: Int[np.ndarray, " R"], made: Decisions) -> Steps:
    obs = demonstrations.obs.reshape(len(time), -1).astype(np.float64)
    last: Bool[np.ndarray, " R"] = demonstrations.ended
    return Steps(obs, time, demonstrations.reward.astype(np.float64), last, made)


def _check_options(gamma: float, min_ess: float, resamples: int) -> None:
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma = {gamma:g} is outside [0, 1]; 1 is the undiscounted return")
    if not (0 <= min_ess < math.inf):
        raise ConfigError(f"min_ess = {min_ess:g}; the smallest effective number of episodes is at least 0")
    if resamples < 1:
        raise ConfigError(
            f"resamples = {resamples}; a bootstrap needs at least 1, and some 2,000 for a stable interval"
        )


def _check_data(demonstrations: Any, values: tuple[np.ndarray, np.ndarray] | None) -> None:
    """WrongObject for what are no demonstrations, and ConfigError for values of other shapes than theirs."""
    if not isinstance(demonstrations, Demonstrations):
        raise WrongObject(
            f"{shown(demonstrations)} are no demonstrations: klimb.load_demonstrations reads them from a run or a file"
        )
    rows = len(demonstrations.reward)
    for name, value in zip(("q", "v"), values or (), strict=False):
        if np.shape(value) != (rows,):
            raise ConfigError(
                f"values: {name} has the shape {np.shape(value)}; it needs one number for each of {rows} rows"
            )


def _require_sample_size(
    ess: float, log_weight: Float[np.ndarray, "T N"], min_ess: float, demonstrations: Demonstrations
) -> None:
    """ConfigError where the weights leave too few episodes, or are too large for any number."""
    number, source = demonstrations.num_episodes, demonstrations.source
    remedy = "record more episodes, or those of a policy that is closer to this one"
    if ess < min_ess:
        raise ConfigError(
            f"the importance weights of {source} leave an effective sample size of {ess:.1f} of {number} episodes, "
            f"below min_ess = {min_ess:g}: {remedy}"
        )
    if ess == 0 or log_weight.max() > LARGEST_LOG_WEIGHT:
        raise ConfigError(
            f"the importance weights of {source} are from exp({log_weight.min():.3g}) to exp({log_weight.max():.3g}), "
            f"from which nothing can be estimated: {remedy}"
        )


def as_plain(estimate: ReturnEstimate) -> dict[str, object]:
    """An estimate as plain data, for JSON."""
    plain = dataclasses.asdict(estimate)
    return plain | {"ess_by_step": estimate.ess_by_step.tolist()}
