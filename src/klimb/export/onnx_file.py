"""A policy of klimb's own networks as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from klimb._version import __version__
from klimb.errors import MissingExtra
from klimb.export.interface import CARRY, MASK, NEXT_CARRY, OBS
from klimb.export.network import OwnNetwork
from klimb.export.onnx_graph import IR_VERSION, OPSET, Graph, onnx_package
from klimb.export.onnx_heads import Output, decide
from klimb.export.onnx_layers import encode, hidden, remember
from klimb.policies.recurrent import GRU, LSTM


def onnx_file(own: OwnNetwork, about: dict[str, str]) -> bytes:
    """The file: a graph with all arrays, and what is known of the policy as its metadata.

    own: the network. about: metadata, by name. Raises MissingExtra without the package onnx.
    """
    onnx = onnx_package()
    graph, outputs = Graph(), []
    features = encode(graph, own, OBS)
    memory = own.policy.memory
    if memory is not None:
        assert isinstance(memory, GRU | LSTM)
        features, _ = remember(graph, memory, features, CARRY, NEXT_CARRY)
        outputs = [Output(NEXT_CARRY, (memory.carry_size,), np.dtype(np.float32))]
    features = hidden(graph, own, features)
    outputs = [*decide(graph, own, features, MASK if own.inputs.num_choices else ""), *outputs]
    inputs = [Output(name, shape, dtype) for name, (shape, dtype) in own.inputs.shapes().items()]
    made = onnx.helper.make_graph(
        graph.nodes, "policy", [_info(x) for x in inputs], [_info(x) for x in outputs], graph.constants
    )
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="klimb",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _info(array: Output) -> Any:
    """What a graph says of an array that it reads or returns."""
    helper = onnx_package().helper
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(array.name, kind, ["B", *array.shape])


def load_onnx_file(content: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What onnxruntime computes from arrays, by name. MissingExtra without the package onnxruntime.

    content: of the file.
    """
    session = _runtime().InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra(
            "an ONNX file is compared with its policy, which needs the package onnxruntime: pip install 'klimb[onnx]'"
        ) from None
    return onnxruntime
