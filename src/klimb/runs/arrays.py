"""Trees of arrays as safetensors files: names from the tree's paths, shapes checked before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from klimb.runs.files import write_atomically

# safetensors' names of the types klimb stores.
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def save_arrays(path: Path, tree: PyTree, metadata: dict[str, str]) -> None:
    """Every array of `tree` under the name of its path, atomically. PRNG keys are stored as their data."""
    arrays = {name: np.asarray(_plain(leaf), order="C") for name, leaf in _named(tree)}
    content = save(arrays, metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def load_arrays(path: Path, template: PyTree) -> tuple[PyTree, dict[str, str]]:
    """A tree like `template` (arrays or `jax.ShapeDtypeStruct`s) with the file's values, and the file's metadata.

    Raises ValueError, naming the array, when the file is damaged or does not hold exactly these arrays.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            expected = dict(_named(template))
            present = set(file.keys())
            for name in sorted(present ^ set(expected)):
                raise ValueError(f"array {name} is {'missing' if name in expected else 'not expected'}")
            for name, leaf in expected.items():
                _check(name, file.get_slice(name), leaf)
            values = {name: file.get_tensor(name) for name in expected}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not a whole safetensors file ({error})") from None
    leaves = [_restore(values[name], leaf) for name, leaf in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves), metadata


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path).lstrip("."), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _check(name: str, stored: Any, leaf: Any) -> None:
    shape, dtype = tuple(stored.get_shape()), _TYPES.get(stored.get_dtype(), stored.get_dtype())
    expected = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if shape != tuple(expected.shape) or dtype != str(expected.dtype):
        raise ValueError(
            f"array {name} is {dtype}{list(shape)} where {expected.dtype}{list(expected.shape)} is expected"
        )


def _restore(value: np.ndarray, leaf: Any) -> jax.Array:
    array = jnp.asarray(value)
    return jax.random.wrap_key_data(array) if _is_key(leaf) else array
