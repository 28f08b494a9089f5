"""What a step's own measurements guarantee, and how far the step goes beyond what is guaranteed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.tabular import bounds
from klimb.types import Batch, UpdateInfo

STEP = (
    *("surrogate_gain_se", "kl_old_new_se", "kl_new_old_se", "tv_se"),
    *("kl_old_new_max", "kl_new_old_max", "tv_bound", "tv_max_bound"),
)
"""The certificate's part of `UpdateInfo.extra`, measured where the distributions are: `klimb.improve.acceptance`."""


def certificate(info: UpdateInfo, batch: Batch, scale: Float[Array, ""], gamma: float) -> dict[str, Float[Array, ""]]:
    """The step's promise in reward a step, its errors, worst states and bounds, and what is guaranteed of it.

    guaranteed_improvement: the better of two lower bounds on (1 − γ)(J(π') − J(π)), `improvement_bound` with the
    worst state's TV and `average_improvement_bound` with the mean's (`klimb.tabular.bounds`). Both take the
    batch's states for the discounted ones, and C ≤ 2 · worst TV · max|Â|, which is usually far too much: a
    guarantee is negative for nearly every step that is worth taking. −∞ for γ = 1.
    step_excess: how many times longer the step is than the longest with a guarantee; ≤ 1 is a guaranteed step.
    state_mismatch_bound: on the total variation between the discounted state distributions.
    """
    extra = info.extra
    promise = info.surrogate_gain * scale
    metrics = {name: extra[name] for name in STEP[1:] if name in extra}
    metrics["predicted_improvement"] = promise
    metrics["predicted_improvement_se"] = extra.get("surrogate_gain_se", jnp.asarray(jnp.nan)) * scale
    mean_tv = extra.get("tv_bound", info.tv)
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
