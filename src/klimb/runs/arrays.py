"""Trees of arrays as safetensors files: names from the tree's paths, shapes checked before anything is allocated.

A file's metadata holds a checksum over everything else in it. It detects damage, not tampering: whoever can write
the file can write the checksum too.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import save

from klimb.errors import one_line, shown
from klimb.files import open_arrays, require_regular, write_atomically

CHECKSUM = "sha256"
MAX_HEADER = 2**26
"""Largest header that is read, in bytes; safetensors' own limit is a little higher. A checkpoint's header holds the
states of host environments."""
# safetensors' names of the types klimb stores.
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def save_arrays(path: Path, tree: PyTree, metadata: dict[str, str]) -> None:
    """Write every array of a tree, under the name of its path, atomically.

    path: the file. tree: its leaves are arrays; PRNG keys are stored as their data. metadata: strings to store with
    them. Raises OSError when the file can't be written.
    """
    write_atomically(path, as_file(named_arrays(tree), metadata))


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every array of a tree under the name that it has in files.

    tree: its leaves are arrays; of PRNG keys the data is taken.
    """
    return {name: np.asarray(_plain(leaf), order="C") for name, leaf in _named(tree)}


def current_name(name: str) -> str:
    """What an array of a file of klimb 0.1.0 is called since: the normaliser became a part of the encoder."""
    return re.sub(r"(?<!encoder\.)(?<!numbers\.)\bnormalizer\.", "encoder.normalizer.", name)


def load_arrays(
    path: Path,
    template: PyTree,
    *,
    require_checksum: bool = False,
    max_header: int = MAX_HEADER,
    renamed: Callable[[str], str] = str,
) -> tuple[PyTree, dict[str, str]]:
    """A tree like `template` with the file's values, and the file's metadata.

    path: the file. template: arrays or `jax.ShapeDtypeStruct`s. require_checksum: whether to refuse a file without a
    checksum, which is what other tools write. max_header: largest size of names and metadata, in bytes. renamed: from
    the name of an array in the file to that in the template.

    Raises ValueError, naming the array, when the file is damaged, does not hold exactly these arrays, or is larger
    than the arrays and `max_header` together.
    """
    expected = dict(_named(template))
    try:
        _check_size(path, sum(map(_num_bytes, expected.values())) + max_header)
        with open_arrays(path) as file:
            stored = {renamed(name): name for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            for name in sorted(set(stored) ^ set(expected)):
                raise ValueError(f"array {_word(name)} is {'missing' if name in expected else 'not expected'}")
            for name, leaf in expected.items():
                _check(name, file.get_slice(stored[name]), leaf)
            values = {name: file.get_tensor(stored[name]) for name in expected}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({one_line(error)})") from None
    except OSError as error:
        raise ValueError(one_line(error.strerror or error)) from None
    metadata = check_checksum(metadata, {stored[name]: x for name, x in values.items()}, required=require_checksum)
    leaves = [_restore(values[name], leaf) for name, leaf in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves), metadata


def as_file(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The contents of a safetensors file with a checksum. The same arguments give the same bytes.

    arrays: by name. metadata: strings by name.
    """
    content = save(dict(arrays), {**metadata, CHECKSUM: _checksum(metadata, arrays)})
    # safetensors does not sort the metadata: without this the bytes would differ from call to call.
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def check_checksum(
    metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray], *, required: bool = False
) -> dict[str, str]:
    """The metadata without its checksum.

    metadata, arrays: as read from the file. required: whether a missing checksum is an error.
    Raises ValueError when the checksum is not that of the contents, or is missing and `required`.
    """
    others = {name: value for name, value in metadata.items() if name != CHECKSUM}
    if required and CHECKSUM not in metadata:
        raise ValueError(f"it has no checksum (metadata {CHECKSUM})")
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(others, arrays):
        raise ValueError("its contents do not match their checksum")
    return others


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the metadata and of every array's name, type and shape, as JSON, and then of all arrays' bytes."""
    names = sorted(arrays)
    header = [sorted(metadata.items()), [[name, str(arrays[name].dtype), arrays[name].shape] for name in names]]
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in names:
        # View as bytes first: hashlib does not accept bfloat16.
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_size(path: Path, maximum: int) -> None:
    require_regular(path)
    size = path.stat().st_size
    if size > maximum:
        raise ValueError(f"it has {size} bytes, and its arrays with their header take at most {maximum}")


def _num_bytes(leaf: Any) -> int:
    stored = _stored(leaf)
    return stored.size * stored.dtype.itemsize


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path).lstrip("."), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _word(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else shown(name)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _stored(leaf: Any) -> Any:
    """Shape and dtype under which a leaf is stored in the file."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _check(name: str, stored: Any, leaf: Any) -> None:
    shape, dtype = tuple(stored.get_shape()), _TYPES.get(stored.get_dtype(), stored.get_dtype())
    expected = _stored(leaf)
    if shape != tuple(expected.shape) or dtype != str(expected.dtype):
        raise ValueError(
            f"array {name} is {dtype}{shown(list(shape))} where {expected.dtype}{list(expected.shape)} is expected"
        )


def _restore(value: np.ndarray, leaf: Any) -> jax.Array:
    array = jnp.asarray(value)
    return jax.random.wrap_key_data(array) if _is_key(leaf) else array
