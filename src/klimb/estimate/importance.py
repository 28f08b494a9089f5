"""Importance weights of whole trajectories and of single decisions, and how many samples they are worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

    def accumulate(total: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        log_rho, over = row
        total = total + log_rho
        return jnp.where(over, 0, total), total

    _, cumulative = jax.lax.scan(accumulate, jnp.zeros_like(log_ratio[0]), (log_ratio, ended))
    return jnp.exp(cumulative)


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
