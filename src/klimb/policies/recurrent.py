"""Recurrent layers: what networks remember from one step to the next.

klimb has its own, and not Equinox's cells, because the products with the inputs of all steps are one product here, and
because a normaliser's change is absorbed by the first layer behind it.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from klimb.policies.layers import Initialization, MemoryKind
from klimb.policies.normalizer import Rescaling
from klimb.policies.weights import INITIALIZATIONS
from klimb.precision import full_precision


class RecurrentLayer(eqx.Module):
    """Reads a feature vector at every step, and remembers C numbers; its H units are the first of them.

    Axes: F features, H units, Z = gates·H.
    """

    gates: ClassVar[int]
    """Blocks of H columns in the weights."""
    states: ClassVar[int]
    """C / H."""

    input_weight: Float[Array, "F Z"]
    recurrent_weight: Float[Array, "H Z"]
    bias: Float[Array, " Z"]
    inputs: int = eqx.field(static=True)
    """F, known without the arrays."""
    size: int = eqx.field(static=True)
    """H."""

    def __init__(
        self, num_features: int, size: int, *, initialization: Initialization = "orthogonal", key: PRNGKeyArray
    ) -> None:
        """A fresh layer.

        num_features: F. size: H. initialization: of the weights of every gate, with gain 1. key: for the weights.
        """
        make = INITIALIZATIONS[initialization]
        keys = jax.random.split(key, (2, self.gates))
        self.input_weight = jnp.concatenate([make(k, num_features, size) for k in keys[0]], axis=1)
        self.recurrent_weight = jnp.concatenate([make(k, size, size) for k in keys[1]], axis=1)
        self.bias = self._initial_bias(size)
        self.inputs, self.size = num_features, size

    @property
    def carry_size(self) -> int:
        """C."""
        return self.states * self.size

    @abc.abstractmethod
    def _initial_bias(self, size: int) -> Float[Array, " Z"]: ...

    @abc.abstractmethod
    def _advance(self, projected: Float[Array, "*batch Z"], carry: Float[Array, "*batch C"]) -> Array:
        """What is remembered after a step. projected: of the features of the step. carry: before it."""

    def __call__(self, features: Float[Array, "*batch F"], carry: Float[Array, "*batch C"]) -> Array:
        """What is remembered after a step, `[*batch, C]`.

        features: of the step. carry: what was remembered before it.
        """
        return self._advance(self._project(features), carry)

    @full_precision
    def over_time(
        self, features: Float[Array, "L S F"], carry: Float[Array, "S C"], begins: Bool[Array, "L S"]
    ) -> Float[Array, "L S C"]:
        """What is remembered after every step of sequences.

        features: of the steps. carry: what was remembered before the first. begins: before which steps everything is
        forgotten.
        """

        def step(carry: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            """carry: before the step. row: projected features, and where everything is forgotten."""
            projected, begin = row
            carry = self._advance(projected, jnp.where(begin[:, None], 0, carry))
            return carry, carry

        return jax.lax.scan(step, carry, (self._project(features), begins))[1]

    def units(self, carry: Float[Array, "*batch C"]) -> Float[Array, "*batch H"]:
        """What the layers behind it read. carry: what is remembered after the step."""
        return carry[..., : self.size]

    def absorb(self, rescaling: Rescaling) -> RecurrentLayer:
        """The layer that computes from the new features what this one computes from the old ones.

        rescaling: of the features, `[F]`.
        """
        weight, bias = self.input_weight, self.bias
        changed = (rescaling.scale[:, None] * weight, bias + rescaling.shift @ weight)
        return eqx.tree_at(lambda layer: (layer.input_weight, layer.bias), self, changed)

    @full_precision
    def _project(self, features: Float[Array, "*batch F"]) -> Float[Array, "*batch Z"]:
        return features @ self.input_weight + self.bias

    @full_precision
    def _recur(self, units: Float[Array, "*batch H"]) -> Float[Array, "*batch Z"]:
        return units @ self.recurrent_weight


class GRU(RecurrentLayer):
    """Gated recurrent units (Cho et al. 2014), with the reset gate behind the product, as PyTorch and Equinox have it.

    r = σ(W_r x + U_r h + b_r), z = σ(W_z x + U_z h + b_z), n = tanh(W_n x + b_n + r (U_n h + c)),
    h' = n + z (h − n). Gates in the order r, z, n; it remembers h. The bias of z starts at 1, so that little is
    forgotten at first, as in an LSTM.
    """

    gates = 3
    states = 1
    reset_bias: Float[Array, " H"]
    """c."""

    def __init__(
        self, num_features: int, size: int, *, initialization: Initialization = "orthogonal", key: PRNGKeyArray
    ) -> None:
        super().__init__(num_features, size, initialization=initialization, key=key)
        self.reset_bias = jnp.zeros(size)

    def _initial_bias(self, size: int) -> Float[Array, " Z"]:
        return jnp.zeros(3 * size).at[size : 2 * size].set(1)

    def _advance(self, projected: Float[Array, "*batch Z"], carry: Float[Array, "*batch C"]) -> Array:
        h, size = carry, self.size
        recurrent = self._recur(h)
        gates = jax.nn.sigmoid(projected[..., : 2 * size] + recurrent[..., : 2 * size])
        r, z = gates[..., :size], gates[..., size:]
        n = jnp.tanh(projected[..., 2 * size :] + r * (recurrent[..., 2 * size :] + self.reset_bias))
        return n + z * (h - n)


class LSTM(RecurrentLayer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000).

    i, f, o = σ(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f c + i g, h' = o tanh(c'). Gates in the order i, f,
    g, o; it remembers h and c. The bias of f starts at 1, so that little is forgotten at first (Jozefowicz et al.
    2015).
    """

    gates = 4
    states = 2

    def _initial_bias(self, size: int) -> Float[Array, " Z"]:
        return jnp.zeros(4 * size).at[size : 2 * size].set(1)

    def _advance(self, projected: Float[Array, "*batch Z"], carry: Float[Array, "*batch C"]) -> Array:
        size = self.size
        h, c = carry[..., :size], carry[..., size:]
        total = projected + self._recur(h)
        i, f, g, o = (total[..., k * size : (k + 1) * size] for k in range(4))
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], axis=-1)


RECURRENT_LAYERS: dict[MemoryKind, type[RecurrentLayer]] = {"gru": GRU, "lstm": LSTM}


def kind_of(layer: RecurrentLayer | None) -> MemoryKind | None:
    """The name of a layer of klimb's own; None for none, and for one of another class.

    layer: with or without its arrays.
    """
    return next((kind for kind, own in RECURRENT_LAYERS.items() if type(layer) is own), None)
