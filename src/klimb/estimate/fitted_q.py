"""A model of Q of the evaluated policy, for doubly robust estimates: fitted Q evaluation with linear features.

Its error costs a doubly robust estimate variance, and no bias: each episode gets the numbers of a model that was fitted
to other episodes (cross-fitting; Chernozhukov et al. 2018, "Double/debiased machine learning").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from klimb.estimate.recorded_decisions import Decisions

NUM_FEATURES = 128
RIDGE = 1e-3
"""Coefficient of the squared weights, relative to the mean square of a feature."""
MAX_ROWS = 2**15
"""Rows that a model is fitted to at most; of more, the first episodes in the random order of the folds."""
FOLDS = 5


class Steps(NamedTuple):
    """R recorded steps, whole episodes one after the other.

    obs: as rows of numbers. time: since the episode began. last: the step ends its episode.
    """

    obs: Float[np.ndarray, "R O"]
    time: Int[np.ndarray, " R"]
    reward: Float[np.ndarray, " R"]
    last: Bool[np.ndarray, " R"]
    decisions: Decisions

    def take(self, rows: Int[np.ndarray, " r"]) -> Steps:
        """Some of the steps. rows: their numbers, those of whole episodes."""
        log_prob, action, own, weight = self.decisions
        own = own if own.shape[1] == 1 else own[:, rows]
        taken = Decisions(log_prob[rows], action[rows], own, weight[:, rows])
        return Steps(self.obs[rows], self.time[rows], self.reward[rows], self.last[rows], taken)


def cross_fitted(steps: Steps, *, gamma: float, seed: int) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Q(s_t, a_t) and V(s_t) = E_{a∼π} Q(s_t, a) of every row, from models fitted to the episodes of other folds.

    The episodes are divided at random into `FOLDS` folds, or one for each episode where there are fewer.

    steps: of at least two episodes. gamma: discount per step. seed: of the folds.
    """
    episode = np.cumsum(steps.last) - steps.last
    number = int(episode[-1]) + 1
    order = np.random.default_rng(seed).permutation(number)
    fold = np.empty(number, int)
    fold[order] = np.arange(number) % FOLDS
    q, v = np.zeros(len(episode)), np.zeros(len(episode))
    for k in range(min(FOLDS, number)):
        held_out = np.flatnonzero(fold[episode] == k)
        fitted_to = steps.take(_limited(episode, order[fold[order] != k]))
        q[held_out], v[held_out] = LinearQ.fitted(fitted_to, gamma).values(steps.take(held_out))
    return q, v


@dataclass(frozen=True)
class LinearQ:
    """Q(s, a) = θᵀ φ(s, a), φ(x) = (1, max(0, W x̂ + b)): W and b are random and fixed (random features; Rahimi and
    Recht 2008). x̂ holds observation, action and time, each of mean 0 and variance 1 in the data that it is fitted to.

    mean, scale: of x. weight: θ.
    """

    mean: Float[np.ndarray, " X"]
    scale: Float[np.ndarray, " X"]
    weight: Float[np.ndarray, " F"]

    @classmethod
    def fitted(cls, steps: Steps, gamma: float) -> LinearQ:
        """Fitted Q evaluation (Le, Voloshin and Yue 2019): θ ← least squares of Q on r + γ V(s'), once for every
        step of the longest episode. Each is a linear map, θ ← c + γ M θ.

        The value after an episode's end is 0, also where it was truncated. Off-policy such an iteration may diverge: it
        ends before its values leave the range of the returns in the data, on average over the steps.

        steps: that it is fitted to. gamma: discount per step.
        """
        inputs = np.concatenate([steps.obs, steps.decisions.action, steps.time[:, None]], axis=1)
        deviation = inputs.std(axis=0)
        blank = cls(inputs.mean(axis=0), np.where(deviation > 1e-8, deviation, 1), np.zeros(1 + NUM_FEATURES))
        taken, expected = blank._features(steps)
        following = np.where(steps.last[:, None], 0, np.roll(expected, -1, axis=0))
        moments = taken.T @ taken
        moments += RIDGE * np.trace(moments) / len(moments) * np.eye(len(moments))
        constant = np.linalg.solve(moments, taken.T @ steps.reward)
        matrix = gamma * np.linalg.solve(moments, taken.T @ following)
        low, high = _range_of_returns(steps, gamma)

        def is_bounded(weight: Float[np.ndarray, " F"]) -> bool:
            return bool(np.abs(taken @ weight - (low + high) / 2).mean() <= (high - low) / 2)

        return dataclasses.replace(blank, weight=_repeated(constant, matrix, int(steps.time.max()) + 1, is_bounded))

    def values(self, steps: Steps) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
        """Q of the actions taken, and its expectation over the policy's own. steps: R of them."""
        taken, expected = self._features(steps)
        return taken @ self.weight, expected @ self.weight

    def _features(self, steps: Steps) -> tuple[Float[np.ndarray, "R F"], Float[np.ndarray, "R F"]]:
        """φ of the actions taken, and E_{a∼π} φ: both are linear in θ, so that V is the expectation of Q."""
        rng = np.random.default_rng(0)
        size, width = len(self.mean), steps.decisions.action.shape[1]
        matrix = rng.normal(size=(size, NUM_FEATURES)) / (np.sqrt(size) * self.scale[:, None])
        bias = rng.normal(size=NUM_FEATURES) - self.mean @ matrix
        of_obs, of_action, of_time = np.split(matrix, [size - 1 - width, size - 1])
        state = steps.obs @ of_obs + steps.time[:, None] * of_time + bias
        expected = np.zeros_like(state)
        for action, weight in zip(steps.decisions.own, steps.decisions.weight, strict=True):
            expected += weight[:, None] * np.maximum(state + action @ of_action, 0)
        taken = np.maximum(state + steps.decisions.action @ of_action, 0)
        # The weights of an expectation sum to 1.
        one = np.ones((len(state), 1))
        return np.concatenate([one, taken], axis=1), np.concatenate([one, expected], axis=1)


def _repeated(
    constant: Float[np.ndarray, " F"],
    matrix: Float[np.ndarray, "F F"],
    passes: int,
    is_bounded: Callable[[Float[np.ndarray, " F"]], bool],
) -> Float[np.ndarray, " F"]:
    """θ ← constant + matrix θ, from 0 on: the last of the θ after 1, 2, 4, … and all passes before one is not bounded.

    passes: how many, at least 1. is_bounded: whether a θ may be used.
    """
    best = weight = constant
    with np.errstate(over="ignore", invalid="ignore"):
        for done in range(2, passes + 1):
            weight = constant + matrix @ weight
            if done == passes or done & (done - 1) == 0:
                if not is_bounded(weight):
                    break
                best = weight
    return best


def _limited(episode: Int[np.ndarray, " R"], chosen: Int[np.ndarray, " n"]) -> Int[np.ndarray, " r"]:
    """The rows of the first of the chosen episodes, up to `MAX_ROWS`, at least one episode.

    episode: of each row. chosen: numbers of episodes.
    """
    total = np.cumsum(np.bincount(episode)[chosen])
    used = np.zeros(int(episode[-1]) + 1, bool)
    used[chosen[: max(1, int((total <= MAX_ROWS).sum()))]] = True
    return np.flatnonzero(used[episode])


def _range_of_returns(steps: Steps, gamma: float) -> tuple[float, float]:
    """The smallest and the largest discounted return from a step on."""
    returns, following = np.empty(len(steps.reward)), 0.0
    for row in range(len(returns) - 1, -1, -1):
        following = steps.reward[row] + gamma * (0.0 if steps.last[row] else following)
        returns[row] = following
    return float(returns.min()), float(returns.max())
