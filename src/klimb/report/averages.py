"""Means, ranges and quantiles over iterations and over seeds. NaN stands for a missing value and is skipped."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Column = Float[np.ndarray, "n _"]  # n iterations, one value per seed or one for all


def bucket_mean(column: Column, edges: Int[np.ndarray, " edges"]) -> Float[np.ndarray, "points seeds"]:
    """The mean of each bucket of rows; NaN where a bucket has no value.

    column: the rows. edges: first row of each bucket, and the number of rows at the end.
    """
    present = np.isfinite(column)
    total = np.add.reduceat(np.where(present, column, 0.0), edges[:-1], axis=0)
    count = np.add.reduceat(present.astype(np.int64), edges[:-1], axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def bucket_range(
    column: Column, edges: Int[np.ndarray, " edges"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The smallest and the largest value of each bucket, over its rows and over seeds.

    column, edges: as for `bucket_mean`.
    """
    low = np.fmin.reduceat(np.fmin.reduce(column, axis=1), edges[:-1])
    high = np.fmax.reduceat(np.fmax.reduce(column, axis=1), edges[:-1])
    return low, high


def quantile(values: Float[np.ndarray, "n seeds"], q: float) -> Float[np.ndarray, " n"]:
    """The q-quantile over seeds, linear between ranks; NaN where no seed has a value.

    values: one row per iteration. q: 0 to 1.
    """
    ordered = np.sort(values, axis=1)
    count = np.isfinite(ordered).sum(axis=1, keepdims=True)
    position = q * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, rank, axis=1) for rank in (below, above))
    return (low + (position - below) * (high - low))[:, 0]
