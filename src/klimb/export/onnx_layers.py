"""The layers of klimb's own networks as nodes of an ONNX graph."""

from __future__ import annotations

import math

import numpy as np

from klimb.export.network import OwnNetwork, Picture
from klimb.export.onnx_graph import Graph
from klimb.policies.encoders import FlatEncoder
from klimb.policies.layers import LAYER_NORM_FLOOR
from klimb.policies.mlp import LayerNorm
from klimb.policies.picture_observations import PictureObservations
from klimb.policies.pictures import Convolution, ResidualStage
from klimb.policies.recurrent import GRU, LSTM
from klimb.runs.policy_file import numbers_of


def encode(graph: Graph, own: OwnNetwork, obs: str) -> str:
    """The features of observations. own: the network. obs: the name of what is seen, `[B, *obs]`."""
    parts, numbers = [], numbers_of(own.policy.encoder)
    if numbers is not None:
        columns = own.columns
        parts.append(normalise(graph, numbers, obs if columns is None else graph.gather(obs, columns)))
    for picture in own.pictures:
        parts.append(see(graph, picture, obs))
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=-1)


def normalise(graph: Graph, encoder: FlatEncoder, x: str) -> str:
    """As `klimb.policies.normalizer.Normalizer`. encoder: whose normaliser it is. x: `[B, F]`."""
    normalizer = encoder.normalizer
    centred = graph.add("Sub", x, graph.constant(normalizer.mean))
    scaled = graph.add("Div", centred, graph.constant(normalizer.scale))
    if not math.isfinite(normalizer.clip):
        return scaled
    return graph.add("Clip", scaled, graph.constant(-normalizer.clip), graph.constant(normalizer.clip))


def see(graph: Graph, picture: Picture, obs: str) -> str:
    """As `klimb.policies.pictures.PictureEncoder`. picture: which. obs: `[B, *obs]`."""
    encoder = picture.encoder
    observed, x = encoder.observed, obs
    if picture.start is not None:
        places = np.arange(picture.start, picture.start + observed.size)
        x = graph.reshape(graph.gather(obs, places), [-1, *observed.shape])
    x = graph.cast(_channels_first(graph, observed, x), np.float32)
    x = graph.add("Div", x, graph.constant(observed.brightest))
    for stage in encoder.stages:
        x = _residual(graph, stage, x) if isinstance(stage, ResidualStage) else _relu(graph, _convolve(graph, stage, x))
    # The dense layer was trained on channels that stand behind each other.
    x = graph.reshape(graph.add("Transpose", _relu(graph, x), perm=[0, 2, 3, 1]), [-1, _flat_size(picture)])
    if encoder.dense is None:
        return x
    return _relu(graph, graph.affine(x, np.asarray(encoder.dense.weight), np.asarray(encoder.dense.bias)))


def _flat_size(picture: Picture) -> int:
    dense = picture.encoder.dense
    return picture.encoder.observed.size if dense is None else dense.weight.shape[0]


def _channels_first(graph: Graph, observed: PictureObservations, x: str) -> str:
    """Pictures `[B, C, H, W]`, as ONNX's convolutions read them. x: `[B, *observed.shape]`."""
    height, width, channels = observed.picture
    match observed.dimensions:
        case (_, _):
            return graph.reshape(x, [-1, 1, height, width])
        case (_, _, _):
            return x if observed.channels_first else graph.add("Transpose", x, perm=[0, 3, 1, 2])
    # Pictures that follow each other in time, each with its channels.
    return graph.reshape(graph.add("Transpose", x, perm=[0, 1, 4, 2, 3]), [-1, channels, height, width])


def _convolve(graph: Graph, layer: Convolution, x: str) -> str:
    kernel = np.asarray(layer.kernel).transpose(3, 2, 0, 1)
    before, after = zip(*(((n - 1) // 2, n // 2) for n in kernel.shape[2:]), strict=True)
    pads = [*before, *after] if layer.padded else [0, 0, 0, 0]
    weights = graph.constant(kernel), graph.constant(layer.bias)
    return graph.add("Conv", x, *weights, strides=[layer.stride, layer.stride], pads=pads)


def _residual(graph: Graph, stage: ResidualStage, x: str) -> str:
    x = graph.add("MaxPool", _convolve(graph, stage.first, x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for one, other in stage.blocks:
        inner = _convolve(graph, one, _relu(graph, x))
        x = graph.add("Add", x, _convolve(graph, other, _relu(graph, inner)))
    return x


def _relu(graph: Graph, x: str) -> str:
    return graph.add("Relu", x)


def remember(graph: Graph, layer: GRU | LSTM, features: str, carry: str, to: str) -> tuple[str, str]:
    """What the dense layers read, and the name `to` of what is remembered after the step.

    layer: the memory. features: `[B, F]`. carry: `[B, C]`.
    """
    size = layer.size
    projected = graph.affine(features, np.asarray(layer.input_weight), np.asarray(layer.bias))
    if isinstance(layer, LSTM):
        h, c = graph.split(carry, [size, size])
        total = graph.add("Add", projected, _recur(graph, layer, h))
        i, f, g, o = graph.split(total, [size] * 4)
        kept = graph.add("Mul", graph.add("Sigmoid", f), c)
        added = graph.add("Mul", graph.add("Sigmoid", i), graph.add("Tanh", g))
        c = graph.add("Add", kept, added)
        h = graph.add("Mul", graph.add("Sigmoid", o), graph.add("Tanh", c))
        return h, graph.add("Concat", h, c, to=to, axis=-1)
    from_inputs, from_units = (graph.split(x, [size] * 3) for x in (projected, _recur(graph, layer, carry)))
    r, z = (graph.add("Sigmoid", graph.add("Add", from_inputs[k], from_units[k])) for k in (0, 1))
    reset = graph.add("Mul", r, graph.add("Add", from_units[2], graph.constant(layer.reset_bias)))
    n = graph.add("Tanh", graph.add("Add", from_inputs[2], reset))
    h = graph.add("Add", n, graph.add("Mul", z, graph.add("Sub", carry, n)), to=to)
    return h, h


def _recur(graph: Graph, layer: GRU | LSTM, units: str) -> str:
    return graph.add("MatMul", units, graph.constant(layer.recurrent_weight))


def hidden(graph: Graph, own: OwnNetwork, x: str) -> str:
    """The features of the last hidden layer. own: the network. x: `[B, F]`."""
    network = own.policy.network
    norms: tuple[LayerNorm | None, ...] = network.norms or (None,) * (len(network.weights) - 1)
    for weight, bias, norm in zip(network.weights[:-1], network.biases[:-1], norms, strict=True):
        units = graph.affine(x, np.asarray(weight), np.asarray(bias))
        units = activate(graph, network.activation, units if norm is None else _normalise_layer(graph, norm, units))
        x = graph.add("Add", x, units) if network.residual and weight.shape[0] == weight.shape[1] else units
    return x


def _normalise_layer(graph: Graph, norm: LayerNorm, x: str) -> str:
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[-1], keepdims=1))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1], keepdims=1)
    deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(LAYER_NORM_FLOOR)))
    scaled = graph.add("Mul", graph.add("Div", centred, deviation), graph.constant(norm.scale))
    return graph.add("Add", scaled, graph.constant(norm.offset))


def activate(graph: Graph, activation: str, x: str) -> str:
    """An activation. activation: its name. x: any array."""
    match activation:
        case "tanh":
            return graph.add("Tanh", x)
        case "relu":
            return _relu(graph, x)
        case "silu":
            return graph.add("Mul", x, graph.add("Sigmoid", x))
    # gelu in its tanh approximation, which ONNX has had as a node of its own since opset 20 only.
    cube = graph.add("Mul", graph.add("Mul", x, x), x)
    inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
    bent = graph.add("Tanh", graph.add("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
    half = graph.add("Mul", x, graph.constant(0.5))
    return graph.add("Mul", half, graph.add("Add", bent, graph.constant(1)))
