"""Advantages: how much better an action was than what the policy does on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.estimate.returns import n_step_returns, rewards_to_go, total_returns
from klimb.types import Rollout, weighted_mean


def gae(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    *,
    gamma: float | Array,
    gae_lambda: float | Array,
) -> Float[Array, "T N"]:
    """Generalised advantage estimation, GAE(γ, λ) (Schulman et al. 2016).

    δ_t = r_t + γ (1 − terminated_t) V(s'_t) − V(s_t)
    Â_t = δ_t + γ λ (1 − terminated_t)(1 − truncated_t) Â_{t+1}

    λ = 1 is the Monte Carlo return minus the value, λ = 0 the one-step residual.

    reward: r_t. value: V(s_t). next_value: V of the true successor s'_t, before any reset.
    terminated: the episode ended in s'_t. truncated: it was cut off there.
    gamma: discount per step, in [0, 1]. gae_lambda: λ, in [0, 1].

    Returns Â_t, in units of reward.
    """
    delta = td_residual(reward, value, next_value, terminated, gamma=gamma)
    decay = jnp.where(terminated | truncated, 0, jnp.asarray(gamma * gae_lambda, reward.dtype))

    def accumulate(next_advantage: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """next_advantage: Â_{t+1}. row: the residual and the decay of step t."""
        residual, decay = row
        advantage = residual + decay * next_advantage
        return advantage, advantage

    _, advantage = jax.lax.scan(accumulate, jnp.zeros_like(delta[-1]), (delta, decay), reverse=True)
    return advantage


def td_residual(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    *,
    gamma: float | Array,
) -> Float[Array, "T N"]:
    """δ_t = r_t + γ (1 − terminated_t) V(s'_t) − V(s_t): an estimate of A(s_t, a_t) when V is the policy's value.

    reward: r_t. value: V(s_t). next_value: V of the true successor. terminated: the episode ended there.
    gamma: discount per step, in [0, 1].
    """
    return reward + gamma * jnp.where(terminated, 0, next_value) - value


class Estimate(NamedTuple):
    """Advantages and the critic's targets, both `[T, N]`."""

    advantage: Float[Array, "T N"]
    value_target: Float[Array, "T N"]


class Data(NamedTuple):
    """What advantages are estimated from. value: V(s_t). next_value: V of the true successors, before any reset."""

    rollout: Rollout
    value: Float[Array, "T N"]
    next_value: Float[Array, "T N"]


class Settings(NamedTuple):
    """gamma: discount per step, in [0, 1]. gae_lambda: λ of gae, in [0, 1]. n_step: n of n_step, at least 1."""

    gamma: float | Array
    gae_lambda: float | Array
    n_step: int


class AdvantageEstimator(NamedTuple):
    """One way to estimate advantages.

    estimate: Â and the critic's targets. baseline: what is subtracted from returns: nothing, the batch's average, what
    the other trajectories average, or V(s). decay: of the sum of residuals that Â is, per step, for per-decision
    importance weights. whole_episodes: whether row t has to be step t of an episode.
    """

    estimate: Callable[[Data, Settings], Estimate]
    baseline: Literal["none", "average", "others", "value"]
    decay: Callable[[Settings], float | Array] = lambda settings: settings.gamma
    whole_episodes: bool = False

    @property
    def centred(self) -> bool:
        """Whether the batch's mean may be subtracted too: not where there is no baseline, or one without bias."""
        return self.baseline in ("average", "value")


def _rewards_to_go(data: Data, settings: Settings) -> Float[Array, "T N"]:
    rollout = data.rollout
    return rewards_to_go(
        rollout.reward, rollout.terminated, rollout.truncated, gamma=settings.gamma, bootstrap_value=data.next_value
    )


def _total_return(data: Data, settings: Settings) -> Estimate:
    to_go = _rewards_to_go(data, settings)
    return Estimate(total_returns(to_go, data.rollout.terminated, data.rollout.truncated), to_go)


def _reward_to_go(data: Data, settings: Settings) -> Estimate:
    to_go = _rewards_to_go(data, settings)
    return Estimate(to_go, to_go)


def _reward_to_go_average(data: Data, settings: Settings) -> Estimate:
    to_go = _rewards_to_go(data, settings)
    valid = data.rollout.valid.reshape(-1).astype(to_go.dtype)
    return Estimate(to_go - weighted_mean(to_go.reshape(-1), valid), to_go)


def _leave_one_out(data: Data, settings: Settings) -> Estimate:
    to_go = _rewards_to_go(data, settings)
    counted = data.rollout.valid.astype(to_go.dtype)
    # Over time first: one sum and one count of rows for each trajectory.
    total, rows = jnp.sum(jnp.where(data.rollout.valid, to_go, 0), axis=0), jnp.sum(counted, axis=0)
    return Estimate(to_go - _mean_of_others(total, rows), to_go)


def _time_baseline(data: Data, settings: Settings) -> Estimate:
    to_go, valid = _rewards_to_go(data, settings), data.rollout.valid
    return Estimate(to_go - _mean_of_others(jnp.where(valid, to_go, 0), valid.astype(to_go.dtype)), to_go)


def _mean_of_others(total: Float[Array, "*T N"], count: Float[Array, "*T N"]) -> Float[Array, "*T N"]:
    """Σ_{m ≠ n} total_m / Σ_{m ≠ n} count_m for every trajectory n; 0 where the others have nothing.

    It does not depend on trajectory n, so that as a baseline it leaves the expected gradient as it is.
    """
    others = jnp.sum(count, axis=-1, keepdims=True) - count
    rest = jnp.sum(total, axis=-1, keepdims=True) - total
    return jnp.where(others > 0, rest / jnp.where(others > 0, others, 1), 0)


def _value_baseline(data: Data, settings: Settings) -> Estimate:
    to_go = _rewards_to_go(data, settings)
    return Estimate(to_go - data.value, to_go)


def _gae(data: Data, settings: Settings) -> Estimate:
    (rollout, value, next_value), (gamma, gae_lambda, _) = data, settings
    advantage = gae(
        rollout.reward,
        value,
        next_value,
        rollout.terminated,
        rollout.truncated,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    return Estimate(advantage, advantage + value)


def _n_step(data: Data, settings: Settings) -> Estimate:
    rollout, value, next_value = data
    target = n_step_returns(
        rollout.reward,
        value,
        next_value,
        rollout.terminated,
        rollout.truncated,
        gamma=settings.gamma,
        n_step=settings.n_step,
    )
    return Estimate(target - value, target)


AdvantageKind = Literal[
    "total_return",
    "reward_to_go",
    "reward_to_go_average",
    "leave_one_out",
    "time_baseline",
    "value_baseline",
    "gae",
    "n_step",
]

ADVANTAGES: dict[AdvantageKind, AdvantageEstimator] = {
    "total_return": AdvantageEstimator(_total_return, "none"),
    "reward_to_go": AdvantageEstimator(_reward_to_go, "none"),
    "reward_to_go_average": AdvantageEstimator(_reward_to_go_average, "average"),
    "leave_one_out": AdvantageEstimator(_leave_one_out, "others"),
    "time_baseline": AdvantageEstimator(_time_baseline, "others", whole_episodes=True),
    "value_baseline": AdvantageEstimator(_value_baseline, "value"),
    "gae": AdvantageEstimator(_gae, "value", lambda settings: settings.gamma * settings.gae_lambda),
    "n_step": AdvantageEstimator(_n_step, "value"),
}
"""Every choice of Â, from the highest variance to the lowest. Where the data is cut off, the critic's value stands for
the rewards not seen, unless `bootstrap` is none. A trajectory is a column of the rollout.

total_return            the whole return of the episode, for every one of its steps (no causality)
reward_to_go            only the rewards from t on
reward_to_go_average    minus the batch's average: a constant baseline, but for its own share in the average
leave_one_out           minus the average of the other trajectories' rows: a constant baseline without bias
time_baseline           minus the average at step t of the other trajectories that still run there
value_baseline          minus V(s_t)
gae                     the λ-weighted mixture of n-step residuals; its targets are Â + V
n_step                  n rewards, then V, minus V(s_t)
"""


def estimate_advantages(
    kind: AdvantageKind,
    rollout: Rollout,
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    *,
    gamma: float | Array,
    gae_lambda: float | Array,
    n_step: int,
) -> Estimate:
    """Â and the critic's targets, by one of `ADVANTAGES`.

    kind: its name. rollout: `[T, N]` steps. value: V of its observations. next_value: V of the true successors.
    gamma: discount per step, in [0, 1]. gae_lambda: λ of gae, in [0, 1]. n_step: n of n_step, at least 1.
    """
    return ADVANTAGES[kind].estimate(Data(rollout, value, next_value), Settings(gamma, gae_lambda, n_step))


def advantage_residuals(
    kind: AdvantageKind, data: Data, settings: Settings
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """(residual, decay) with Â_t = residual_t + decay_t Â_{t+1}: per-decision weights enter between the steps.

    With V as the baseline the residual is δ_t, and the decay γλ for gae, else γ; the horizon of n_step is ignored. The
    others have no baseline that depends on the state: r_t and γ, plus γ V(s'_t) where the data is cut off.

    kind: how advantages are estimated. data: `[T, N]` steps with their values. settings: discounts.
    """
    rollout, value, next_value = data
    estimator = ADVANTAGES[kind]
    ended = rollout.terminated | rollout.truncated
    delta = td_residual(rollout.reward, value, next_value, rollout.terminated, gamma=settings.gamma)
    decay = jnp.where(ended, 0, jnp.asarray(estimator.decay(settings), delta.dtype))
    if estimator.baseline == "value":
        return delta, decay
    return rollout.reward + jnp.where(rollout.cut_off, settings.gamma * next_value, 0), decay


def mean_length(rollout: Rollout) -> Float[Array, ""]:
    """Valid rows of a trajectory, averaged over the columns that have any; 1 where none has.

    rollout: `[T, N]`, a trajectory a column.
    """
    rows = jnp.sum(rollout.valid, axis=0)
    trajectories = jnp.sum(rows > 0)
    return jnp.where(trajectories > 0, jnp.sum(rows) / jnp.maximum(trajectories, 1), 1).astype(rollout.reward.dtype)


def discount_from_start(rollout: Rollout, gamma: float | Array) -> Float[Array, "T N"]:
    """γᵗ with t the steps since the episode began: the factor of the exact gradient that practice drops.

    rollout: its `time`, or without it the steps since the last end in the rollout. gamma: discount per step, in [0, 1].
    """
    if rollout.time is not None:
        time = rollout.time
    else:
        ended = rollout.terminated | rollout.truncated

        def count(t: Array, ended: Array) -> tuple[Array, Array]:
            """t: steps since the episode began. ended: the episode ends with this step."""
            return jnp.where(ended, 0, t + 1), t

        _, time = jax.lax.scan(count, jnp.zeros(ended.shape[1:], jnp.int32), ended)
    return jnp.power(jnp.asarray(gamma, rollout.reward.dtype), time.astype(rollout.reward.dtype))


class Normalised(NamedTuple):
    """Advantages of unit size. scale: what they were divided by, in units of reward."""

    advantage: Float[Array, " B"]
    scale: Float[Array, ""]


def normalise(advantage: Float[Array, " B"], weight: Float[Array, " B"], *, centre: bool = True) -> Normalised:
    """(Â − mean) / std over the rows of positive weight; without `centre` Â divided by its root mean square.

    Subtracting the batch's mean is a baseline: it is left out where advantages are meant to have none. Advantages that
    are all equal become exactly 0, with scale 1, when they are centred: otherwise rounding noise, divided by its own
    standard deviation, would cause a full step.

    advantage: Â. weight: of each row, not negative; 0 for padding. centre: whether the mean is subtracted.
    """
    mean = weighted_mean(advantage, weight) if centre else jnp.zeros((), advantage.dtype)
    std = jnp.sqrt(weighted_mean(jnp.square(advantage - mean), weight))
    largest = jnp.max(jnp.where(weight > 0, jnp.abs(advantage), 0))
    informative = std > 10 * jnp.finfo(advantage.dtype).eps * largest
    # A non-finite advantage must not be hidden: the rule has to reject the step and report it.
    informative |= ~jnp.isfinite(std)
    scale = jnp.where(informative, std, 1)
    return Normalised(jnp.where(informative, (advantage - mean) / scale, 0), scale)
