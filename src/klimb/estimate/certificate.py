"""What a step's own measurements guarantee, and how far the step goes beyond what is guaranteed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate import bounds
from klimb.types import Batch, UpdateInfo


def certificate(info: UpdateInfo, batch: Batch, gamma: float) -> dict[str, Float[Array, ""]]:
    """The step's promise in reward a step, its errors, worst states and bounds, and what is guaranteed of it.

    guaranteed_improvement: the better of two lower bounds on (1 − γ)(J(π') − J(π)), `improvement_bound` with the
    worst state's TV and `average_improvement_bound` with the mean's (`klimb.estimate.bounds`). Both take the
    batch's states for the discounted ones, and C ≤ 2 · worst TV · max|Â|, which is usually far too much: a
    guarantee is negative for nearly every step that is worth taking. −∞ for γ = 1.
    step_excess: how many times longer the step is than the longest with a guarantee; ≤ 1 is a guaranteed step.
    state_mismatch_bound: on the total variation between the discounted state distributions.

    info: of the step. batch: what it was computed from, with the scale of its advantages. gamma: discount per step.
    """
    scale, errors = batch.advantage_scale, info.errors
    promise = info.surrogate_gain * scale
    metrics = worst_states_and_errors(info)
    metrics["predicted_improvement"] = promise
    gain_se = jnp.asarray(jnp.nan) if errors is None else errors.surrogate_gain_se
    metrics["predicted_improvement_se"] = gain_se * scale
    mean_tv = info.tv if errors is None else errors.tv_bound
    largest = scale * jnp.max(jnp.where(batch.weight > 0, jnp.abs(batch.advantage), 0))
    worst = 2 * info.tv_max * largest
    left = jnp.asarray(1 - gamma if gamma < 1 else 1, promise.dtype)
    at_worst = bounds.improvement_bound(promise / left, worst, info.tv_max, gamma)
    on_average = bounds.average_improvement_bound(promise / left, worst, mean_tv / left, gamma)
    fraction = bounds.guaranteed_fraction(promise, worst, info.tv_max, mean_tv, gamma)
    mismatch = jnp.minimum(
        bounds.discounted_mismatch_bound(info.tv_max, gamma), bounds.average_mismatch_bound(mean_tv, gamma)
    )
    return {
        **metrics,
        "state_mismatch_bound": jnp.minimum(mismatch, 1),
        # The bounds are −∞ for γ = 1, unless nothing moved or nothing was at stake.
        "guaranteed_improvement": left * jnp.maximum(at_worst, on_average),
        "step_excess": jnp.where(fraction > 0, 1 / fraction, jnp.where(info.tv_max > 0, jnp.inf, 0)),
    }


def worst_states_and_errors(info: UpdateInfo) -> dict[str, Float[Array, ""]]:
    """What `UpdateInfo.errors` holds, by name, but for the surrogate gain's error, which is in other units."""
    if info.errors is None:
        return {}
    return {name: value for name, value in vars(info.errors).items() if name != "surrogate_gain_se"}
