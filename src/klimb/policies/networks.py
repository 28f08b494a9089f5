"""The policy network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray

from klimb.errors import ConfigError
from klimb.policies.acting import act, act_with_memory
from klimb.policies.action_spec import ActionSpec, Exploration, GaussianStyle
from klimb.policies.body import NetworkBody, as_spec
from klimb.policies.distributions import Distribution
from klimb.policies.encoders import Encoder
from klimb.policies.exploration import marginal_log_std, standard_noise
from klimb.policies.few_at_once import over_rows
from klimb.policies.layers import Initialization, LayerOptions, MemoryKind
from klimb.policies.mlp import Activation
from klimb.policies.observation_spec import ObservationSpec

TYPICAL_INPUTS = 256
"""Standard normal inputs of the network from which gSDE's initial σ is computed."""


class NetworkPolicy(NetworkBody):
    """observation → encoder → dense layers → distribution: categorical for discrete actions, Gaussian for a box.

    The network's output is rescaled to the action box: 0 is the middle of the box and 1 its edge, and the standard
    deviation is `exp(log_std)` half-widths. Actions are in the environment's units.
    With `tanh_squash` the Gaussian is in half-widths from the middle, and tanh squashes its samples into the box.
    With `state_dependent_std` a second half of the network's outputs is added to `log_std`.
    With `log_std_bounds` the log standard deviation is clipped to them.
    With `exploration` = gsde `log_std` is that of the matrix W `[F, D]` of the noise Wᵀ φ, φ the F features of the last
    hidden layer, and the standard deviation of an action follows from both.
    With `memory` a recurrent layer stands between encoder and dense layers, and the policy is `Remembering`: called
    with an observation alone it is at the start of an episode.
    It accepts one observation or any leading axes.

    encoder: of the observations. memory: the recurrent layer; None for none. network: the dense layers. log_std: of a
    Gaussian, where it does not depend on the state. observations, actions: the spaces. style: of a Gaussian.
    """

    log_std: Float[Array, "*F D"] | None
    observations: ObservationSpec = eqx.field(static=True)
    actions: ActionSpec = eqx.field(static=True)
    style: GaussianStyle = eqx.field(static=True)

    def __init__(
        self,
        observations: int | ObservationSpec,
        actions: ActionSpec,
        *,
        hidden: Sequence[int] | None = None,
        activation: Activation = "tanh",
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
        tanh_squash: bool = False,
        log_std_bounds: tuple[float, float] | None = None,
        exploration: Exploration = "independent",
        layer_norm: bool = False,
        residual: bool = False,
        initialization: Initialization = "orthogonal",
        network: str | None = None,
        encoder: Encoder | None = None,
        memory: MemoryKind | None = None,
        memory_size: int = 64,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh policy.

        observations: the observation space; an integer n is short for n real numbers. actions: the action space.
        hidden: sizes of the hidden layers between features and outputs; None for 64 and 64, and for none behind a
        network for pictures. activation: of the hidden layers.
        initial_log_std: initial log standard deviation of a Gaussian; the unit of σ is the half-width of the box.
        With gsde it is that of an action where the network's inputs are standard normal, as normalised observations
        about are: the elements of W start at exp(initial_log_std) / √E[Σ_j φ_j²].
        state_dependent_std, tanh_squash, log_std_bounds, exploration: as in `GaussianStyle`; for continuous actions
        only. layer_norm, residual, initialization: as in `LayerOptions`. network: of the pictures in observations, a
        name as `klimb.policies.architectures` has them; None for one that suits their size. encoder: your own, in place
        of that; None for klimb's. memory: kind of recurrent layer; None for none. memory_size: its units. key: for the
        weights.

        Raises UnsupportedSpace for observations that are neither vectors nor pictures without an encoder, for
        `tanh_squash` in a box without bounds, and for any of these options with discrete actions; ConfigError for an
        initial standard deviation outside its bounds, and for gsde with `state_dependent_std`, with memory or without a
        hidden layer.
        """
        self.style = GaussianStyle(state_dependent_std, tanh_squash, log_std_bounds, exploration)
        self.style.require_valid(initial_log_std, hidden, memory)
        outputs = actions.num_outputs(self.style)
        self.observations = as_spec(observations)
        super().__init__(
            self.observations,
            hidden,
            outputs,
            activation=activation,
            # The initial policy hardly depends on the random weights.
            output_gain=0.01,
            layers=LayerOptions(layer_norm, residual, initialization),
            network=network,
            encoder=encoder,
            memory=memory,
            memory_size=memory_size,
            key=key,
        )
        free = actions.num_log_std
        if free and exploration == "gsde":
            typical = self.network.hidden(
                jax.random.normal(jax.random.fold_in(key, 1), (TYPICAL_INPUTS, self.network.sizes[0]))
            )
            variance = jnp.mean(jnp.sum(jnp.square(typical), axis=-1))
            self.log_std = jnp.full((self.network.sizes[-2], free), initial_log_std - 0.5 * jnp.log(variance), float)
        else:
            self.log_std = jnp.full(free, initial_log_std, float) if free else None
        self.actions = actions

    def __call__(self, obs: Num[Array, "..."]) -> Distribution:
        expected, shape = self.observations.shape, np.shape(obs)
        if shape[max(len(shape) - len(expected), 0) :] != expected:
            raise ConfigError(
                f"the observation has the shape {shape}, and the policy reads the shape {expected}, with any leading "
                "axes: it was made for another environment"
            )
        return self._of_features(self._at_start(self.encoder(obs)), obs)

    @property
    def initial_carry(self) -> Float[Array, " C"]:
        """What it remembers when an episode begins: zeros. Only with memory."""
        return jnp.zeros(self._remembered.carry_size)

    def step(self, obs: Num[Array, "..."], carry: Float[Array, "*batch C"]) -> tuple[Distribution, Array]:
        """π(·|s, memory), and what is remembered after the step: see `Remembering.step`.

        obs: one observation, or any leading axes. carry: with the same leading axes.
        """
        carry = self._remembered(self.encoder(obs), carry)
        return self._of_features(self._remembered.units(carry), obs), carry

    def unroll(
        self, obs: Num[Array, "L S *obs"], carry: Float[Array, "S C"], begins: Bool[Array, "L S"]
    ) -> tuple[Distribution, Float[Array, "L S C"]]:
        """π(·|s, memory) of every step of sequences: see `Unrolling.unroll`.

        obs: of the steps. carry: before the first. begins: before which everything is forgotten.
        """
        carries = self._remembered.over_time(over_rows(self.encoder, obs, 2), carry, begins)
        features = self._remembered.units(carries)

        def in_rows(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        rows = jax.vmap(self._of_features)(in_rows(features), in_rows(obs))
        return jax.tree.map(lambda x: x.reshape(*begins.shape, *x.shape[1:]), rows), carries

    def _of_features(self, features: Float[Array, "*batch F"], obs: Num[Array, "..."]) -> Distribution:
        """features: that the dense layers read. obs: the observations, for their action masks."""
        return self._distribution(self.network.hidden(features), self.observations.mask(obs))

    @property
    def held_noise(self) -> tuple[int, ...] | None:
        """(F + 1, D) with gsde: W's standard normal numbers, and those of ε in the last row. Else None."""
        return None if self.style.exploration == "independent" else (self.network.sizes[-2] + 1, *self.actions.shape)

    def explore(self, obs: Num[Array, " *obs"], held: Float[Array, "G D"]) -> tuple[Distribution, Float[Array, " D"]]:
        """π(·|s) and the standard normal noise that gSDE's W makes in s: see `Exploring.explore`.

        obs: one observation. held: W's standard normal numbers, of the shape `held_noise`.
        """
        features = self.network.hidden(self.encoder(obs))
        assert self.log_std is not None
        return self._distribution(features, None), standard_noise(features, self.log_std, held)

    def probed(
        self, obs: Num[Array, "..."], nudges: Sequence[Float[Array, "*batch _"]]
    ) -> tuple[Distribution, list[Float[Array, "*batch _"]]]:
        """π(·|s), and what every dense layer reads, with `nudges` added to what the layers compute: see `MLP.probed`.

        obs: one observation, or any leading axes. nudges: one of every dense layer.
        """
        features, outputs, inputs = self.network.probed(self._at_start(self.encoder(obs)), nudges)
        return self._of_outputs(features, outputs, self.observations.mask(obs)), inputs

    def _distribution(self, features: Float[Array, "*batch F"], mask: Bool[Array, "*batch C"] | None) -> Distribution:
        return self._of_outputs(features, self.network.output(features), mask)

    def _of_outputs(
        self,
        features: Float[Array, "*batch F"],
        outputs: Float[Array, "*batch Y"],
        mask: Bool[Array, "*batch C"] | None,
    ) -> Distribution:
        log_std = self.log_std
        if self.style.exploration == "gsde":
            assert log_std is not None
            log_std = marginal_log_std(features, log_std)
        return self.actions.distribution(outputs, log_std, self.style, mask)

    def act(
        self,
        obs: Any,
        *,
        deterministic: bool = True,
        rng: np.random.Generator | None = None,
        action_mask: Any = None,
    ) -> Any:
        """The action for the environment: in its units, squashed or clipped into its bounds, in NumPy (`klimb.act`).

        obs: one observation `[*obs]`, or any number of leading axes. deterministic: the distribution's mode instead of
        a sample. rng: where samples draw their random numbers from, and which every call advances; None for fresh
        randomness of the operating system in every call. action_mask: which choices are allowed, for a policy that was
        trained with a mask; a flag for each choice, with the leading axes of `obs`.

        Returns the action as the space has it: an array with the leading axes of `obs` (a NumPy scalar for one of a
        Discrete space), or a dictionary or tuple of these. Raises ConfigError for an observation of another shape than
        the policy reads.
        """
        return act(self, obs, deterministic=deterministic, rng=rng, action_mask=action_mask)

    def act_with_memory(
        self,
        obs: Any,
        carry: Any,
        *,
        deterministic: bool = True,
        rng: np.random.Generator | None = None,
        action_mask: Any = None,
    ) -> tuple[Any, np.ndarray]:
        """The action for the environment, and what the policy remembers after the step (`klimb.act_with_memory`).

        obs, deterministic, rng, action_mask: as for `act`. carry: what it remembers before the step, None where an
        episode begins.
        """
        return act_with_memory(self, obs, carry, deterministic=deterministic, rng=rng, action_mask=action_mask)

    def within_bounds(self) -> NetworkPolicy:
        """The same function with a free log σ that a step has moved beyond a bound put back to it.

        Beyond a bound the gradient with respect to it is zero: without this, σ would stay at the bound forever. A log
        σ that depends on the state has no such parameter of its own, and stays as it is.
        """
        bounds, depends = self.style.log_std_bounds, self.style.state_dependent_std or self.held_noise is not None
        if bounds is None or depends or self.log_std is None:
            return self
        return eqx.tree_at(lambda policy: policy.log_std, self, jnp.clip(self.log_std, *bounds))
