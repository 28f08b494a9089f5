"""Policy and critic networks: an encoder and dense layers each. They share no parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray
from pydantic import model_validator

from klimb.errors import ConfigError
from klimb.fields import LayerSizes, Name, checked
from klimb.policies.acting import act
from klimb.policies.action_spec import ActionSpec, Exploration, GaussianStyle
from klimb.policies.architectures import encoder_of
from klimb.policies.distributions import Distribution
from klimb.policies.encoders import Encoder
from klimb.policies.exploration import marginal_log_std, standard_noise
from klimb.policies.few_at_once import over_rows
from klimb.policies.layers import Initialization, LayerOptions
from klimb.policies.mlp import MLP, Activation
from klimb.policies.normalizer import VARIANCE_FLOOR, Normalizer, Rescaling
from klimb.policies.observations import BoxObservations, ObservationSpec
from klimb.policies.pictures import NETWORKS

TYPICAL_INPUTS = 256
"""Standard normal inputs of the network from which gSDE's initial σ is computed."""


@checked
class NetworkOptions:
    """The networks of a run."""

    normalize_observations: bool = True
    """Scale observations by their running mean and standard deviation, kept inside the policy."""
    hidden: LayerSizes = (64, 64)
    """Hidden layer sizes of the policy, and of the critic unless critic_hidden is given."""
    critic_hidden: LayerSizes | None = None
    """Hidden layer sizes of the critic; none: the same as for the policy."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    layer_norm: bool = False
    """Normalise the units of each hidden layer before its activation, in policy and critic."""
    residual: bool = False
    """Add the input of a hidden layer to its output where both have one size, in policy and critic."""
    initialization: Initialization = "orthogonal"
    """Distribution of the initial weights of policy and critic."""
    initial_log_std: float = 0.0
    """Initial log standard deviation of a Gaussian policy; the unit of σ is the half-width of the action box."""
    state_dependent_std: bool = False
    """Compute the standard deviation from the observation; continuous actions only."""
    tanh_squash: bool = False
    """Squash Gaussian actions into the action box by tanh instead of clipping them; bounded boxes only."""
    log_std_bounds: tuple[float, float] | None = None
    """Minimum and maximum log standard deviation of a Gaussian policy, as for initial_log_std; none: no bounds."""
    exploration: Exploration = "independent"
    """Noise of Gaussian actions. independent: drawn at every step; gsde: a function of the state, smooth in time."""
    network: Name | None = None
    """Network that reads pictures: minatar, nature, impala, or mlp for none; or a function of your own, module:name."""
    critic_network: Name | None = None
    """Network that reads pictures in the critic; none: the same as for the policy."""
    critic_observes: tuple[Name, ...] | None = None
    """Parts of Dict observations that only the critic sees; none: both see all parts."""
    policy: Name | None = None
    """A function of your own, module:name, that makes the policy: (observations, actions, key) -> policy."""
    critic: Name | None = None
    """A function of your own, module:name, that makes the critic: (observations, key) -> critic."""

    @model_validator(mode="after")
    def _require_valid_style(self) -> NetworkOptions:
        self.style.require_valid(self.initial_log_std, self.hidden)
        return self

    @property
    def own(self) -> dict[str, str]:
        """The functions of the user's own that make policy and critic, `module:name`, by the option that names them."""
        named = {name: getattr(self, name) for name in ("policy", "critic", "network", "critic_network")}
        return {name: value for name, value in named.items() if value is not None and value not in NETWORKS}

    @property
    def own_policy(self) -> str | None:
        """The function of the user's own without which policies in files can't be read; None where there is none."""
        return self.own.get("policy", self.own.get("network"))

    @property
    def style(self) -> GaussianStyle:
        """How the network's outputs become a Gaussian."""
        return GaussianStyle(self.state_dependent_std, self.tanh_squash, self.log_std_bounds, self.exploration)

    @property
    def layers(self) -> LayerOptions:
        """What the hidden layers do besides a product and an activation."""
        return LayerOptions(self.layer_norm, self.residual, self.initialization)


class NetworkPolicy(eqx.Module):
    """observation → encoder → dense layers → distribution: categorical for discrete actions, Gaussian for a box.

    The network's output is rescaled to the action box: 0 is the middle of the box and 1 its edge, and the standard
    deviation is `exp(log_std)` half-widths. Actions are in the environment's units.
    With `tanh_squash` the Gaussian is in half-widths from the middle, and tanh squashes its samples into the box.
    With `state_dependent_std` a second half of the network's outputs is added to `log_std`.
    With `log_std_bounds` the log standard deviation is clipped to them.
    With `exploration` = gsde `log_std` is that of the matrix W `[F, D]` of the noise Wᵀ φ, φ the F features of the last
    hidden layer, and the standard deviation of an action follows from both.
    It accepts one observation or any leading axes.
    """

    encoder: Encoder
    network: MLP
    log_std: Float[Array, "*F D"] | None
    observations: ObservationSpec = eqx.field(static=True)
    actions: ActionSpec = eqx.field(static=True)
    style: GaussianStyle = eqx.field(static=True)

    def __init__(
        self,
        observations: int | ObservationSpec,
        actions: ActionSpec,
        *,
        hidden: Sequence[int] = (64, 64),
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
        key: PRNGKeyArray,
    ) -> None:
        """A fresh policy.

        observations: the observation space; an integer n is short for n real numbers. actions: the action space.
        hidden: sizes of the hidden layers between features and outputs. activation: of the hidden layers.
        initial_log_std: initial log standard deviation of a Gaussian; the unit of σ is the half-width of the box.
        With gsde it is that of an action where the network's inputs are standard normal, as normalised observations
        about are: the elements of W start at exp(initial_log_std) / √E[Σ_j φ_j²].
        state_dependent_std, tanh_squash, log_std_bounds, exploration: as in `GaussianStyle`; for continuous actions
        only. layer_norm, residual, initialization: as in `LayerOptions`. network: of the pictures in observations, a
        name as `klimb.policies.architectures` has them; None for one that suits their size. encoder: your own, in place
        of that; None for klimb's. key: for the weights.

        Raises UnsupportedSpace for observations that are neither vectors nor pictures without an encoder, for
        `tanh_squash` in a box
        without bounds, and for any of these options with discrete actions; ConfigError for an initial standard
        deviation outside its bounds, and for gsde with `state_dependent_std` or without a hidden layer.
        """
        self.style = GaussianStyle(state_dependent_std, tanh_squash, log_std_bounds, exploration)
        self.style.require_valid(initial_log_std, hidden)
        outputs = actions.num_outputs(self.style)
        self.observations = _spec(observations)
        self.encoder = _encoder(self.observations, encoder, network, initialization, key)
        sizes = [self.encoder.num_features, *hidden, outputs]
        # Gain 0.01 of the last layer: the initial policy hardly depends on the random weights.
        layers = LayerOptions(layer_norm, residual, initialization)
        self.network = MLP(sizes, activation=activation, output_gain=0.01, key=key, layers=layers)
        free = actions.num_log_std
        if free and exploration == "gsde":
            typical = self.network.hidden(jax.random.normal(jax.random.fold_in(key, 1), (TYPICAL_INPUTS, sizes[0])))
            variance = jnp.mean(jnp.sum(jnp.square(typical), axis=-1))
            self.log_std = jnp.full((sizes[-2], free), initial_log_std - 0.5 * jnp.log(variance), float)
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
        return self._distribution(self.network.hidden(self.encoder(obs)), self.observations.mask(obs))

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

    def _distribution(self, features: Float[Array, "*batch F"], mask: Bool[Array, "*batch C"] | None) -> Distribution:
        log_std = self.log_std
        if self.style.exploration == "gsde":
            assert log_std is not None
            log_std = marginal_log_std(features, log_std)
        return self.actions.distribution(self.network.output(features), log_std, self.style, mask)

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

    def observe(self, obs: Num[Array, " B *obs"], weight: Float[Array, " B"]) -> tuple[NetworkPolicy, Rescaling | None]:
        """The same function with its encoder's statistics updated by a batch: see `Observing.observe`.

        obs: rows. weight: of every row; rows of weight 0 are left out.
        """
        return _observe(self, obs, weight)

    def within_bounds(self) -> NetworkPolicy:
        """The same function with a free log σ that a step has moved beyond a bound put back to it.

        Beyond a bound the gradient with respect to it is zero: without this, σ would stay at the bound forever. A log
        σ that depends on the state has no such parameter of its own, and stays as it is.
        """
        bounds, depends = self.style.log_std_bounds, self.style.state_dependent_std or self.held_noise is not None
        if bounds is None or depends or self.log_std is None:
            return self
        return eqx.tree_at(lambda policy: policy.log_std, self, jnp.clip(self.log_std, *bounds))

    def absorb(self, rescaling: Rescaling) -> NetworkPolicy:
        """The policy whose dense layers read features that were rescaled.

        rescaling: of the features.
        """
        return eqx.tree_at(lambda policy: policy.network, self, self.network.absorb(rescaling))


class Critic(eqx.Module):
    """State value V(s) of the policy being improved.

    The network's output is relative to the running mean and standard deviation of the value targets, so that one
    learning rate fits rewards of any scale. Updating these statistics leaves V(s) unchanged (PopArt, van Hasselt
    et al. 2016).
    """

    encoder: Encoder
    network: MLP
    target: Normalizer

    def __init__(
        self,
        observations: int | ObservationSpec,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        layer_norm: bool = False,
        residual: bool = False,
        initialization: Initialization = "orthogonal",
        network: str | None = None,
        encoder: Encoder | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh critic.

        observations: the observation space; an integer n is short for n real numbers. hidden: sizes of the hidden
        layers between features and value. activation: of the hidden layers. layer_norm, residual, initialization: as in
        `klimb.policies.layers.LayerOptions`. network, encoder: as for `NetworkPolicy`. key: for the weights.

        Raises UnsupportedSpace if the observations are neither vectors nor pictures and there is no encoder.
        """
        self.encoder = _encoder(_spec(observations), encoder, network, initialization, key)
        sizes = [self.encoder.num_features, *hidden, 1]
        layers = LayerOptions(layer_norm, residual, initialization)
        self.network = MLP(sizes, activation=activation, output_gain=1.0, key=key, layers=layers)
        self.target = Normalizer.identity(())

    def __call__(self, obs: Num[Array, "..."]) -> Float[Array, "..."]:
        return self.scaled(self.encoder.inputs(obs)) * self.target_scale + self.target.mean

    @property
    def target_scale(self) -> Float[Array, ""]:
        """Standard deviation of the value targets, at least √VARIANCE_FLOOR, in units of reward."""
        return jnp.sqrt(jnp.maximum(self.target.variance, VARIANCE_FLOOR))

    def scaled(self, inputs: Num[Array, "..."]) -> Float[Array, "..."]:
        """The value in units of the targets: before it is multiplied by `target_scale` and shifted.

        inputs: returned by `encoder.inputs`.
        """
        return self.network(self.encoder.features(inputs))[..., 0]

    def observe(self, obs: Num[Array, " B *obs"], weight: Float[Array, " B"]) -> tuple[Critic, Rescaling | None]:
        """The same function with its encoder's statistics updated by a batch: see `Observing.observe`.

        obs: rows. weight: of every row; rows of weight 0 are left out.
        """
        return _observe(self, obs, weight)

    def absorb(self, rescaling: Rescaling) -> Critic:
        """The critic whose dense layers read features that were rescaled.

        rescaling: of the features.
        """
        return eqx.tree_at(lambda critic: critic.network, self, self.network.absorb(rescaling))


Network = TypeVar("Network", NetworkPolicy, Critic)


def _observe(network: Network, obs: Array, weight: Array) -> tuple[Network, Rescaling | None]:
    """The network with a batch in its encoder's statistics; its dense layers absorb what that changes."""
    encoder, rescaling = network.encoder.observe(obs, weight)
    absorbed = network if rescaling is None else network.absorb(rescaling)
    return eqx.tree_at(lambda n: n.encoder, absorbed, encoder), rescaling


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


def _encoder(
    observations: ObservationSpec,
    given: Encoder | None,
    network: str | None,
    initialization: Initialization,
    key: PRNGKeyArray,
) -> Encoder:
    if given is not None:
        return given
    # Not the key of the dense layers.
    return encoder_of(observations, jax.random.fold_in(key, 2), network=network, initialization=initialization)


def _spec(observations: int | ObservationSpec) -> ObservationSpec:
    return BoxObservations((observations,)) if isinstance(observations, int) else observations
