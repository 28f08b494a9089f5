"""The critic network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from klimb.policies.body import NetworkBody, as_spec
from klimb.policies.encoders import Encoder
from klimb.policies.few_at_once import over_rows
from klimb.policies.layers import Initialization, LayerOptions, MemoryKind
from klimb.policies.mlp import Activation
from klimb.policies.normalizer import VARIANCE_FLOOR, Normalizer
from klimb.policies.observation_spec import ObservationSpec
from klimb.types import Sequences


class Critic(NetworkBody):
    """State value V(s) of the policy being improved.

    The network's output is relative to the running mean and standard deviation of the value targets, so that one
    learning rate fits rewards of any scale. Updating these statistics leaves V(s) unchanged (PopArt, van Hasselt
    et al. 2016).
    With `memory` a recurrent layer stands between encoder and dense layers. Called with an observation alone such a
    critic is at the start of an episode.

    encoder: of the observations. memory: the recurrent layer; None for none. network: the dense layers. target: the
    statistics of the value targets.
    """

    target: Normalizer

    def __init__(
        self,
        observations: int | ObservationSpec,
        *,
        hidden: Sequence[int] | None = None,
        activation: Activation = "tanh",
        layer_norm: bool = False,
        residual: bool = False,
        initialization: Initialization = "orthogonal",
        network: str | None = None,
        encoder: Encoder | None = None,
        memory: MemoryKind | None = None,
        memory_size: int = 64,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh critic.

        observations: the observation space; an integer n is short for n real numbers. hidden: sizes of the hidden
        layers between features and value. activation: of the hidden layers. layer_norm, residual, initialization: as in
        `klimb.policies.layers.LayerOptions`. network, encoder, memory, memory_size: as for `NetworkPolicy`. key: for
        the weights.

        Raises UnsupportedSpace if the observations are neither vectors nor pictures and there is no encoder.
        """
        super().__init__(
            as_spec(observations),
            hidden,
            1,
            activation=activation,
            output_gain=1.0,
            layers=LayerOptions(layer_norm, residual, initialization),
            network=network,
            encoder=encoder,
            memory=memory,
            memory_size=memory_size,
            key=key,
        )
        self.target = Normalizer.identity(())

    def __call__(self, obs: Num[Array, "..."]) -> Float[Array, "..."]:
        return self._in_reward(self.scaled(self.encoder.inputs(obs)))

    def step(self, obs: Num[Array, "..."], carry: Float[Array, "*batch G"]) -> tuple[Float[Array, "*batch"], Array]:
        """V(s, memory), and what is remembered after the step; only with memory.

        obs: one observation, or any leading axes. carry: what was remembered before it, with the same leading axes.
        """
        carry = self._remembered(self.encoder(obs), carry)
        return self._in_reward(self._of_features(self._remembered.units(carry))), carry

    def values_after(self, obs: Num[Array, "T N *obs"], carry: Float[Array, "T N G"]) -> Float[Array, "T N"]:
        """V(s, memory) of observations; only with memory.

        obs: one after each of some steps. carry: what was remembered after these steps.
        """
        features = over_rows(self.encoder, obs, 2)
        return self._in_reward(self._of_features(self._remembered.units(self._remembered(features, carry))))

    def replay(self, sequences: Sequences) -> tuple[Float[Array, " B"], Float[Array, "L S G"]]:
        """V(s, memory) of every row, and what is remembered after each step of the sequences; only with memory.

        sequences: of observations.
        """
        value, carries = self._scaled_replay(sequences, self.encoder)
        return self._in_reward(value), carries

    def inputs(self, obs: Num[Array, " B *obs"] | Sequences) -> Array | Sequences:
        """`encoder.inputs` of rows, which are computed once for all epochs of a fit; with memory, of sequences.

        obs: of a batch.
        """
        if not isinstance(obs, Sequences):
            return jax.vmap(self.encoder.inputs)(obs)
        inputs = jax.vmap(self.encoder.inputs)(obs.obs)
        return inputs if self.memory is None else eqx.tree_at(lambda s: s.obs, obs, inputs)

    def scaled_rows(self, inputs: Array | Sequences) -> Float[Array, " B"]:
        """`scaled` of rows. inputs: returned by `inputs`."""
        if isinstance(inputs, Sequences):
            return self._scaled_replay(inputs, self.encoder.features)[0]
        return jax.vmap(self.scaled)(inputs)

    @property
    def target_scale(self) -> Float[Array, ""]:
        """Standard deviation of the value targets, at least √VARIANCE_FLOOR, in units of reward."""
        return jnp.sqrt(jnp.maximum(self.target.variance, VARIANCE_FLOOR))

    def scaled(self, inputs: Num[Array, "..."]) -> Float[Array, "..."]:
        """The value in units of the targets: before it is multiplied by `target_scale` and shifted.

        inputs: returned by `encoder.inputs`.
        """
        return self._of_features(self._at_start(self.encoder.features(inputs)))

    def _of_features(self, features: Float[Array, "*batch F"]) -> Float[Array, "*batch"]:
        return self.network(features)[..., 0]

    def _in_reward(self, scaled: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return scaled * self.target_scale + self.target.mean

    def _scaled_replay(
        self, sequences: Sequences, features_of: Callable[[Array], Array]
    ) -> tuple[Float[Array, " B"], Float[Array, "L S G"]]:
        """`scaled` of every row, and what is remembered. features_of: from one row of the sequences."""
        assert sequences.critic_carry is not None, "it is not known what the critic remembers"
        features = sequences.in_order(over_rows(features_of, sequences.obs, 1))
        carry = sequences.critic_carry.reshape(sequences.count, -1)
        carries = self._remembered.over_time(features, carry, sequences.in_order(sequences.begins))
        return jax.vmap(self._of_features)(sequences.in_rows(self._remembered.units(carries))), carries


class FunctionEncoder(Encoder):
    """A custom critic, a pytree that maps one observation to a number, as an encoder with a single feature."""

    function: Callable[[Array], Array]

    @property
    def num_features(self) -> int:
        return 1

    def features(self, inputs: Num[Array, "..."]) -> Float[Array, " 1"]:
        return jnp.reshape(self.function(inputs), (1,))


def as_critic(critic: Any) -> Critic:
    """A `Critic` made of any pytree that maps one observation to a number.

    Its value is scaled and shifted by two numbers, which follow the targets' running mean and standard deviation and
    are trained together with it.

    critic: the pytree, or a `Critic`, which is returned as it is.
    """
    if isinstance(critic, Critic):
        return critic
    wrapped = Critic(1, hidden=(), encoder=FunctionEncoder(critic), key=jax.random.key(0))
    return eqx.tree_at(lambda c: c.network.weights, wrapped, (jnp.ones((1, 1)),))


def state_values(critic: Critic, obs: Num[Array, "T N *obs"]) -> Float[Array, "T N"]:
    """V(s) of a rollout's observations.

    critic: called with one observation at a time, under vmap. obs: of every step and environment.
    """
    return over_rows(critic, obs, 2)
