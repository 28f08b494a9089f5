"""Encoders: from an observation to the feature vector that a network's dense layers read."""

from __future__ import annotations

import abc

import equinox as eqx
from jaxtyping import Array, Float

from klimb.errors import UnsupportedSpace
from klimb.policies.normalizer import Normalizer, Rescaling
from klimb.policies.observations import ObservationSpec


class Encoder(eqx.Module):
    """A pytree that maps observations to feature vectors. Policy and critic have one each.

    A custom encoder is a subclass with `num_features` and `features`; the arrays of its convolutions or embeddings are
    fields. It is called with one observation at a time, under vmap.
    """

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """F, the length of a feature vector."""

    def inputs(self, obs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The part of the encoding without trainable arrays: the critic's fit computes it once for all its epochs.

        obs: one observation.
        """
        return obs

    @abc.abstractmethod
    def features(self, inputs: Float[Array, "..."]) -> Float[Array, "... F"]:
        """The feature vector.

        inputs: returned by the method `inputs`.
        """

    def __call__(self, obs: Float[Array, "..."]) -> Float[Array, "... F"]:
        return self.features(self.inputs(obs))

    def observe(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> tuple[Encoder, Rescaling | None]:
        """The same encoder with its running statistics updated by a batch, and how its features were rescaled by that.

        The layers behind absorb the rescaling, so that policy and critic stay the same functions. An encoder whose own
        first layer absorbs it returns a rescaling of 1 and 0; one without statistics returns None.

        obs: rows. weight: of every row, ≥ 0; rows of weight 0 are left out.
        """
        return self, None


class FlatEncoder(Encoder):
    """One-dimensional observations, scaled by their running mean and standard deviation.

    Of observations that end with an action mask it reads what is before the mask.
    """

    normalizer: Normalizer

    @classmethod
    def of(cls, observations: ObservationSpec) -> FlatEncoder:
        """A fresh encoder.

        observations: of the policy or critic. Raises UnsupportedSpace if they are not one-dimensional.
        """
        shape = observations.encoded.shape
        if len(shape) != 1:
            raise UnsupportedSpace(
                f"observations of shape {list(shape)} need a network of their own: give one with --policy "
                "and --critic (policy=, critic= in Python), or flatten them with "
                "gymnasium.wrappers.FlattenObservation"
            )
        return cls(Normalizer.identity(shape))

    @property
    def num_features(self) -> int:
        return int(self.normalizer.mean.shape[-1])

    def inputs(self, obs: Float[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        return self.normalizer(obs[..., : self.num_features])

    def features(self, inputs: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        return inputs

    def observe(self, obs: Float[Array, "B O"], weight: Float[Array, " B"]) -> tuple[FlatEncoder, Rescaling]:
        """The same encoder with obs in its statistics; rows of weight 0 are left out."""
        own = obs[..., : self.num_features]
        new = self.normalizer.update(own, weight)
        return FlatEncoder(new), self.normalizer.rescaling(new, own, weight)
