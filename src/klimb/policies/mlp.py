"""The dense layers of policies and critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.policies.layers import LAYER_NORM_FLOOR, PLAIN, LayerOptions
from klimb.policies.normalizer import Rescaling
from klimb.policies.weights import INITIALIZATIONS
from klimb.precision import full_precision

Activation = Literal["tanh", "relu", "silu", "gelu"]
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": jax.nn.gelu}


class LayerNorm(eqx.Module):
    """(x − mean) / std over the units of a layer, times a scale, plus an offset (Ba et al. 2016)."""

    scale: Float[Array, " fan_out"]
    offset: Float[Array, " fan_out"]

    def __call__(self, x: Float[Array, "*batch fan_out"]) -> Float[Array, "*batch fan_out"]:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + LAYER_NORM_FLOOR) * self.scale + self.offset


class MLP(eqx.Module):
    """Fully connected layers over the last axis, with any leading axes. Zero biases.

    Layer sizes `sizes[0] → … → sizes[-1]`. Weights are orthogonal by default; the gain is √2 for hidden layers and
    `output_gain` for the last one (Engstrom et al. 2020 and Andrychowicz et al. 2021 found that both matter more than
    the algorithm).
    """

    weights: tuple[Float[Array, "fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]
    norms: tuple[LayerNorm, ...]
    activation: Activation = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    residual: bool = eqx.field(static=True, default=False)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation,
        output_gain: float,
        key: PRNGKeyArray,
        layers: LayerOptions = PLAIN,
    ) -> None:
        count = len(sizes) - 1
        gains = [2.0**0.5] * (count - 1) + [output_gain]
        keys = jax.random.split(key, count)
        make = INITIALIZATIONS[layers.initialization]
        self.weights = tuple(
            gain * make(k, fan_in, fan_out)
            for k, gain, fan_in, fan_out in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
        )
        self.biases = tuple(jnp.zeros(fan_out) for fan_out in sizes[1:])
        hidden = sizes[1:-1] if layers.layer_norm else ()
        self.norms = tuple(LayerNorm(jnp.ones(size), jnp.zeros(size)) for size in hidden)
        self.activation = activation
        self.sizes = tuple(sizes)
        self.residual = layers.residual

    def __call__(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
        return self.output(self.hidden(x))

    @full_precision
    def hidden(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch F"]:
        """The features of the last hidden layer; x itself where there is none."""
        for number in range(len(self.weights) - 1):
            x = self._activated(number, x, x @ self.weights[number] + self.biases[number])
        return x

    @full_precision
    def probed(
        self, x: Float[Array, "*batch fan_in"], nudges: Sequence[Float[Array, "*batch _"]]
    ) -> tuple[Float[Array, "*batch F"], Float[Array, "*batch fan_out"], list[Float[Array, "*batch _"]]]:
        """The features, the outputs, and what every layer reads, with `nudges` added to what every layer computes.

        Derivatives with respect to nudges of 0, and the layers' inputs, make the derivatives with respect to the
        weights of every row: input ⊗ derivative.

        nudges: one of every layer, added to x W + b.
        """
        inputs = []
        for number, nudge in enumerate(nudges[:-1]):
            inputs.append(x)
            x = self._activated(number, x, x @ self.weights[number] + self.biases[number] + nudge)
        return x, self.output(x) + nudges[-1], [*inputs, x]

    def _activated(
        self, number: int, x: Float[Array, "*batch fan_in"], units: Float[Array, "*batch fan_out"]
    ) -> Float[Array, "*batch fan_out"]:
        """What a hidden layer gives. number: of the layer. x: that it reads. units: x W + b."""
        units = ACTIVATIONS[self.activation](self.norms[number](units) if self.norms else units)
        return x + units if self.residual and x.shape == units.shape else units

    @full_precision
    def output(self, features: Float[Array, "*batch F"]) -> Float[Array, "*batch fan_out"]:
        """The last layer. features: of the last hidden layer."""
        return features @ self.weights[-1] + self.biases[-1]

    def absorb(self, rescaling: Rescaling) -> MLP:
        """The layers that compute from the new features what these compute from the old ones.

        W' = diag(scale) W and b' = b + shift W in the first layer.

        rescaling: of the features, `[fan_in]`.
        """
        weight, bias = self.weights[0], self.biases[0]
        first = (rescaling.scale[:, None] * weight, bias + rescaling.shift @ weight)
        return eqx.tree_at(lambda mlp: (mlp.weights[0], mlp.biases[0]), self, first)
