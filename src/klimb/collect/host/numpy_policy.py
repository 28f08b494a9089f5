"""A network policy's decisions in NumPy: what a collector asks for at every step of a host environment.

A step of 16 environments costs a few tens of microseconds in NumPy, and several times that as a call into JAX, whose
own arithmetic would be as quick. Only the actions are decided here; their log-probs are computed with the rest of
the batch. The module imports no JAX: worker processes start with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from klimb.policies.actions import Box, Discrete

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
    """All of a `NetworkPolicy` but its numbers, as plain data. sizes: of the layers, from observations to outputs."""

    sizes: tuple[int, ...]
    activation: str
    clip: float
    actions: Discrete | Box
    state_dependent_std: bool
    tanh_squash: bool

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the numbers of one seed's policy, in order: normaliser, weights and biases by layer, log σ."""
        inputs = (self.sizes[0],)
        layers = [shape for i, o in zip(self.sizes[:-1], self.sizes[1:], strict=True) for shape in ((i, o), (o,))]
        return [inputs, inputs, *layers, *([(len(self.actions.low),)] if isinstance(self.actions, Box) else [])]

    @property
    def size(self) -> int:
        """How many numbers one seed's policy has."""
        return sum(math.prod(shape) for shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> HostPolicySpec:
        """The inverse of `to_dict`."""
        actions = fields["actions"]
        spec = Discrete(actions["n"]) if "n" in actions else Box(tuple(actions["low"]), tuple(actions["high"]))
        return cls(**{**fields, "sizes": tuple(fields["sizes"]), "actions": spec})


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
        box = spec.actions
        if isinstance(box, Box):
            self._low, self._high, self._center, self._half_width = (
                np.asarray(x, np.float32) for x in (box.low, box.high, box.center, box.half_width)
            )
            self._std = np.exp(layers.pop()) * (1 if spec.tanh_squash else self._half_width)
        self._layers = list(zip(layers[::2], layers[1::2], strict=True))

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
        return self._continuous(output, noise) if isinstance(spec.actions, Box) else self._discrete(output, noise)

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
            taken = self._center + self._half_width * np.tanh(action)
        else:
            action = taken = self._center + self._half_width * output + std * noise
        return action, np.minimum(np.maximum(taken, self._low), self._high)
