"""Policy and critic networks: an encoder and a perceptron each, separate, so that the Fisher matrix is the policy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from klimb.fields import STRICT, Name, Width
from klimb.policies.action_spec import ActionSpec, GaussianStyle
from klimb.policies.distributions import Distribution
from klimb.policies.encoders import Encoder, FlatEncoder
from klimb.policies.normalizer import Normalizer
from klimb.policies.observations import BoxObservations, ObservationSpec

Activation = Literal["tanh", "relu", "silu", "gelu"]
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": jax.nn.gelu}


@dataclass(frozen=True, config=STRICT)
class NetworkOptions:
    """The networks that are made for a run, where it is not given others."""

    normalize_observations: bool = True
    """Scale observations by their running mean and standard deviation, kept inside the policy."""
    hidden: Annotated[tuple[Width, ...], Field(max_length=16)] = (64, 64)
    """Hidden layer sizes of the policy, and of the critic unless critic_hidden says otherwise."""
    critic_hidden: Annotated[tuple[Width, ...], Field(max_length=16)] | None = None
    """Hidden layer sizes of the critic; none for those of the policy."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    initial_log_std: float = 0.0
    """Log standard deviation of the first Gaussian policy, in half-widths of the action box."""
    state_dependent_std: bool = False
    """Let the network say the standard deviation in each state; continuous actions only."""
    tanh_squash: bool = False
    """Squash the Gaussian by tanh into the action box instead of clipping what is outside; bounded boxes only."""
    policy: Name | None = None
    """A function of your own, module:name, that makes the policy: (observations, actions, key) -> policy."""
    critic: Name | None = None
    """A function of your own, module:name, that makes the critic: (observations, key) -> critic."""


class MLP(eqx.Module):
    """Fully connected layers over the last axis; any leading axes. Orthogonal weights, zero biases.

    Layer sizes `sizes[0] → … → sizes[-1]`; hidden gain √2 and `output_gain` at the end (Engstrom et al. 2020
    and Andrychowicz et al. 2021 found both to matter more than the algorithm).
    """

    weights: tuple[Float[Array, "fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]
    activation: Activation = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, sizes: Sequence[int], *, activation: Activation, output_gain: float, key: PRNGKeyArray) -> None:
        layers = len(sizes) - 1
        gains = [2.0**0.5] * (layers - 1) + [output_gain]
        keys = jax.random.split(key, layers)
        self.weights = tuple(
            gain * orthogonal(k, fan_in, fan_out)
            for k, gain, fan_in, fan_out in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
        )
        self.biases = tuple(jnp.zeros(fan_out) for fan_out in sizes[1:])
        self.activation = activation
        self.sizes = tuple(sizes)

    def __call__(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
        activate = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = activate(x @ weight + bias)
        return x @ self.weights[-1] + self.biases[-1]


def orthogonal(key: PRNGKeyArray, fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
    """A uniformly random matrix with orthonormal columns (rows, when there are fewer of them).

    Gram-Schmidt on a Gaussian matrix, twice over so that rounding does not add up: the Q of its QR
    factorisation, written in plain operations because LAPACK's QR must not be vmapped over seeds. On the CPU
    of JAX 0.10 a batched factorisation waits, on XLA's own worker threads, for work queued to those same
    threads; with two of them in one program on two cores it waits for ever.
    """
    long, short = max(fan_in, fan_out), min(fan_in, fan_out)
    columns = jax.random.normal(key, (short, long))

    def orthonormalise(j: Array, basis: Array) -> Array:
        # Rows of `basis` after j are still zero, so projecting on all of them is projecting on the first j.
        vector = columns[j]
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
        return basis.at[j].set(vector / jnp.linalg.norm(vector))

    basis = jax.lax.fori_loop(0, short, orthonormalise, jnp.zeros_like(columns))
    return basis if fan_in <= fan_out else basis.T


class NetworkPolicy(eqx.Module):
    """observation → encoder → perceptron → distribution: categorical for discrete actions, diagonal Gaussian for a box.

    The Gaussian is in the environment's own units: the network's output 0 is the middle of the box and 1 its
    edge, and the standard deviation starts at `exp(log_std)` half-widths whatever the units are.
    With `tanh_squash` that Gaussian, in units of the half-width from the middle, goes through a tanh into the box.
    With `state_dependent_std` the network has a second half of outputs, which is added to `log_std`.
    Call it with one observation or with any leading axes.
    """

    encoder: Encoder
    network: MLP
    log_std: Float[Array, " D"] | None
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
        encoder: Encoder | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh policy.

        observations: what it reads; a number stands for so many real inputs. actions: what it decides.
        hidden: sizes of the hidden layers between features and outputs. activation: of these.
        initial_log_std: log standard deviation of the first Gaussian, in half-widths of the box.
        state_dependent_std, tanh_squash: for continuous actions only.
        encoder: one of your own; None for the one of flat observations. key: for the weights.

        Raises UnsupportedSpace for observations that are not flat without an encoder, for `tanh_squash` in a box
        without bounds, and for either option with discrete actions.
        """
        self.style = GaussianStyle(state_dependent_std, tanh_squash)
        outputs = actions.num_outputs(self.style)
        self.observations = _spec(observations)
        self.encoder = FlatEncoder.of(self.observations) if encoder is None else encoder
        sizes = [self.encoder.num_features, *hidden, outputs]
        # ×0.01 at the head: the first policy is close to uniform, so no action is preferred by accident.
        self.network = MLP(sizes, activation=activation, output_gain=0.01, key=key)
        free = actions.num_log_std
        self.log_std = jnp.full(free, initial_log_std, float) if free else None
        self.actions = actions

    def __call__(self, obs: Float[Array, "..."]) -> Distribution:
        return self.actions.distribution(self.network(self.encoder(obs)), self.log_std, self.style)

    def observe(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> NetworkPolicy:
        """The same policy with a batch of observations taken into its statistics; rows of weight 0 are left out."""
        return eqx.tree_at(lambda policy: policy.encoder, self, self.encoder.observe(obs, weight))


class Critic(eqx.Module):
    """State value V(s) of the policy being improved.

    The network works in units of the value targets' running mean and standard deviation, so that one learning rate
    fits rewards of any scale; rescaling leaves the function as it was (PopArt, van Hasselt et al. 2016).
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
        encoder: Encoder | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """A fresh critic.

        observations: what it reads; a number stands for so many real inputs. hidden, activation: of the layers
        between features and value. encoder: one of your own; None for the one of flat observations. key: for the
        weights. Raises UnsupportedSpace for observations that are not flat without an encoder.
        """
        self.encoder = FlatEncoder.of(_spec(observations)) if encoder is None else encoder
        sizes = [self.encoder.num_features, *hidden, 1]
        self.network = MLP(sizes, activation=activation, output_gain=1.0, key=key)
        self.target = Normalizer.identity(())

    def __call__(self, obs: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.scaled(self.encoder.inputs(obs)) * self.target.scale + self.target.mean

    def scaled(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The value in units of the targets, from what `encoder.inputs` has made of observations."""
        return self.network(self.encoder.features(inputs))[..., 0]

    def observe(self, obs: Float[Array, " B *obs"], weight: Float[Array, " B"]) -> Critic:
        """The same critic with a batch of observations taken into its statistics; rows of weight 0 are left out."""
        return eqx.tree_at(lambda critic: critic.encoder, self, self.encoder.observe(obs, weight))


class FunctionEncoder(Encoder):
    """A critic of one's own, a pytree that maps one observation to a number, as an encoder with a single feature."""

    function: Callable[[Array], Array]

    @property
    def num_features(self) -> int:
        return 1

    def features(self, inputs: Float[Array, "..."]) -> Float[Array, " 1"]:
        return jnp.reshape(self.function(inputs), (1,))


def as_critic(critic: Any) -> Critic:
    """A critic, or any pytree that maps one observation to a number made one.

    Its value is scaled and shifted by two numbers of klimb's, which follow the targets' running mean and standard
    deviation and are trained with it.
    """
    if isinstance(critic, Critic):
        return critic
    wrapped = Critic(1, hidden=(), encoder=FunctionEncoder(critic), key=jax.random.key(0))
    return eqx.tree_at(lambda c: c.network.weights, wrapped, (jnp.ones((1, 1)),))


def state_values(critic: Critic, obs: Float[Array, "T N *obs"]) -> Float[Array, "T N"]:
    """V of a rollout's observations. The critic is called with one observation at a time, under vmap."""
    return jax.vmap(jax.vmap(critic))(obs)


def _spec(observations: int | ObservationSpec) -> ObservationSpec:
    return BoxObservations((observations,)) if isinstance(observations, int) else observations
