"""The realised improvement of a policy's last step, measured on the batch that the improved policy collected."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate.advantages import td_residual
from klimb.types import Rollout, weighted_mean


class MeanResidual(NamedTuple):
    """Mean one-step residual of a batch under one critic, in reward per step, and its standard error."""

    mean: Float[Array, " *seeds"]
    standard_error: Float[Array, " *seeds"]


def mean_residual(
    rollout: Rollout, value: Float[Array, "T N"], next_value: Float[Array, "T N"], *, gamma: float | Array
) -> MeanResidual:
    """mean r + γ V(s') − V(s) over the valid rows.

    The performance difference lemma says that the residual under V^π, averaged over another policy's states
    and actions, is that policy's improvement per step. The difference between two batches under the *same*
    critic is the realised improvement, and the critic's own error telescopes out of it (Kakade and Langford 2002).

    rollout: `[T, N]` steps. value: V of its observations. next_value: V of the true successors.
    gamma: discount per step, in [0, 1].
    """
    residual = td_residual(rollout.reward, value, next_value, rollout.terminated, gamma=gamma).reshape(-1)
    weight = rollout.valid.reshape(-1).astype(residual.dtype)
    mean = weighted_mean(residual, weight)
    variance = weighted_mean(jnp.square(residual - mean), weight)
    return MeanResidual(mean, jnp.sqrt(variance / jnp.maximum(jnp.sum(weight), 1)))


def realised_improvement(now: MeanResidual, before: MeanResidual) -> dict[str, Array]:
    """Improvement of the step between two batches, in reward per step, with its standard error, by metric name.

    now: of the new policy's batch. before: of the old policy's batch, under the same critic.
    """
    return {
        "realised_improvement": now.mean - before.mean,
        "realised_improvement_se": jnp.hypot(now.standard_error, before.standard_error),
    }
