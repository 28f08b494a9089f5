"""What a rollout says of the episodes that ended in it."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class EpisodeSummary(eqx.Module):
    """Episodes that ended during one rollout: how many, and their means (NaN when none ended).

    Scalars for one seed; host collectors give all K seeds at once, `seeds` = (K,).
    """

    count: Int[Array, " *seeds"]
    mean_return: Float[Array, " *seeds"]
    mean_length: Float[Array, " *seeds"]


def summarise(ended: Array, episode_return: Float[Array, "T N"], episode_length: Int[Array, "T N"]) -> EpisodeSummary:
    """Means over the rows where an episode `ended`; undiscounted returns, lengths in steps."""
    count = jnp.sum(ended)
    n = jnp.where(count > 0, count, jnp.nan).astype(episode_return.dtype)
    return EpisodeSummary(
        count=count,
        mean_return=jnp.sum(jnp.where(ended, episode_return, 0)) / n,
        mean_length=jnp.sum(jnp.where(ended, episode_length, 0)) / n,
    )
