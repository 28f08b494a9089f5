"""Shuffled minibatches: the one place where a batch is cut up, for rules and for the critic."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


def require_divisible(num_rows: int, num_minibatches: int, *, what: str, num_envs: int = 1) -> None:
    """ValueError with the numbers and the nearest `num_steps` that works, unless minibatches come out equal."""
    if num_rows % num_minibatches == 0 and num_rows >= num_minibatches:
        return
    num_steps = num_rows // num_envs
    # n · num_envs is divisible for the multiples of this.
    unit = num_minibatches // math.gcd(num_minibatches, num_envs)
    below = num_steps // unit * unit
    remedy = below if below > 0 and num_steps - below <= below + unit - num_steps else below + unit
    raise ValueError(
        f"num_steps × num_envs = {num_rows} is not divisible by {what} = {num_minibatches}; "
        f"choose num_steps = {remedy}" + (f" (with num_envs = {num_envs})" if num_envs > 1 else "")
    )


def shuffled(key: PRNGKeyArray, num_rows: int, num_minibatches: int) -> Int[Array, "M b"]:
    """Every row number once, in random order: M minibatches of b rows. What does not fill the last one is left out.

    Sorts numbers whose high bits are random and whose low bits are the row: one plain sort, 4 to 10 times
    cheaper on a CPU than `jax.random.permutation`, which sorts pairs. Two rows with the same random bits keep
    their order, which for the sizes this is used for happens to one pair in 2¹⁶ or fewer.
    """
    row_bits = max(1, (num_rows - 1).bit_length())
    if row_bits > 16:
        return _cut(jax.random.permutation(key, num_rows), num_minibatches)
    row_mask = jnp.uint32((1 << row_bits) - 1)
    random_bits = jax.random.bits(key, (num_rows,), jnp.uint32) & ~row_mask
    order = jnp.sort(random_bits | jnp.arange(num_rows, dtype=jnp.uint32)) & row_mask
    return _cut(order.astype(jnp.int32), num_minibatches)


def _cut(order: Int[Array, " B"], num_minibatches: int) -> Int[Array, "M b"]:
    each = len(order) // num_minibatches
    return order[: each * num_minibatches].reshape(num_minibatches, each)
