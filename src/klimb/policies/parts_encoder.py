"""The encoder of observations in which pictures are parts: one for each picture, and one for all other numbers."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.policies.encoders import Encoder, FlatEncoder
from klimb.policies.normalizer import Rescaling
from klimb.policies.pictures import ROWS_AT_ONCE, PictureEncoder


class PartsEncoder(Encoder):
    """The features of the numbers, scaled by their running statistics, and those of each picture behind them.

    numbers: the encoder of what is no picture; None where everything is. pictures: those of the pictures. starts: where
    each picture begins in the vector of an observation.
    """

    numbers: FlatEncoder | None
    pictures: tuple[PictureEncoder, ...]
    starts: tuple[int, ...] = eqx.field(static=True)

    rows_at_once = ROWS_AT_ONCE

    @property
    def num_features(self) -> int:
        parts: tuple[Encoder, ...] = self.pictures if self.numbers is None else (self.numbers, *self.pictures)
        return sum(part.num_features for part in parts)

    def features(self, inputs: Float[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        parts = [] if self.numbers is None else [self.numbers(inputs)]
        for start, encoder in zip(self.starts, self.pictures, strict=True):
            own = inputs[..., start : start + encoder.observed.size]
            parts.append(encoder(own.reshape(*own.shape[:-1], *encoder.observed.shape)))
        return jnp.concatenate(parts, axis=-1)

    def observe(self, obs: Float[Array, "B O"], weight: Float[Array, " B"]) -> tuple[PartsEncoder, Rescaling | None]:
        """The same encoder with obs in the statistics of its numbers; rows of weight 0 are left out."""
        if self.numbers is None:
            return self, None
        numbers, rescaling = self.numbers.observe(obs, weight)
        others = self.num_features - numbers.num_features
        whole = Rescaling(
            jnp.concatenate([rescaling.scale, jnp.ones(others, rescaling.scale.dtype)]),
            jnp.concatenate([rescaling.shift, jnp.zeros(others, rescaling.shift.dtype)]),
            rescaling.exact,
        )
        return dataclasses.replace(self, numbers=numbers), whole
