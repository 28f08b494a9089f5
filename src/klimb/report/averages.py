"""Averages over iterations and over seeds, of the numbers that exist: NaN stands for none."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Column = Float[np.ndarray, "n _"]  # one value a seed, or one for all


def bucket_mean(column: Column, edges: Int[np.ndarray, " edges"]) -> Float[np.ndarray, "points seeds"]:
    """The mean over each bucket of rows, of the numbers that exist there."""
    present = np.isfinite(column)
    total = np.add.reduceat(np.where(present, column, 0.0), edges[:-1], axis=0)
    count = np.add.reduceat(present.astype(np.int64), edges[:-1], axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def bucket_range(
    column: Column, edges: Int[np.ndarray, " edges"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The smallest and the largest number in each bucket, over its rows and over seeds."""
    low = np.fmin.reduceat(np.fmin.reduce(column, axis=1), edges[:-1])
    high = np.fmax.reduceat(np.fmax.reduce(column, axis=1), edges[:-1])
    return low, high


def interquartile_mean(values: Float[np.ndarray, "n seeds"]) -> Float[np.ndarray, " n"]:
    """The mean of the middle half over seeds (Agarwal et al. 2021): a quarter of those present cut from each end."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(ordered).sum(axis=1, keepdims=True)
    cut = count // 4
    rank = np.arange(values.shape[1])
    kept = (rank >= cut) & (rank < count - cut)
    total, size = np.where(kept, ordered, 0.0).sum(axis=1), kept.sum(axis=1)
    return np.divide(total, size, out=np.full(len(values), np.nan), where=size > 0)


def quantile(values: Float[np.ndarray, "n seeds"], q: float) -> Float[np.ndarray, " n"]:
    """The q-quantile over the seeds present, linear between ranks; NaN where there is none."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(ordered).sum(axis=1, keepdims=True)
    position = q * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, rank, axis=1) for rank in (below, above))
    return (low + (position - below) * (high - low))[:, 0]
