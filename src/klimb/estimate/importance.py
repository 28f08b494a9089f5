"""Importance weights of whole trajectories and of single decisions, and how many samples they are worth."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.types import Mixture, Residuals

Weighting = Literal["trajectory", "per_decision", "per_step"]


def trajectory_weights(log_ratio: Float[Array, "T N"]) -> Float[Array, " N"]:
    """Π_t π_θ(a_t|s_t)/π_β(a_t|s_t), one trajectory a column (section notes, eq. 33). Accumulated in log space."""
    return jnp.exp(jnp.sum(log_ratio, axis=0))


def per_decision_weights(
    log_ratio: Float[Array, "T N"],
    terminated: Bool[Array, "T N"] | None = None,
    truncated: Bool[Array, "T N"] | None = None,
) -> Float[Array, "T N"]:
    """Π_{t' ≤ t} π_θ/π_β up to and including each step, starting anew after an episode's end (Precup et al. 2000).

    Without flags every column is one trajectory.
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
    """
    if weighting == "per_step":
        return log_prob - _mix(behaviour.log_prob, behaviour.log_share)
    theirs = jax.vmap(lambda x: _since_start(x, ended))(behaviour.log_prob)
    so_far = _since_start(log_prob, ended) - _mix(theirs, behaviour.log_share)
    return so_far if weighting == "per_decision" else _at_the_end(so_far, ended)


def per_decision_advantages(
    log_weight: Float[Array, "T N"], residuals: Residuals, ended: Bool[Array, "T N"], *, largest_ratio: float | None
) -> Float[Array, "T N"]:
    """Â_t = δ_t + decay_t ρ_{t+1} Â_{t+1}, ρ_{t+1} the ratio of the per-decision weights at t + 1 and at t.

    So wₜ Âₜ = Σ_{t' ≥ t} decay … wₜ' δₜ': each reward carries the weight of the decisions up to it, and no later
    ones (the causal form). `largest_ratio` truncates ρ.
    """
    # A trajectory that the policy can't take has weight 0 from there on; 0/0 would be NaN.
    ratio = jnp.where(jnp.isneginf(log_weight[:-1]), 0, jnp.exp(log_weight[1:] - log_weight[:-1]))
    if largest_ratio is not None:
        ratio = jnp.minimum(ratio, largest_ratio)
    ratio = jnp.concatenate([jnp.where(ended[:-1], 0, ratio), jnp.zeros_like(log_weight[:1])])

    def backwards(after: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        residual, factor = row
        advantage = residual + factor * after
        return advantage, advantage

    rows = (residuals.residual, residuals.decay * ratio)
    _, advantage = jax.lax.scan(backwards, jnp.zeros_like(log_weight[0]), rows, reverse=True)
    return advantage


def effective_sample_size(weight: Float[Array, "..."], count: Float[Array, "..."] | None = None) -> Float[Array, ""]:
    """(Σw)²/(n Σw²), a fraction in (0, 1]: 1 for equal weights, 1/n when one of n samples holds all the weight.

    Weights are non-negative. `count` is how often each sample counts (default once; 0 for padding): then
    (Σcw)²/(Σc Σcw²), which is 1 for equal weights whatever the counts are.
    """
    count = jnp.ones_like(weight) if count is None else count
    # An unused weight may be anything; scaling by the largest of the others keeps the squares finite.
    weight = jnp.where(count > 0, weight, 0)
    largest = jnp.max(weight)
    scaled = weight / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(count * jnp.square(scaled)) * jnp.sum(count)
    return jnp.square(jnp.sum(count * scaled)) / jnp.where(squares > 0, squares, 1)


def _since_start(log_ratio: Array, ended: Array) -> Array:
    """Running sums over time, starting anew after every end."""

    def accumulate(total: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        log_rho, over = row
        total = total + log_rho
        return jnp.where(over, 0, total), total

    return jax.lax.scan(accumulate, jnp.zeros_like(log_ratio[0]), (log_ratio, ended))[1]


def _at_the_end(running: Array, ended: Array) -> Array:
    """On every row the value that its trajectory ends with, in the rollout's last row at the latest."""

    def backwards(last: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        value, over = row
        last = jnp.where(over, value, last)
        return last, last

    return jax.lax.scan(backwards, running[-1], (running, ended), reverse=True)[1]


def _mix(log_prob: Array, log_share: Array) -> Array:
    """log Σ_k share_k exp(log_prob_k); with one policy its log-prob as it is, to the last bit."""
    if len(log_share) == 1:
        return log_prob[0]
    return jax.scipy.special.logsumexp(log_prob + log_share[:, None, None], axis=0)
