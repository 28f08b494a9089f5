"""The step certificate: a lower bound on the improvement from a step's own samples, and how far the step exceeds it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate import bounds
from klimb.types import Batch, UpdateInfo


def certificate(info: UpdateInfo, batch: Batch, gamma: float | Array) -> dict[str, Float[Array, ""]]:
    """Metrics of a step: predicted improvement in reward per step, standard errors, worst states, bounds.

    sampled_improvement_bound: the larger of two lower bounds on (1 − γ)(J(π') − J(π)): `improvement_bound` with the
    worst state's TV and `average_improvement_bound` with the mean TV (`klimb.estimate.bounds`). Both use the
    batch's states for the discounted distribution, the worst of them for the worst of all states, and
    C ≤ 2 · worst TV · max|Â|, so that nothing is guaranteed. The bound is usually very loose: it is negative for
    nearly every step that is worth taking. −∞ for γ = 1.
    step_excess: the step's length divided by that of the longest step whose sampled bound is not negative.
    state_mismatch_bound: on the total variation between the discounted state distributions, from the same samples.

    info: of the step. batch: what it was computed from, with the scale of its advantages.
    gamma: discount per step, in [0, 1].

    Returns scalars by metric name.
    """
    scale, errors = batch.advantage_scale, info.errors
    predicted = info.surrogate_gain * scale
    metrics = worst_states_and_errors(info)
    metrics["predicted_improvement"] = predicted
    gain_se = jnp.asarray(jnp.nan) if errors is None else errors.surrogate_gain_se
    metrics["predicted_improvement_se"] = gain_se * scale
    mean_tv = info.tv if errors is None else errors.tv_bound
    largest = scale * jnp.max(jnp.where(batch.weight > 0, jnp.abs(batch.advantage), 0))
    worst = bounds.worst_gain_bound(info.tv_max, largest)
    # Means over steps become sums over time, Σ γᵗ …, when divided by 1 − γ.
    # A number is compared here: a traced one in the program.
    traced = jnp.where(gamma < 1, 1 - gamma, 1) if isinstance(gamma, Array) else 1 - gamma if gamma < 1 else 1
    per_step = jnp.asarray(traced, predicted.dtype)
    at_worst = bounds.improvement_bound(predicted / per_step, worst, info.tv_max, gamma)
    on_average = bounds.average_improvement_bound(predicted / per_step, worst, mean_tv / per_step, gamma)
    fraction = bounds.guaranteed_fraction(predicted, worst, info.tv_max, mean_tv, gamma)
    mismatch = jnp.minimum(
        bounds.discounted_mismatch_bound(info.tv_max, gamma), bounds.average_mismatch_bound(mean_tv, gamma)
    )
    return {
        **metrics,
        "state_mismatch_bound": jnp.minimum(mismatch, 1),
        # The bounds are −∞ for γ = 1, unless the total variation or the largest advantage is 0.
        "sampled_improvement_bound": per_step * jnp.maximum(at_worst, on_average),
        "step_excess": jnp.where(fraction > 0, 1 / fraction, jnp.where(info.tv_max > 0, jnp.inf, 0)),
    }


def worst_states_and_errors(info: UpdateInfo) -> dict[str, Float[Array, ""]]:
    """The fields of `UpdateInfo.errors` by name, without the surrogate gain's error, which has other units.

    info: of a step. Returns nothing where it has no errors.
    """
    if info.errors is None:
        return {}
    return {name: value for name, value in vars(info.errors).items() if name != "surrogate_gain_se"}
