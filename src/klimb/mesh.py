"""Environments and rows of one seed spread over devices; the compiler inserts what the devices have to exchange.

A program knows by the axes of its mesh (`training/devices.py`) what is spread. With the axis `ROWS` every device has a
share of the environments and of each batch's rows: sums over rows become sums of the devices' sums, in gradients,
Fisher products, line searches and statistics alike. With the axis `ENVIRONMENTS` only the environments are spread, and
every device learns the same from all rows. Without either, the functions below return what they are given.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

ROWS = "rows"
ENVIRONMENTS = "environments"

Tree = TypeVar("Tree", bound=PyTree)


def spread_environments(tree: Tree, axis: int = 0) -> Tree:
    """The same arrays, each device with its share of the environments.

    tree: of arrays. axis: of the environments in every array, whose length the number of devices divides.
    """
    return _constrained(tree, axis, (ROWS, ENVIRONMENTS))


def gather_environments(tree: Tree) -> Tree:
    """The same arrays; where only environments are spread, each device has them all afterwards."""
    return _constrained(tree, None, (ENVIRONMENTS,))


def spread_rows(tree: Tree, axis: int = 0) -> Tree:
    """The same arrays, each device with its share of the rows.

    tree: of arrays. axis: of the rows in every array; rows that can't be shared out equally stay where they are.
    """
    return _constrained(tree, axis, (ROWS,))


def gather_rows(tree: Tree) -> Tree:
    """The same arrays; where rows are spread, each device has them all afterwards."""
    return _constrained(tree, None, (ROWS,))


def _constrained(tree: Tree, axis: int | None, names: tuple[str, ...]) -> Tree:
    """Arrays that lie along the first of some axes of the mesh that it has; all of them everywhere for an `axis` of
    None."""
    mesh = jax.sharding.get_abstract_mesh()
    name = next((name for name in names if name in mesh.axis_names), None)
    if name is None:
        return tree
    count = mesh.shape[name]

    def place(x: jax.Array) -> jax.Array:
        if axis is None:
            return jax.lax.with_sharding_constraint(x, P())
        if x.shape[axis] % count:
            return x
        return jax.lax.with_sharding_constraint(x, P(*(None,) * axis, name))

    return jax.tree.map(place, tree)
