"""A network policy's decisions in NumPy: what a collector asks for at every step of a host environment.

A step of 16 environments costs a few tens of microseconds in NumPy, and several times that as a call into JAX, whose
own arithmetic would be as quick. Only the actions are decided here; their log-probs are computed with the rest of
the batch. The module imports no JAX: worker processes start with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from klimb.policies.action_spec import EXPLORATION_VARIANCE, ActionSpec, GaussianStyle
from klimb.policies.actions import actions_from_json
from klimb.policies.layers import LAYER_NORM_FLOOR, MemoryKind

Array = np.ndarray


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Array) -> Array:
    # tanh does not overflow where exp(−x) would.
    return 0.5 * x * (1 + np.tanh(0.5 * x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": _silu,
    "gelu": _gelu,
}


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class GRUCell:
    """As `klimb.policies.recurrent.GRU`. The arguments are its parameters."""

    gates = 3
    has_reset_bias = True

    def __init__(self, weight: Array, recurrent: Array, bias: Array, reset_bias: Array) -> None:
        self._weight, self._recurrent, self._bias, self._reset_bias = weight, recurrent, bias, reset_bias
        self._size = reset_bias.shape[-1]

    def __call__(self, x: Array, h: Array) -> Array:
        """What is remembered after a step. x: `[..., F]`. h: what was remembered before it."""
        size = self._size
        projected = x @ self._weight
        projected += self._bias
        recurrent = h @ self._recurrent
        gates = _sigmoid(projected[..., : 2 * size] + recurrent[..., : 2 * size])
        reset, update = gates[..., :size], gates[..., size:]
        n = np.tanh(projected[..., 2 * size :] + reset * (recurrent[..., 2 * size :] + self._reset_bias))
        return n + update * (h - n)

    def units(self, carry: Array) -> Array:
        """What the dense layers read. carry: what is remembered."""
        return carry


class LSTMCell:
    """As `klimb.policies.recurrent.LSTM`. The arguments are its parameters."""

    gates = 4
    has_reset_bias = False

    def __init__(self, weight: Array, recurrent: Array, bias: Array) -> None:
        self._weight, self._recurrent, self._bias = weight, recurrent, bias
        self._size = bias.shape[-1] // 4

    def __call__(self, x: Array, carry: Array) -> Array:
        """What is remembered after a step. x: `[..., F]`. carry: h and c, what was remembered before it."""
        size = self._size
        total = x @ self._weight
        total += carry[..., :size] @ self._recurrent
        total += self._bias
        gates = _sigmoid(total)
        c = gates[..., size : 2 * size] * carry[..., size:]
        c += gates[..., :size] * np.tanh(total[..., 2 * size : 3 * size])
        return np.concatenate([gates[..., 3 * size :] * np.tanh(c), c], axis=-1)

    def units(self, carry: Array) -> Array:
        """What the dense layers read. carry: what is remembered."""
        return carry[..., : self._size]


Cell = GRUCell | LSTMCell
CELLS: dict[MemoryKind, type[GRUCell] | type[LSTMCell]] = {"gru": GRUCell, "lstm": LSTMCell}


@dataclass(frozen=True)
class NumpyPolicySpec:
    """A `NetworkPolicy` without its parameters, as plain data.

    sizes: of the layers, from observations to outputs. columns: which numbers of an observation are read; None for the
    first ones. mask_start: where in an observation the action mask begins; None where there is none. layer_norm,
    residual: as in `klimb.policies.layers.LayerOptions`. inputs: numbers that are read. memory: kind of its recurrent
    layer, whose units the first dense layer reads; None for none.
    """

    sizes: tuple[int, ...]
    activation: str
    clip: float
    actions: ActionSpec
    style: GaussianStyle
    columns: tuple[int, ...] | None = None
    mask_start: int | None = None
    layer_norm: bool = False
    residual: bool = False
    inputs: int | None = None
    memory: MemoryKind | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of one seed's parameters, in order: mean and scale of the normaliser, what the recurrent layer has, weights
        and biases by layer, scales and offsets of its normalisation by layer, log σ."""
        inputs: tuple[int, ...] = (self.sizes[0] if self.inputs is None else self.inputs,)
        before = [inputs, inputs, *self._of_memory(*inputs)]
        layers = [shape for i, o in zip(self.sizes[:-1], self.sizes[1:], strict=True) for shape in ((i, o), (o,))]
        if self.layer_norm:
            layers += [(size,) for size in self.sizes[1:-1] for _ in range(2)]
        free = self.actions.num_log_std
        if self.style.exploration == "gsde":
            return [*before, *layers, (self.sizes[-2], free)]
        return [*before, *layers, *([(free,)] if free else [])]

    def _of_memory(self, inputs: int) -> list[tuple[int, ...]]:
        if self.memory is None:
            return []
        units, cell = self.sizes[0], CELLS[self.memory]
        gates = cell.gates * units
        return [(inputs, gates), (units, gates), (gates,), *([(units,)] if cell.has_reset_bias else [])]

    @property
    def size(self) -> int:
        """Parameters of one seed's policy, in numbers of four bytes."""
        return sum(math.prod(shape) for shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sizes": self.sizes,
            "activation": self.activation,
            "clip": self.clip,
            "actions": self.actions.to_json(),
            "style": self.style.to_json(),
            "columns": self.columns,
            "mask_start": self.mask_start,
            "layer_norm": self.layer_norm,
            "residual": self.residual,
            "inputs": self.inputs,
            "memory": self.memory,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NumpyPolicySpec:
        """The inverse of `to_dict`."""
        return cls(
            tuple(fields["sizes"]),
            fields["activation"],
            fields["clip"],
            actions_from_json(fields["actions"]),
            GaussianStyle.from_json(fields["style"]),
            None if fields["columns"] is None else tuple(fields["columns"]),
            fields["mask_start"],
            fields["layer_norm"],
            fields["residual"],
            fields["inputs"],
            fields["memory"],
        )

    def decider(self, parameters: Array) -> NumpyPolicy:
        """The decisions of K seeds' policies. parameters: `[K, size]` float32."""
        return NumpyPolicy(self, parameters)


class NumpyPolicy:
    """Actions of K seeds' policies."""

    def __init__(self, spec: NumpyPolicySpec, parameters: Array) -> None:
        """parameters: `[K, spec.size]` float32, in the order of `spec.shapes`."""
        self._clip, self._single = spec.clip, len(parameters) == 1
        self._mask_start = spec.mask_start
        self._columns: slice | Array | None = None
        if spec.columns is not None:
            self._columns = np.array(spec.columns)
        elif spec.mask_start is not None:
            self._columns = slice(spec.mask_start)
        self._activate = ACTIVATIONS[spec.activation]
        parts, start = [], 0
        for shape in spec.shapes:
            part = parameters[:, start : start + math.prod(shape)].reshape(-1, *shape)
            start += math.prod(shape)
            # A single seed needs no axis of seeds; several broadcast a vector over their environments.
            parts.append(part[0] if self._single else part if len(shape) == 2 else part[:, None])
        self._mean, scale, *layers = parts
        self._inverse_scale = 1 / scale
        self._cell: Cell | None = None
        if spec.memory is not None:
            kind = CELLS[spec.memory]
            count = 3 + kind.has_reset_bias
            self._cell, layers = kind(*layers[:count]), layers[count:]
        log_std = layers.pop() if spec.actions.num_log_std else None
        self._matrix_std: Array | None = None
        if spec.style.exploration == "gsde":
            assert log_std is not None
            self._matrix_std = np.exp(log_std)
            # log σ is computed from the features, and handed over as that of a network that has outputs for it.
            log_std, style = np.zeros(spec.actions.num_log_std, np.float32), _with_std_outputs(spec.style)
            self._sample = spec.actions.numpy_sampler(log_std, style)
        else:
            self._sample = spec.actions.numpy_sampler(log_std, spec.style)
        count = len(spec.sizes) - 1
        dense, norms = layers[: 2 * count], layers[2 * count :]
        self._layers = list(zip(dense[::2], dense[1::2], strict=True))
        self._norms = list(zip(norms[::2], norms[1::2], strict=True)) if spec.layer_norm else None
        self._adds = [spec.residual and i == o for i, o in itertools.pairwise(spec.sizes)]

    def __call__(self, obs: Array, noise: Array, carry: Array) -> tuple[Array, Array, Array]:
        """The actions `[K, n, *act]`, as the environment gets them, and what is remembered after the step.

        obs: `[K, n, O]`, with the action mask at its end if there is one. noise: `[K, n, *act]`, as the distribution
        draws it; with gSDE `[K, n, F + 1, D]`, as `NetworkPolicy.explore` takes it. carry: `[K, n, C]`.
        """
        mask = None if self._mask_start is None else obs[..., self._mask_start :] > 0.5
        if self._columns is not None:
            obs = obs[..., self._columns]
        x = (obs[0] if self._single else obs) - self._mean
        x *= self._inverse_scale
        np.minimum(np.maximum(x, -self._clip, out=x), self._clip, out=x)
        if self._cell is not None:
            remembered = self._cell(x, carry[0] if self._single else carry)
            x, carry = self._cell.units(remembered), remembered[None] if self._single else remembered
        for layer, (weight, bias) in enumerate(self._layers[:-1]):
            units = x @ weight
            units += bias
            if self._norms is not None:
                units = _normalised(units, *self._norms[layer])
            units = self._activate(units)
            x = x + units if self._adds[layer] else units
        weight, bias = self._layers[-1]
        output = x @ weight
        output += bias
        if self._matrix_std is not None:
            log_std, noise = self._explore(x, noise[0] if self._single else noise)
            output, noise = np.concatenate([output, log_std], axis=-1), noise[None] if self._single else noise
        action, taken = self._sample(output[None] if self._single else output, noise, mask)
        return action, taken, carry

    def _explore(self, features: Array, held: Array) -> tuple[Array, Array]:
        """log σ and standard normal noise of gSDE, as `klimb.policies.exploration` has them.

        features: `[n, F]`, with several seeds `[K, n, F]`. held: with the same leading axes, `[..., F + 1, D]`.
        """
        assert self._matrix_std is not None
        floor = np.float32(EXPLORATION_VARIANCE)
        variance = np.square(features) @ np.square(self._matrix_std) + floor
        scaled = features[..., None] * np.expand_dims(self._matrix_std, -3)
        total = (scaled * held[..., :-1, :]).sum(-2) + np.sqrt(floor) * held[..., -1, :]
        std = np.sqrt(variance)
        return np.log(std), total / std


def _normalised(x: Array, scale: Array, offset: Array) -> Array:
    """As `klimb.policies.networks.LayerNorm`."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(LAYER_NORM_FLOOR)) * scale + offset


def _with_std_outputs(style: GaussianStyle) -> GaussianStyle:
    return style._replace(state_dependent_std=True, exploration="independent")
