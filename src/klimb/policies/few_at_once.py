"""Networks over many observations, few at once where a CPU evaluates them sooner in that way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Num, PyTree

from klimb.policies.encoders import Encoder


def over_rows(network: Callable[[Array], Any], rows: Num[Array, "..."], axes: int) -> PyTree:
    """What a network makes of each of many observations: a tree of arrays with the same leading axes.

    network: called with one observation at a time, under vmap. rows: the observations. axes: number of leading axes.
    """
    encoder = network if isinstance(network, Encoder) else getattr(network, "encoder", None)
    at_once = encoder.rows_at_once if isinstance(encoder, Encoder) else None
    lead = rows.shape[:axes]
    if at_once is None or math.prod(lead) <= at_once or jax.default_backend() != "cpu":
        return _all_at_once(network, rows, axes)
    flat = rows.reshape(-1, *rows.shape[axes:])
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), _few_at_once(network, flat, at_once))


def _all_at_once(network: Callable[[Array], Any], rows: Array, axes: int) -> PyTree:
    for _ in range(axes):
        network = jax.vmap(network)
    return network(rows)


@eqx.filter_custom_jvp
def _few_at_once(network: Callable[[Array], Any], rows: Array, at_once: int) -> PyTree:
    return jax.lax.map(network, rows, batch_size=at_once)


@_few_at_once.def_jvp
def _derivatives(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    """Derivatives of few at once would take longer than of all."""
    network, rows, _ = primals
    of_network, of_rows, _ = tangents
    return eqx.filter_jvp(lambda network, rows: jax.vmap(network)(rows), (network, rows), (of_network, of_rows))
