"""Importance weights of whole trajectories and of single decisions, and their effective sample size."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from klimb.types import Mixture, Residuals

Weighting = Literal["trajectory", "per_decision", "per_step"]


def trajectory_weights(log_ratio: Float[Array, "T N"]) -> Float[Array, " N"]:
    """Π_t π_θ(a_t|s_t)/π_β(a_t|s_t), one trajectory per column (section notes, eq. 33). Accumulated in log space.

    log_ratio: log π_θ(a_t|s_t) − log π_β(a_t|s_t).
    """
    return jnp.exp(jnp.sum(log_ratio, axis=0))


def per_decision_weights(
    log_ratio: Float[Array, "T N"],
    terminated: Bool[Array, "T N"] | None = None,
    truncated: Bool[Array, "T N"] | None = None,
) -> Float[Array, "T N"]:
    """Π_{t' ≤ t} π_θ/π_β up to and including each step, from each episode's start on (Precup et al. 2000).

    log_ratio: log π_θ(a_t|s_t) − log π_β(a_t|s_t). terminated, truncated: the episode ends with this step; without
    both every column is one trajectory.
    """
    ended = jnp.zeros(log_ratio.shape, bool)
    for flag in (terminated, truncated):
        ended = ended if flag is None else ended | flag
    return jnp.exp(_since_start(log_ratio, ended))


def log_weights(
    weighting: Weighting, log_prob: Float[Array, "T N"], behaviour: Mixture, ended: Bool[Array, "T N"]
) -> Float[Array, "T N"]:
    """log of the importance weight of every row, under the behaviour p̄ = Σ_k share_k π_k.

    per_step      π_θ(a_t|s_t) / p̄(a_t|s_t)
    per_decision  the same for everything up to t, since the trajectory began: p_θ(τ_{≤t}) / p̄(τ_{≤t})
    trajectory    the same for the whole trajectory, on each of its rows: p_θ(τ) / p̄(τ)

    A trajectory is an episode, or the part of one that the rollout holds. The mixture is one of whole
    trajectories (the balance heuristic, Veach and Guibas 1995): p̄(τ) = Σ_k share_k Π_t π_k(a_t|s_t), which is
    not the product of the steps' mixtures. With one policy all of this is the ratio to the recorded behaviour.

    weighting: one of these names. log_prob: log π_θ(a_t|s_t). behaviour: the policies that collected the rollout; of
    the trajectories they have the shares log_share, of the rows log_row_share, which single steps are weighted with.
    ended: the trajectory ends with this step.
    """
    if weighting == "per_step":
        share = behaviour.log_share if behaviour.log_row_share is None else behaviour.log_row_share
        return log_prob - _mix(behaviour.log_prob, share)
    behaviour_log_prob = jax.vmap(lambda x: _since_start(x, ended))(behaviour.log_prob)
    log_weight = _since_start(log_prob, ended) - _mix(behaviour_log_prob, behaviour.log_share)
    return log_weight if weighting == "per_decision" else _at_the_end(log_weight, ended)


def mixture_by_shares(
    log_prob: Float[Array, "K T N"],
    collected_by: Int[Array, " N"],
    valid: Bool[Array, "T N"],
    ended: Bool[Array, "T N"],
) -> Mixture:
    """The mixture of K policies with the shares of the data that each of them has: p̄ = Σ_k (n_k/n) π_k.

    With n_k trajectories of policy k among n, the mean of p_θ/p̄ · f over all of them is an unbiased estimate of
    E_θ[f], whatever the n_k are (the balance heuristic, Veach and Guibas 1995).

    log_prob: of every action under each policy. collected_by: the number of the policy that collected a column.
    valid: rows that count. ended: the trajectory ends with this step.
    """
    own = jax.nn.one_hot(collected_by, len(log_prob), dtype=log_prob.dtype)

    def log_shares(counted: Bool[Array, "T N"]) -> Float[Array, " K"]:
        """counted: what is counted, rows or last rows."""
        count = jnp.sum(counted, axis=0, dtype=log_prob.dtype) @ own
        return jnp.log(count) - jnp.log(jnp.maximum(jnp.sum(count), 1))

    log_share, log_row_share = log_shares(last_rows(valid, ended)), log_shares(valid)
    # The policy of a slot of the history that is empty is made of zeros; its log-probs may be anything.
    log_prob = jnp.where(jnp.isneginf(log_row_share)[:, None, None], 0, log_prob)
    return Mixture(log_prob, log_share, log_row_share)


def last_rows(valid: Bool[Array, "T N"], ended: Bool[Array, "T N"]) -> Bool[Array, "T N"]:
    """The last valid row of every trajectory: at its end, before padding, or in the last step.

    valid: rows that count. ended: the trajectory ends with this step.
    """
    follows = jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
    return valid & (ended | ~follows)


def per_decision_advantages(
    log_weight: Float[Array, "T N"], residuals: Residuals, ended: Bool[Array, "T N"], *, largest_ratio: float | None
) -> Float[Array, "T N"]:
    """Â_t = δ_t + decay_t ρ_{t+1} Â_{t+1}, ρ_{t+1} the ratio of the per-decision weights at t + 1 and at t.

    So wₜ Âₜ = Σ_{t' ≥ t} decay … wₜ' δₜ': each reward carries the weight of the decisions up to it, and no later
    ones (the causal form).

    log_weight: log wₜ, per decision. residuals: δ_t and decay_t. ended: the trajectory ends with this step.
    largest_ratio: upper bound that ρ is clipped to, positive; None for no bound.
    """
    # A trajectory of probability 0 under the policy has weight 0 from there on; 0/0 would be NaN.
    ratio = jnp.where(jnp.isneginf(log_weight[:-1]), 0, jnp.exp(log_weight[1:] - log_weight[:-1]))
    if largest_ratio is not None:
        ratio = jnp.minimum(ratio, largest_ratio)
    ratio = jnp.concatenate([jnp.where(ended[:-1], 0, ratio), jnp.zeros_like(log_weight[:1])])

    def accumulate(next_advantage: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """next_advantage: Â_{t+1}. row: δ_t and decay_t ρ_{t+1}."""
        residual, factor = row
        advantage = residual + factor * next_advantage
        return advantage, advantage

    rows = (residuals.residual, residuals.decay * ratio)
    _, advantage = jax.lax.scan(accumulate, jnp.zeros_like(log_weight[0]), rows, reverse=True)
    return advantage


def effective_sample_size(weight: Float[Array, "..."], count: Float[Array, "..."] | None = None) -> Float[Array, ""]:
    """(Σw)²/(n Σw²), a fraction in (0, 1]: 1 for equal weights, 1/n when one of n samples holds all the weight.

    weight: w, not negative. count: c, how often each sample counts, not negative (default once; 0 for padding);
    then (Σcw)²/(Σc Σcw²), which is 1 for equal weights whatever the counts are.
    """
    count = jnp.ones_like(weight) if count is None else count
    # A weight of count 0 may be any number; scaling by the largest of the others keeps the squares finite.
    weight = jnp.where(count > 0, weight, 0)
    largest = jnp.max(weight)
    scaled = weight / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(count * jnp.square(scaled)) * jnp.sum(count)
    return jnp.square(jnp.sum(count * scaled)) / jnp.where(squares > 0, squares, 1)


def _since_start(log_ratio: Array, ended: Array) -> Array:
    """Running sums over time, from each episode's start on."""

    def accumulate(total: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """total: the sum before this step. row: its log ratio, and whether the episode ends with it."""
        log_rho, episode_ends = row
        total = total + log_rho
        return jnp.where(episode_ends, 0, total), total

    return jax.lax.scan(accumulate, jnp.zeros_like(log_ratio[0]), (log_ratio, ended))[1]


def _at_the_end(running: Array, ended: Array) -> Array:
    """On every row the last value of its trajectory: at its end, or in the rollout's last row."""

    def propagate(last: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """last: the value of the trajectory's last row. row: a value, and whether the episode ends there."""
        value, episode_ends = row
        last = jnp.where(episode_ends, value, last)
        return last, last

    return jax.lax.scan(propagate, running[-1], (running, ended), reverse=True)[1]


def _mix(log_prob: Array, log_share: Array) -> Array:
    """log Σ_k share_k exp(log_prob_k); with one policy its log-prob, unchanged bit for bit."""
    if len(log_share) == 1:
        return log_prob[0]
    return jax.scipy.special.logsumexp(log_prob + log_share[:, None, None], axis=0)
