"""Encoders: from an observation to the feature vector that a network's dense layers read."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from klimb.errors import UnsupportedSpace
from klimb.policies.normalizer import Normalizer, Rescaling
from klimb.policies.observation_spec import ObservationSpec

DEFAULT_HIDDEN = (64, 64)


class Encoder(eqx.Module):
    """A pytree that maps observations to feature vectors. Policy and critic have one each.

    A custom encoder is a subclass with `num_features` and `features`; the arrays of its convolutions or embeddings are
    fields. It is called with one observation at a time, under vmap.
    """

    rows_at_once: ClassVar[int | None] = None
    """Observations after which a CPU begins anew where only values are wanted, because what is between the layers would
    not fit into its cache; None for all at once."""

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """F, the length of a feature vector."""

    @property
    def hidden_behind(self) -> tuple[int, ...]:
        """Sizes of the hidden layers between features and outputs, where none are asked for."""
        return DEFAULT_HIDDEN

    def inputs(self, obs: Num[Array, "..."]) -> Num[Array, "..."]:
        """The part of the encoding without trainable arrays: the critic's fit computes it once for all its epochs.

        obs: one observation.
        """
        return obs

    @abc.abstractmethod
    def features(self, inputs: Num[Array, "..."]) -> Float[Array, "... F"]:
        """The feature vector.

        inputs: returned by the method `inputs`.
        """

    def __call__(self, obs: Num[Array, "..."]) -> Float[Array, "... F"]:
        return self.features(self.inputs(obs))

    def observe(self, obs: Num[Array, " B *obs"], weight: Float[Array, " B"]) -> tuple[Encoder, Rescaling | None]:
        """The same encoder with its running statistics updated by a batch, and how its features were rescaled by that.

        The layers behind absorb the rescaling, so that policy and critic stay the same functions. An encoder whose own
        first layer absorbs it returns a rescaling of 1 and 0; one without statistics returns None.

        obs: rows. weight: of every row, ≥ 0; rows of weight 0 are left out.
        """
        return self, None


class FlatEncoder(Encoder):
    """One-dimensional observations, scaled by their running mean and standard deviation.

    normalizer: of the numbers. columns: which numbers of an observation are read; None for the first F, behind which an
    action mask may stand. scaled: which of those that are read are scaled; None for all. One-hot vectors are not.
    """

    normalizer: Normalizer
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None)
    scaled: tuple[bool, ...] | None = eqx.field(static=True, default=None)

    @classmethod
    def of(cls, observations: ObservationSpec) -> FlatEncoder:
        """A fresh encoder.

        observations: of the policy or critic. Raises UnsupportedSpace if they are not one-dimensional.
        """
        shape = observations.encoded.shape
        if len(shape) != 1:
            raise UnsupportedSpace(
                f"observations of shape {list(shape)} need a network of their own: give one with --network (network= "
                "in Python), or flatten them with gymnasium.wrappers.FlattenObservation"
            )
        return cls.reading(observations, observations.columns)

    @classmethod
    def reading(cls, observations: ObservationSpec, columns: tuple[int, ...] | None) -> FlatEncoder:
        """A fresh encoder of some of the numbers.

        observations: vectors. columns: as the field.
        """
        scaled = observations.encoded.scaled
        if columns is not None:
            scaled = tuple(scaled[column] for column in columns)
        return cls(Normalizer.identity((len(scaled),)), columns, None if all(scaled) else scaled)

    @property
    def num_features(self) -> int:
        return int(self.normalizer.mean.shape[-1])

    def inputs(self, obs: Float[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        return self.normalizer(self._read(obs))

    def features(self, inputs: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        return inputs

    def observe(self, obs: Float[Array, "B O"], weight: Float[Array, " B"]) -> tuple[FlatEncoder, Rescaling]:
        """The same encoder with a batch in its statistics, and how its features were rescaled by that.

        obs: rows. weight: of every row, ≥ 0; rows of weight 0 are left out.
        """
        own = self._read(obs)
        new = self.normalizer.update(own, weight)
        if self.scaled is not None:
            scaled = np.array(self.scaled)
            mean, variance = jnp.where(scaled, new.mean, 0), jnp.where(scaled, new.variance, 1)
            new = dataclasses.replace(new, mean=mean, variance=variance)
        return dataclasses.replace(self, normalizer=new), self.normalizer.rescaling(new, own, weight)

    def _read(self, obs: Float[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        return obs[..., : self.num_features] if self.columns is None else obs[..., np.array(self.columns, np.int32)]
