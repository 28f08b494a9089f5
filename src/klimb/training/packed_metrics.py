"""Metrics stacked into few arrays for the transfer from the devices."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class PackedMetrics(eqx.Module):
    """Scalar metrics stacked into one array per kind of number: transferring many small arrays is slow."""

    columns: tuple[Array, ...]
    """One array per kind (floating point, signed, unsigned), `[names]` for one seed, `[K, names]` for several."""
    names: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, metrics: dict[str, Array]) -> PackedMetrics:
        """The metrics of one seed, scalars by name."""
        kinds: dict[Any, list[str]] = {}
        for name in sorted(metrics):
            kinds.setdefault(_kind(jnp.result_type(metrics[name])), []).append(name)
        columns = [jnp.stack([jnp.asarray(metrics[name], kind) for name in names]) for kind, names in kinds.items()]
        return cls(tuple(columns), tuple(tuple(names) for names in kinds.values()))

    def unpack(self) -> dict[str, np.ndarray]:
        """The metrics of several seeds by name, `[K]` each."""
        arrays = [np.asarray(column) for column in self.columns]
        pairs = zip(self.names, arrays, strict=True)
        return {name: array[:, i] for names, array in pairs for i, name in enumerate(names)}


def _kind(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype
    return jnp.uint32 if jnp.issubdtype(dtype, jnp.unsignedinteger) else jnp.int32
