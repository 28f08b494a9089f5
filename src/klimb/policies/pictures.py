"""Encoders of pictures: the convolutional networks of three papers, and pictures as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from klimb.errors import ConfigError
from klimb.policies.encoders import Encoder
from klimb.policies.layers import Initialization
from klimb.policies.picture_observations import PictureObservations
from klimb.policies.weights import INITIALIZATIONS
from klimb.precision import full_precision

HIDDEN_GAIN = 2.0**0.5
ROWS_AT_ONCE = 32
"""Of 84 × 84 pictures, whose patches are then a few MB: evaluating `nature` takes less than half of the time."""


class Convolution(eqx.Module):
    """A convolution with a bias. Axes: H, W of the input, h, w of the output, I input and O output channels.

    stride: in both directions. padded: whether zeros around the picture keep its size; else only whole windows count.
    """

    kernel: Float[Array, "high wide I O"]
    bias: Float[Array, " O"]
    stride: int = eqx.field(static=True)
    padded: bool = eqx.field(static=True)

    @full_precision
    def __call__(self, x: Float[Array, "*batch H W I"]) -> Float[Array, "*batch h w O"]:
        if self.padded:
            before, after = zip(*(((n - 1) // 2, n // 2) for n in self.kernel.shape[:2]), strict=True)
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(before[0], after[0]), (before[1], after[1]), (0, 0)])
        convolved = products_of_patches if jax.default_backend() == "cpu" else convolution
        return convolved(x, self.kernel, self.stride) + self.bias


# Patches are many times as large as the picture: they are made again for derivatives, which takes no longer than
# reading them again would.
@partial(jax.checkpoint, static_argnums=2)
def products_of_patches(
    x: Float[Array, "*batch H W I"], kernel: Float[Array, "high wide I O"], stride: int
) -> Float[Array, "*batch h w O"]:
    """A convolution as one product of matrices: on CPUs, where XLA's own convolution takes twice the time.

    x: the input. kernel: the weights. stride: in both directions.
    """
    patches = jnp.concatenate(list(windows(x, kernel.shape[:2], stride)), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def convolution(
    x: Float[Array, "*batch H W I"], kernel: Float[Array, "high wide I O"], stride: int
) -> Float[Array, "*batch h w O"]:
    """The same as `products_of_patches`, by XLA's convolution, which accelerators have libraries for.

    x, kernel, stride: as there.
    """
    rows = x.reshape(-1, *x.shape[-3:])
    layout = ("NHWC", "HWIO", "NHWC")
    result = jax.lax.conv_general_dilated(rows, kernel, (stride, stride), "VALID", dimension_numbers=layout)
    return result.reshape(*x.shape[:-3], *result.shape[1:])


def windows(x: Shaped[Array, "*batch H W I"], size: tuple[int, ...], stride: int) -> list[Shaped[Array, "..."]]:
    """What stands at each place of a window as it moves over a picture: arrays `[..., h, w, I]`, place by place.

    x: the picture. size: (high, wide). stride: of the moves in both directions.
    """
    height, width = (stride * ((n - one) // stride) + 1 for n, one in zip(x.shape[-3:-1], size, strict=True))
    places = itertools.product(*map(range, size))
    return [x[..., i : i + height : stride, j : j + width : stride, :] for i, j in places]


class ResidualStage(eqx.Module):
    """A stage of IMPALA's network (Espeholt et al. 2018): a convolution, a maximum over 3 × 3 windows that halves the
    size, and two residual blocks of two convolutions."""

    first: Convolution
    blocks: tuple[tuple[Convolution, Convolution], ...]

    def __call__(self, x: Float[Array, "*batch H W I"]) -> Float[Array, "*batch h w O"]:
        x = self.first(x)
        around = [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
        x = _largest(windows(jnp.pad(x, around, constant_values=-jnp.inf), (3, 3), 2))
        for one, other in self.blocks:
            x = x + other(jax.nn.relu(one(jax.nn.relu(x))))
        return x


def _largest(arrays: list[Array]) -> Array:
    largest = arrays[0]
    for array in arrays[1:]:
        largest = jnp.maximum(largest, array)
    return largest


class Dense(eqx.Module):
    """A dense layer with ReLU."""

    weight: Float[Array, "flat F"]
    bias: Float[Array, " F"]

    def __call__(self, x: Float[Array, "*batch flat"]) -> Float[Array, "*batch F"]:
        return jax.nn.relu(x @ self.weight + self.bias)


class PictureEncoder(Encoder):
    """Pictures → stages of convolutions → a dense layer → features.

    stages: one after the other. dense: the layer behind them. Neither is there for pictures that are only made vectors.
    observed: the pictures. network: the name in `NETWORKS`.
    """

    stages: tuple[Convolution | ResidualStage, ...]
    dense: Dense | None
    observed: PictureObservations = eqx.field(static=True)
    network: str = eqx.field(static=True)

    rows_at_once = ROWS_AT_ONCE

    @property
    def num_features(self) -> int:
        return self.observed.size if self.dense is None else self.dense.bias.shape[-1]

    @property
    def hidden_behind(self) -> tuple[int, ...]:
        # The dense layer is the last one before the outputs in all three papers. Of its features, which are large,
        # tanh layers would be ±1 for every picture after a few updates, and their derivatives 0.
        return super().hidden_behind if self.dense is None else ()

    @full_precision
    def features(self, inputs: Shaped[Array, "*batch_and_picture"]) -> Float[Array, "*batch F"]:
        x = self._channels_last(inputs).astype(float if self.dense is None else self.dense.bias.dtype)
        x = x / self.observed.brightest
        for stage in self.stages:
            x = jax.nn.relu(stage(x)) if isinstance(stage, Convolution) else stage(x)
        flat = jax.nn.relu(x).reshape(*x.shape[:-3], -1)
        return flat if self.dense is None else self.dense(flat)

    def _channels_last(self, obs: Shaped[Array, "*batch_and_picture"]) -> Shaped[Array, "*batch H W I"]:
        if self.observed.channels_first:
            return jnp.moveaxis(obs, -3, -1)
        match self.observed.dimensions:
            case (_, _):
                return obs[..., None]
            case (_, _, _):
                return obs
        stacked = jnp.moveaxis(obs, -4, -2)
        return stacked.reshape(*stacked.shape[:-2], -1)


class Window(NamedTuple):
    """A layer of convolutions. channels: of its output. size: height and width of the window. stride: of its moves."""

    channels: int
    size: int
    stride: int


def chain(windows: tuple[Window, ...], units: int) -> Callable[..., PictureEncoder]:
    """A network of plain convolutions. windows: its layers. units: of the dense layer behind them."""

    def make(
        observed: PictureObservations, key: PRNGKeyArray, initialization: Initialization, name: str
    ) -> PictureEncoder:
        height, width, channels = observed.picture
        keys, stages = jax.random.split(key, len(windows) + 1), []
        for k, layer in zip(keys, windows, strict=False):
            stages.append(_convolution(k, channels, layer, initialization, padded=False))
            height, width = ((n - layer.size) // layer.stride + 1 for n in (height, width))
            channels = layer.channels
            if min(height, width) < 1:
                raise ConfigError(
                    f"network = {name} needs larger pictures than {observed.picture[0]} × {observed.picture[1]}: "
                    "minatar reads those of 7 × 7 and more; or enlarge them with gymnasium.wrappers.ResizeObservation"
                )
        return _with_dense(tuple(stages), height * width * channels, units, observed, keys[-1], initialization, name)

    return make


def _impala(
    observed: PictureObservations, key: PRNGKeyArray, initialization: Initialization, name: str
) -> PictureEncoder:
    height, width, channels = observed.picture
    stages, keys = [], jax.random.split(key, 16)
    for number, out in enumerate((16, 32, 32)):
        own = keys[5 * number : 5 * number + 5]
        one = Window(out, 3, 1)
        first = _convolution(own[0], channels, one, initialization, padded=True)
        inner = [_convolution(k, out, one, initialization, padded=True) for k in own[1:]]
        stages.append(ResidualStage(first, ((inner[0], inner[1]), (inner[2], inner[3]))))
        height, width, channels = -(-height // 2), -(-width // 2), out
    return _with_dense(tuple(stages), height * width * channels, 256, observed, keys[-1], initialization, name)


def _plain(
    observed: PictureObservations, key: PRNGKeyArray, initialization: Initialization, name: str
) -> PictureEncoder:
    return PictureEncoder((), None, observed, name)


def _convolution(
    key: PRNGKeyArray, channels: int, layer: Window, initialization: Initialization, *, padded: bool
) -> Convolution:
    """A fresh layer. channels: of its input."""
    fan_in = layer.size * layer.size * channels
    weights = HIDDEN_GAIN * INITIALIZATIONS[initialization](key, fan_in, layer.channels)
    kernel = weights.reshape(layer.size, layer.size, channels, layer.channels)
    return Convolution(kernel, jnp.zeros(layer.channels), layer.stride, padded)


def _with_dense(
    stages: tuple[Convolution | ResidualStage, ...],
    flat: int,
    units: int,
    observed: PictureObservations,
    key: PRNGKeyArray,
    initialization: Initialization,
    name: str,
) -> PictureEncoder:
    weight = HIDDEN_GAIN * INITIALIZATIONS[initialization](key, flat, units)
    return PictureEncoder(stages, Dense(weight, jnp.zeros(units)), observed, name)


NETWORKS: dict[str, Callable[..., PictureEncoder]] = {
    # Pictures as vectors, for dense layers alone.
    "mlp": _plain,
    # Young and Tian 2019.
    "minatar": chain((Window(16, 3, 1),), 128),
    # Mnih et al. 2015.
    "nature": chain((Window(32, 8, 4), Window(64, 4, 2), Window(64, 3, 1)), 512),
    # Espeholt et al. 2018, without its memory.
    "impala": _impala,
}
"""From a name to what makes an encoder of pictures: `(observed, key, initialization, name)`."""
SMALLEST_FOR_NATURE = 36
"""Height and width that the convolutions of `nature` need at least."""


def network_for(observed: PictureObservations) -> str:
    """The network that pictures get where none is named. observed: the pictures."""
    return "nature" if min(observed.picture[:2]) >= SMALLEST_FOR_NATURE else "minatar"
