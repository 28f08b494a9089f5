"""Policy and critic networks: separate multilayer perceptrons, so that the Fisher matrix is the policy's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from klimb.errors import UnsupportedSpace
from klimb.fields import STRICT, Width
from klimb.policies.actions import Box, Discrete
from klimb.policies.distributions import Categorical, DiagGaussian, Distribution, TanhGaussian
from klimb.policies.normalizer import Normalizer

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
    """observation → normaliser → MLP → distribution: categorical for discrete actions, diagonal Gaussian for a box.

    The Gaussian is in the environment's own units: the network's output 0 is the middle of the box and 1 its
    edge, and the standard deviation starts at `exp(log_std)` half-widths whatever the units are.
    With `tanh_squash` that Gaussian, in units of the half-width from the middle, goes through a tanh into the box.
    With `state_dependent_std` the network has a second half of outputs, which is added to `log_std`.
    Call it with one observation or with any leading axes.

    Raises UnsupportedSpace for `tanh_squash` in a box without bounds, and for either with discrete actions.
    """

    network: MLP
    log_std: Float[Array, " D"] | None
    normalizer: Normalizer
    actions: Discrete | Box = eqx.field(static=True)
    state_dependent_std: bool = eqx.field(static=True)
    tanh_squash: bool = eqx.field(static=True)

    def __init__(
        self,
        observation_size: int,
        actions: Discrete | Box,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
        tanh_squash: bool = False,
        key: PRNGKeyArray,
    ) -> None:
        _require_continuous(actions, state_dependent_std=state_dependent_std, tanh_squash=tanh_squash)
        if tanh_squash and isinstance(actions, Box):
            _require_bounds(actions)
        parameters = actions.n if isinstance(actions, Discrete) else len(actions.low)
        outputs = 2 * parameters if state_dependent_std else parameters
        # ×0.01 at the head: the first policy is close to uniform, so no action is preferred by accident.
        self.network = MLP([observation_size, *hidden, outputs], activation=activation, output_gain=0.01, key=key)
        self.log_std = None if isinstance(actions, Discrete) else jnp.full(parameters, initial_log_std, float)
        self.normalizer = Normalizer.identity((observation_size,))
        self.actions = actions
        self.state_dependent_std = state_dependent_std
        self.tanh_squash = tanh_squash

    def __call__(self, obs: Float[Array, "*batch obs_size"]) -> Distribution:
        output = self.network(self.normalizer(obs))
        if isinstance(self.actions, Discrete):
            return Categorical(logits=output)
        assert self.log_std is not None
        log_std = self.log_std
        if self.state_dependent_std:
            output, offset = jnp.split(output, 2, axis=-1)
            log_std = log_std + offset
        if self.tanh_squash:
            log_std = jnp.broadcast_to(log_std, output.shape)
            return TanhGaussian(mean=output, log_std=log_std, low=self.actions.low, high=self.actions.high)
        half_width = jnp.asarray(self.actions.half_width, output.dtype)
        mean = jnp.asarray(self.actions.center, output.dtype) + half_width * output
        return DiagGaussian(mean=mean, log_std=jnp.broadcast_to(log_std + jnp.log(half_width), mean.shape))


def _require_continuous(actions: Discrete | Box, **options: bool) -> None:
    for name, wanted in options.items():
        if wanted and isinstance(actions, Discrete):
            raise UnsupportedSpace(
                f"{name} is for continuous actions, and these are {actions.n} discrete ones: leave it off"
            )


def _require_bounds(actions: Box) -> None:
    for i, (low, high) in enumerate(zip(actions.low, actions.high, strict=True)):
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UnsupportedSpace(
                f"tanh_squash needs a bounded interval in every dimension of the actions, and dimension {i} is from "
                f"{low} to {high}: leave it off, or bound the actions with a Gymnasium wrapper"
            )


class Critic(eqx.Module):
    """State value V(s) of the policy being improved.

    The network works in units of the value targets' running mean and deviation, so that one learning rate
    fits rewards of any scale; rescaling leaves the function as it was (PopArt, van Hasselt et al. 2016).
    """

    network: MLP
    normalizer: Normalizer
    target: Normalizer

    def __init__(
        self,
        observation_size: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        key: PRNGKeyArray,
    ) -> None:
        self.network = MLP([observation_size, *hidden, 1], activation=activation, output_gain=1.0, key=key)
        self.normalizer = Normalizer.identity((observation_size,))
        self.target = Normalizer.identity(())

    def __call__(self, obs: Float[Array, "*batch obs_size"]) -> Float[Array, " *batch"]:
        return self.network(self.normalizer(obs))[..., 0] * self.target.scale + self.target.mean


def flat_observation_size(space: gymnasium.spaces.Space) -> int:
    """Number of inputs a network needs for this observation space. UnsupportedSpace when it is of another kind."""
    match space:
        case gymnasium.spaces.Box(shape=(size,)) if size:
            return int(size)
    raise UnsupportedSpace(
        f"the observation space {space} is not supported; klimb has one-dimensional Box observations "
        "(wrap the environment with gymnasium.wrappers.FlattenObservation)"
    )
