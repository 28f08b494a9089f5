"""What policy and critic networks have in common: an encoder, perhaps a memory, and dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from klimb.policies.architectures import encoder_of
from klimb.policies.encoders import Encoder
from klimb.policies.layers import LayerOptions, MemoryKind
from klimb.policies.mlp import MLP, Activation
from klimb.policies.normalizer import Rescaling
from klimb.policies.observations import BoxObservations, ObservationSpec
from klimb.policies.recurrent import RECURRENT_LAYERS, RecurrentLayer

Network = TypeVar("Network", bound="NetworkBody")


class NetworkBody(eqx.Module):
    """encoder → memory → dense layers. Without `memory` the dense layers read the features of the encoder."""

    encoder: Encoder
    memory: RecurrentLayer | None
    network: MLP

    def __init__(
        self,
        observations: ObservationSpec,
        hidden: Sequence[int] | None,
        outputs: int,
        *,
        activation: Activation,
        output_gain: float,
        layers: LayerOptions,
        network: str | None,
        encoder: Encoder | None,
        memory: MemoryKind | None,
        memory_size: int,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh network.

        observations: that it reads. hidden: sizes of the hidden layers; None for those that suit the encoder. outputs:
        of the last layer, whose weights have the gain `output_gain`. activation, layers: of the dense layers. network,
        encoder, memory, memory_size: as for `NetworkPolicy`. key: for the weights.
        """
        initialization = layers.initialization
        if encoder is None:
            # Not the key of the dense layers.
            encoder = encoder_of(
                observations, jax.random.fold_in(key, 2), network=network, initialization=initialization
            )
        self.encoder = encoder
        self.memory = None
        features = encoder.num_features
        if memory is not None:
            self.memory = RECURRENT_LAYERS[memory](
                features, memory_size, initialization=initialization, key=jax.random.fold_in(key, 3)
            )
            features = memory_size
        sizes = [features, *(encoder.hidden_behind if hidden is None else hidden), outputs]
        self.network = MLP(sizes, activation=activation, output_gain=output_gain, key=key, layers=layers)

    @property
    def carry_size(self) -> int | None:
        """How many numbers it remembers from step to step; None without memory."""
        return None if self.memory is None else self.memory.carry_size

    def observe(
        self: Network, obs: Num[Array, " B *obs"], weight: Float[Array, " B"]
    ) -> tuple[Network, Rescaling | None]:
        """The same function with its encoder's statistics updated by a batch: see `Observing.observe`.

        obs: rows. weight: of every row; rows of weight 0 are left out.
        """
        encoder, rescaling = self.encoder.observe(obs, weight)
        absorbed = self if rescaling is None else self.absorb(rescaling)
        return eqx.tree_at(lambda network: network.encoder, absorbed, encoder), rescaling

    def absorb(self: Network, rescaling: Rescaling) -> Network:
        """The network whose first layer behind the encoder reads features that were rescaled.

        rescaling: of the features.
        """
        if self.memory is not None:
            return eqx.tree_at(lambda network: network.memory, self, self.memory.absorb(rescaling))
        return eqx.tree_at(lambda network: network.network, self, self.network.absorb(rescaling))

    @property
    def _remembered(self) -> RecurrentLayer:
        assert self.memory is not None, "the network has no memory"
        return self.memory

    def _at_start(self, features: Float[Array, "*batch F"]) -> Float[Array, "*batch X"]:
        """What the dense layers read where an episode begins. features: of the encoder."""
        if self.memory is None:
            return features
        nothing = jnp.zeros((*features.shape[:-1], self.memory.carry_size), features.dtype)
        return self.memory.units(self.memory(features, nothing))


def as_spec(observations: int | ObservationSpec) -> ObservationSpec:
    """The observation space. observations: an integer n is short for n real numbers."""
    return BoxObservations((observations,)) if isinstance(observations, int) else observations
