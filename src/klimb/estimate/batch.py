"""From a rollout and the critic's values to the batch that a rule sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate.advantages import advantage_residuals, discount_from_start, estimate_advantages, normalise
from klimb.runs.config import TrainOptions
from klimb.types import Batch, Residuals, Rollout


def make_batch(
    rollout: Rollout,
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    options: TrainOptions,
    *,
    progress: Float[Array, ""],
) -> tuple[Batch, Float[Array, ""]]:
    """The T·N rows of a rollout with their advantages, and the deviation that these had before they were normalised."""
    gamma, gae_lambda = options.gamma, options.gae_lambda
    advantage, value_target = estimate_advantages(
        options.advantage, rollout, value, next_value, gamma=gamma, gae_lambda=gae_lambda, n_step=options.n_step
    )
    # The total return is discounted from the episode's start already: γᵗ is part of it.
    leading = options.discount_states and options.advantage != "total_return"
    discount = discount_from_start(rollout, gamma) if leading else jnp.ones_like(advantage)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    weight = rows.valid.astype(rollout.reward.dtype)
    flat_advantage, scale = (advantage * discount).reshape(-1), jnp.ones(())
    if options.normalize_advantage:
        flat_advantage, scale = normalise(flat_advantage, weight)
    residual, decay = advantage_residuals(
        options.advantage, rollout, value, next_value, gamma=gamma, gae_lambda=gae_lambda
    )
    batch = Batch(
        obs=rows.obs,
        action=rows.action,
        log_prob=rows.log_prob,
        advantage=flat_advantage,
        value_target=value_target.reshape(-1),
        weight=weight,
        rollout=rollout,
        progress=progress,
        residuals=Residuals(residual / scale, decay, discount),
    )
    return batch, scale
