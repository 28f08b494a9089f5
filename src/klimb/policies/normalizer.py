"""Running mean and variance of observations, kept in the policy so that they are saved with it."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

VARIANCE_FLOOR = 1e-8
"""Minimum variance: dividing a constant coordinate by a smaller one would amplify rounding noise."""


class Normalizer(eqx.Module):
    """(x − mean) / std, clipped to ±`clip`. The statistics are data, not trainable parameters.

    They are frozen while a batch is collected and learned from, so that the ratio π_θ/π_old on a batch is 1 at the
    old parameters. `update` makes the statistics of the next iteration.
    """

    mean: Float[Array, " *obs"]
    variance: Float[Array, " *obs"]
    count: Float[Array, ""]
    clip: float = eqx.field(static=True, default=10.0)

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> Normalizer:
        """Mean 0 and variance 1, with no observation counted.

        shape: of one observation.
        """
        return cls(mean=jnp.zeros(shape), variance=jnp.ones(shape), count=jnp.zeros(()))

    def __call__(self, obs: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return jnp.clip((obs - self.mean) / self.scale, -self.clip, self.clip)

    @property
    def scale(self) -> Float[Array, " *obs"]:
        """The standard deviation, at least √VARIANCE_FLOOR."""
        return jnp.sqrt(jnp.maximum(self.variance, VARIANCE_FLOOR))

    def update(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> Normalizer:
        """Merge a batch (Chan et al. 1979, parallel variance). A batch whose variance overflows is left out.

        obs: rows; non-finite ones are left out. weight: of every row; rows of weight 0 are left out, all others count
        equally.
        """
        rows = (weight > 0) & jnp.all(jnp.isfinite(obs), axis=tuple(range(1, obs.ndim)))
        row = jnp.reshape(rows, rows.shape + (1,) * (obs.ndim - 1))
        n = jnp.sum(rows.astype(self.mean.dtype))
        safe_n = jnp.maximum(n, 1)
        mean = jnp.sum(jnp.where(row, obs, 0), axis=0) / safe_n
        variance = jnp.sum(jnp.where(row, jnp.square(obs - mean), 0), axis=0) / safe_n
        total = self.count + n
        fraction = n / jnp.maximum(total, 1)
        delta = mean - self.mean
        merged = self.variance + fraction * (variance - self.variance + (1 - fraction) * jnp.square(delta))
        # Squares of finite numbers can overflow.
        usable = jnp.all(jnp.isfinite(merged) & jnp.isfinite(delta))
        return Normalizer(
            mean=jnp.where(usable, self.mean + fraction * delta, self.mean),
            variance=jnp.where(usable, merged, self.variance),
            count=jnp.where(usable, total, self.count),
            clip=self.clip,
        )
