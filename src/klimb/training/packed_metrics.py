"""Metrics on their way off the devices."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class PackedMetrics(eqx.Module):
    """Metrics by name in few arrays: many small ones take longer to come off the devices than all that they say."""

    columns: tuple[Array, ...]
    """`[names]` for one seed, `[K, names]` for several: real, signed and unsigned numbers."""
    names: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, metrics: dict[str, Array]) -> PackedMetrics:
        """One seed's metrics, scalars."""
        kinds: dict[Any, list[str]] = {}
        for name in sorted(metrics):
            kinds.setdefault(_kind(jnp.result_type(metrics[name])), []).append(name)
        columns = [jnp.stack([jnp.asarray(metrics[name], kind) for name in names]) for kind, names in kinds.items()]
        return cls(tuple(columns), tuple(tuple(names) for names in kinds.values()))

    def unpack(self) -> dict[str, np.ndarray]:
        """`[K]` each."""
        arrays = [np.asarray(column) for column in self.columns]
        both = zip(self.names, arrays, strict=True)
        return {name: array[:, i] for names, array in both for i, name in enumerate(names)}


def _kind(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype
    return jnp.uint32 if jnp.issubdtype(dtype, jnp.unsignedinteger) else jnp.int32
