"""A network policy's decisions in NumPy: what a collector asks for at every step of a host environment.

A step of 16 environments costs a few tens of microseconds in NumPy, and several times that as a call into JAX, whose
own arithmetic would be as quick. Only the actions are decided here; their log-probs are computed with the rest of
the batch. The module imports no JAX: worker processes start with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class HostPolicySpec:
    """All of a `NetworkPolicy` but its numbers, as plain data.

    sizes: of the layers, from observations to outputs. low, high: the action box, empty for discrete actions.
    """

    sizes: tuple[int, ...]
    activation: str
    clip: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    state_dependent_std: bool
    tanh_squash: bool

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the numbers of one seed's policy, in order: normaliser, weights and biases by layer, log σ."""
        inputs = (self.sizes[0],)
        layers = [shape for i, o in zip(self.sizes[:-1], self.sizes[1:], strict=True) for shape in ((i, o), (o,))]
        return [inputs, inputs, *layers, *([(len(self.low),)] if self.low else [])]

    @property
    def size(self) -> int:
        """How many numbers one seed's policy has."""
        return sum(math.prod(shape) for shape in self.shapes)

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """The action box, `[D]` each."""
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    @cached_property
    def center(self) -> Array:
        """Middle of each bounded dimension, 0 where unbounded."""
        low, high = self._finite_bounds
        return (low + high) / 2

    @cached_property
    def half_width(self) -> Array:
        """Half the range of each bounded dimension, 1 where unbounded."""
        low, high = self._finite_bounds
        return np.where(self._bounded, (high - low) / 2, 1).astype(np.float32)

    @property
    def _bounded(self) -> Array:
        return np.isfinite(self.low) & np.isfinite(self.high)

    @property
    def _finite_bounds(self) -> tuple[Array, Array]:
        low, high = (np.where(self._bounded, bound, 0).astype(np.float32) for bound in self.bounds)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> HostPolicySpec:
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        return cls(**plain)


class HostPolicy:
    """Actions of K seeds' policies. `numbers` is `[K, spec.size]`."""

    def __init__(self, spec: HostPolicySpec, numbers: Array) -> None:
        self._spec, self._single = spec, len(numbers) == 1
        self._activate = ACTIVATIONS[spec.activation]
        parts, start = [], 0
        for shape in spec.shapes:
            part = numbers[:, start : start + math.prod(shape)].reshape(-1, *shape)
            start += math.prod(shape)
            # A single seed needs no axis of seeds; several broadcast a vector over their environments.
            parts.append(part[0] if self._single else part if len(shape) == 2 else part[:, None])
        self._mean, scale, *layers = parts
        self._inverse_scale = 1 / scale
        log_std = layers.pop() if spec.low else None
        self._layers = list(zip(layers[::2], layers[1::2], strict=True))
        if log_std is not None:
            self._std = np.exp(log_std) * (1 if spec.tanh_squash else spec.half_width)

    def __call__(self, obs: Array, noise: Array) -> tuple[Array, Array]:
        """obs `[K, n, O]` and noise `[K, n, *act]` ↦ the actions `[K, n, *act]`, and as the environment gets them."""
        spec = self._spec
        x = (obs[0] if self._single else obs) - self._mean
        x *= self._inverse_scale
        np.minimum(np.maximum(x, -spec.clip, out=x), spec.clip, out=x)
        for weight, bias in self._layers[:-1]:
            x = x @ weight
            x += bias
            x = self._activate(x)
        weight, bias = self._layers[-1]
        output = x @ weight
        output += bias
        if self._single:
            output = output[None]
        return self._discrete(output, noise) if not spec.low else self._continuous(output, noise)

    def _discrete(self, logits: Array, noise: Array) -> tuple[Array, Array]:
        """As `Categorical.sample_from`: the cumulative sum, inverted."""
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        cumulative = np.cumsum(probs, axis=-1)
        action = (cumulative <= noise[..., None] * cumulative[..., -1:]).sum(-1, dtype=np.int32)
        return action, action

    def _continuous(self, output: Array, noise: Array) -> tuple[Array, Array]:
        """As `NetworkPolicy` makes its Gaussian of the network's output, and `sample_from` an action of that."""
        spec, std = self._spec, self._std
        if spec.state_dependent_std:
            output, offset = np.split(output, 2, axis=-1)
            std = std * np.exp(offset)
        if spec.tanh_squash:
            action = output + std * noise
            taken = spec.center + spec.half_width * np.tanh(action)
        else:
            action = taken = spec.center + spec.half_width * output + std * noise
        return action, np.minimum(np.maximum(taken, spec.bounds[0]), spec.bounds[1])
