"""From a network's outputs to actions and the parameters of their distribution, as nodes of an ONNX graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from klimb.errors import ConfigError
from klimb.export.interface import Head, heads_of
from klimb.export.network import OwnNetwork
from klimb.export.onnx_graph import Graph
from klimb.policies.action_spec import EXPLORATION_VARIANCE, GaussianStyle
from klimb.policies.box_actions import Box
from klimb.policies.discrete_actions import Discrete
from klimb.policies.multi_binary_actions import MultiBinary
from klimb.policies.multi_discrete_actions import MultiDiscrete


@dataclass(frozen=True)
class Output:
    """An array that the graph returns. shape: without the axis of observations."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Share:
    """What belongs to one head: the name of its outputs, of log σ and of its mask; "" where there is none."""

    output: str
    log_std: str
    mask: str


def decide(graph: Graph, own: OwnNetwork, features: str, mask: str) -> Iterator[Output]:
    """Add the nodes of all actions and parameters; yields the arrays that they are.

    own: the network. features: of its last hidden layer. mask: the name of the flags of all choices, "" for none.
    """
    actions, style, network = own.policy.actions, own.policy.style, own.policy.network
    output = graph.affine(features, np.asarray(network.weights[-1]), np.asarray(network.biases[-1]))
    heads = list(heads_of(actions))
    styles = [style if head.actions.num_log_std else GaussianStyle() for head in heads]
    outputs = graph.split(output, [head.actions.num_outputs(its) for head, its in zip(heads, styles, strict=True)])
    masks = graph.split(mask, [head.actions.num_choices for head in heads]) if mask else [""] * len(heads)
    stds = _log_stds(graph, own, features, heads)
    for head, *share in zip(heads, outputs, stds, masks, strict=True):
        yield from _of_head(graph, head, Share(*share), style)


def _log_stds(graph: Graph, own: OwnNetwork, features: str, heads: list[Head]) -> list[str]:
    """The free log σ of every head; "" where there is none."""
    log_std = own.policy.log_std
    if log_std is None:
        return [""] * len(heads)
    if own.policy.style.exploration == "gsde":  # one head
        weights = graph.constant(np.exp(2 * np.asarray(log_std)))
        variance = graph.add("MatMul", graph.add("Mul", features, features), weights)
        variance = graph.add("Add", variance, graph.constant(EXPLORATION_VARIANCE))
        return [graph.add("Mul", graph.add("Log", variance), graph.constant(0.5))]
    edges = itertools.accumulate((head.actions.num_log_std for head in heads), initial=0)
    cuts = itertools.pairwise(edges)
    return [graph.constant(np.asarray(log_std)[start:stop]) if stop > start else "" for start, stop in cuts]


def _of_head(graph: Graph, head: Head, share: Share, style: GaussianStyle) -> Iterator[Output]:
    match head.actions:
        case Box() as box:
            yield from _box(graph, head, box, share, style)
        case Discrete() as discrete:
            logits = _masked(graph, share, head)
            best = graph.add("ArgMax", logits, axis=-1, keepdims=0)
            yield _numbers(graph, head, best, np.array(discrete.start), (), "int32")
            yield Output(head.named("logits"), (discrete.n,), np.dtype(np.float32))
        case MultiDiscrete() as several:
            yield from _multi_discrete(graph, head, several, share)
        case MultiBinary() as switches:
            yield from _multi_binary(graph, head, switches, share)
        case other:
            raise ConfigError(f"klimb does not know how to write actions of the class {type(other).__name__} as ONNX")


def _masked(graph: Graph, share: Share, head: Head) -> str:
    """The logits, −∞ where a choice is not allowed."""
    name = head.named("logits")
    if not share.mask:
        return graph.add("Identity", share.output, to=name)
    return graph.add("Where", share.mask, share.output, graph.constant(-np.inf), to=name)


def _multi_discrete(graph: Graph, head: Head, actions: MultiDiscrete, share: Share) -> Iterator[Output]:
    logits = _masked(graph, share, head)
    place, exists = actions.places
    rows = graph.reshape(graph.gather(logits, place.ravel()), [-1, *place.shape])
    rows = graph.add("Where", graph.constant(exists, bool), rows, graph.constant(-np.inf))
    best = graph.add("ArgMax", rows, axis=-1, keepdims=0)
    yield _numbers(graph, head, best, np.array(actions.start), actions.dimensions, actions.space_dtype)
    yield Output(head.named("logits"), (sum(actions.n),), np.dtype(np.float32))


def _multi_binary(graph: Graph, head: Head, actions: MultiBinary, share: Share) -> Iterator[Output]:
    """Of a switch: the log odds of 1, ±∞ where only one of both is allowed."""
    name, log_odds = head.named("logits"), share.output
    if share.mask:
        zero, one = (graph.gather(share.mask, np.arange(which, 2 * actions.size, 2)) for which in (0, 1))
        log_odds = graph.add("Where", zero, log_odds, graph.constant(np.inf))
        graph.add("Where", one, log_odds, graph.constant(-np.inf), to=name)
    else:
        graph.add("Identity", log_odds, to=name)
    on = graph.cast(graph.add("Greater", name, graph.constant(0)), np.int64)
    yield _numbers(graph, head, on, np.array(0), actions.dimensions, "int8")
    yield Output(name, (actions.size,), np.dtype(np.float32))


def _numbers(graph: Graph, head: Head, best: str, start: np.ndarray, dimensions: tuple[int, ...], dtype: str) -> Output:
    """Integers as the space has them. best: the choices, from 0 on."""
    counted = graph.add("Add", best, graph.constant(start, np.int64))
    shape = [-1, *dimensions]
    name = head.named("action")
    graph.cast(graph.reshape(counted, shape), dtype, to=name)
    return Output(name, dimensions, np.dtype(dtype))


def _box(graph: Graph, head: Head, box: Box, share: Share, style: GaussianStyle) -> Iterator[Output]:
    dimensions = len(box.low)
    output, log_std = share.output, share.log_std
    if style.state_dependent_std:
        output, offset = graph.split(output, [dimensions, dimensions])
        log_std = graph.add("Add", offset, log_std)
    else:
        log_std = graph.add("Expand", log_std, graph.add("Shape", output))
    if style.log_std_bounds is not None:
        log_std = graph.add("Clip", log_std, *map(graph.constant, style.log_std_bounds))
    low, high = box.bounds(np.float32)
    half_width, center = (np.asarray(x, np.float32) for x in (box.half_width, box.center))

    def in_box(x: str, to: str | None = None) -> str:
        """x: in half-widths from the middle."""
        return graph.add("Add", graph.add("Mul", x, graph.constant(half_width)), graph.constant(center), to=to)

    mean, std = head.named("mean"), head.named("log_std")
    if style.tanh_squash:
        graph.add("Identity", output, to=mean)
        graph.add("Identity", log_std, to=std)
        taken = in_box(graph.add("Tanh", output))
    else:
        taken = in_box(output, to=mean)
        graph.add("Add", log_std, graph.constant(np.log(half_width)), to=std)
    bounded = graph.add("Min", graph.add("Max", taken, graph.constant(low)), graph.constant(high))
    shape = (dimensions,) if box.dimensions is None else box.dimensions
    yield Output(head.named("action"), shape, np.dtype(np.float32))
    graph.reshape(bounded, [-1, *shape], to=head.named("action"))
    for name in (mean, std):
        yield Output(name, (dimensions,), np.dtype(np.float32))
