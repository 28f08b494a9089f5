"""Running mean and variance of observations, kept in the policy so that they are saved with it."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CLIP = 10.0
"""Standard deviations from the mean at which a scaled observation is clipped."""
VARIANCE_FLOOR = 1e-8
"""A coordinate of smaller variance counts as constant: dividing by its deviation would amplify rounding noise."""


class Rescaling(NamedTuple):
    """How features before an update of the statistics follow from the features after it: old = scale · new + shift.

    Layers that read the features compute the same as before when they absorb it (`MLP.absorb`). scale, shift: of every
    feature. exact: whether it holds for every observation of the batch; it does not for those that are clipped before
    or after.
    """

    scale: Float[Array, " *F"]
    shift: Float[Array, " *F"]
    exact: Bool[Array, ""] | bool = True

    def inverse(self) -> Rescaling:
        """How the new features follow from the old ones."""
        return Rescaling(1 / self.scale, -self.shift / self.scale, self.exact)


class Normalizer(eqx.Module):
    """(x − mean) / std, clipped to ±`clip`. The statistics are data, not trainable parameters.

    A coordinate whose variance is at most `variance_floor` counts as constant: it is centred only.

    They are frozen while a batch is collected and learned from, so that the ratio π_θ/π_old on a batch is 1 at the
    old parameters. `update` makes the statistics of the next iteration, and `rescaling` says what has to be done to the
    network behind for it to compute the same function.

    mean, variance: of every coordinate. count: observations so far. clip: standard deviations from the mean at which
    scaled observations are clipped. variance_floor: of coordinates that count as constant.
    """

    mean: Float[Array, " *obs"]
    variance: Float[Array, " *obs"]
    count: Float[Array, ""]
    clip: float = eqx.field(static=True, default=CLIP)
    variance_floor: float = eqx.field(static=True, default=VARIANCE_FLOOR)

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
        """The standard deviation; 1 for a coordinate that is constant so far.

        The smallest deviation instead would make the first value that differs a number of many thousands.
        """
        return jnp.where(self.variance > self.variance_floor, jnp.sqrt(self.variance), 1)

    def rescaling(self, new: Normalizer, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> Rescaling:
        """From what `new` returns for an observation to what this normaliser returns, where neither clips.

        Nothing is rescaled where no observation has been counted yet: a fresh network is meant for scaled observations.

        new: the statistics after an update with a batch. obs, weight: the batch.
        """
        fresh = self.count == 0
        scale = jnp.where(fresh, 1, new.scale / self.scale)
        shift = jnp.where(fresh, 0, (new.mean - self.mean) / self.scale)
        counted = jnp.reshape(weight > 0, weight.shape + (1,) * (obs.ndim - 1))
        inside = [jnp.abs((obs - n.mean) / n.scale) <= n.clip for n in (self, new)]
        return Rescaling(scale, shift, ~fresh & jnp.all((inside[0] & inside[1]) | ~counted))

    def update(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> Normalizer:
        """The statistics with a batch (Chan et al. 1979, parallel variance). One whose variance overflows is left out.

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
            variance_floor=self.variance_floor,
        )
