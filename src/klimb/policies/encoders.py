"""Encoders: from an observation to the features that a network's layers start from."""

from __future__ import annotations

import abc

import equinox as eqx
from jaxtyping import Array, Float

from klimb.errors import UnsupportedSpace
from klimb.policies.normalizer import Normalizer
from klimb.policies.observations import ObservationSpec


class Encoder(eqx.Module):
    """What reads observations: a pytree that policy and critic each have one of.

    An encoder of one's own is a class with `num_features` and `features`; convolutions, embeddings and the like have
    their arrays as fields. It is called with one observation at a time, under vmap.
    """

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """F, the length of a feature vector."""

    def inputs(self, obs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The part of the encoding that no gradient moves: the critic's fit computes it once for all its epochs."""
        return obs

    @abc.abstractmethod
    def features(self, inputs: Float[Array, "..."]) -> Float[Array, "... F"]:
        """The feature vector of what `inputs` has made of an observation."""

    def __call__(self, obs: Float[Array, "..."]) -> Float[Array, "... F"]:
        return self.features(self.inputs(obs))

    def observe(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> Encoder:
        """The same encoder with a batch of observations taken into its running statistics, where it has any.

        obs: rows. weight: rows of weight 0 are left out.
        """
        return self


class FlatEncoder(Encoder):
    """One-dimensional observations, scaled by their running mean and standard deviation."""

    normalizer: Normalizer

    @classmethod
    def of(cls, observations: ObservationSpec) -> FlatEncoder:
        """For a space. UnsupportedSpace when its observations are not one-dimensional."""
        if len(observations.shape) != 1:
            raise UnsupportedSpace(
                f"observations of shape {list(observations.shape)} need a network of their own: give one with --policy "
                "and --critic (policy=, critic= in Python), or flatten them with "
                "gymnasium.wrappers.FlattenObservation"
            )
        return cls(Normalizer.identity(observations.shape))

    @property
    def num_features(self) -> int:
        return int(self.normalizer.mean.shape[-1])

    def inputs(self, obs: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        return self.normalizer(obs)

    def features(self, inputs: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        return inputs

    def observe(self, obs: Float[Array, "B F"], weight: Float[Array, " B"]) -> FlatEncoder:
        return FlatEncoder(self.normalizer.update(obs, weight))
