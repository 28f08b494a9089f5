"""ONNX graphs: nodes are added one after the other, and each has a name that the next one can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from klimb.errors import MissingExtra

OPSET, IR_VERSION = 13, 7
"""Of ONNX 1.8 (November 2020), so that the runtimes of robots, which are seldom new, can load the files."""


def onnx_package() -> Any:
    """The package onnx. MissingExtra when it is not installed."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("ONNX files need the package onnx: pip install 'klimb[onnx]'") from None
    return onnx


class Graph:
    """The nodes and constants of a graph that is being made."""

    def __init__(self) -> None:
        self._onnx = onnx_package()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of an array. value: anything that makes one. dtype: of the array. Equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.constants.append(self._onnx.numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def add(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name is returned.

        kind: of the operator. inputs: names. to: the name of the output; None for a new one. attributes: of the node.
        """
        output = to if to is not None else f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """Consecutive parts of the last axis. x: a name. sizes: of the parts; of those of size 0 there is none: ""."""
        if len([size for size in sizes if size]) == 1:
            return [x if size else "" for size in sizes]
        number = len(self.nodes)
        names = [f"split_{number}_{i}" if size else "" for i, size in enumerate(sizes)]
        lengths = self.constant([size for size in sizes if size], np.int64)
        self.nodes.append(self._onnx.helper.make_node("Split", [x, lengths], list(filter(None, names)), axis=-1))
        return names

    def affine(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """x W + b. x: `[B, inputs]`. weight: `[inputs, outputs]`. bias: `[outputs]`."""
        return self.add("Gemm", x, self.constant(weight), self.constant(bias))

    def reshape(self, x: str, shape: list[int], to: str | None = None) -> str:
        """The same numbers in another shape. x: a name. shape: with one −1. to: as for `add`."""
        return self.add("Reshape", x, self.constant(shape, np.int64), to=to)

    def gather(self, x: str, columns: np.ndarray) -> str:
        """Some of the numbers of the last axis. x: a name. columns: which."""
        return self.add("Gather", x, self.constant(columns, np.int64), axis=-1)

    def cast(self, x: str, dtype: Any, to: str | None = None) -> str:
        """The same numbers of another type. x: a name. dtype: of NumPy. to: as for `add`."""
        # The attribute of the node is called `to`, as the name of an output is here.
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        output = to if to is not None else f"cast_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node("Cast", [x], [output], to=kind))
        return output
