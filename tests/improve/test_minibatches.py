"""Cutting a batch into minibatches: nothing is lost, and a refusal names a number that really works."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from klimb.improve.minibatches import require_divisible, shuffled
from klimb.types import take_rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 64))
def test_the_remedy_works_and_is_the_nearest(num_steps, num_envs, parts):
    rows = num_steps * num_envs
    if rows % parts == 0:
        require_divisible(rows, parts, what="num_minibatches", num_envs=num_envs)
        return
    with pytest.raises(ValueError, match="not divisible") as error:
        require_divisible(rows, parts, what="num_minibatches", num_envs=num_envs)
    message = str(error.value)
    numbers = re.fullmatch(
        r"num_steps × num_envs = (\d+) is not divisible by num_minibatches = (\d+); choose num_steps = (\d+)"
        + (rf" \(with num_envs = {num_envs}\)" if num_envs > 1 else ""),
        message,
    )
    assert numbers is not None, message
    assert [int(n) for n in numbers.groups()[:2]] == [rows, parts]
    remedy = int(numbers.group(3))
    require_divisible(remedy * num_envs, parts, what="num_minibatches", num_envs=num_envs)
    nearer = range(max(1, num_steps - abs(remedy - num_steps) + 1), num_steps + abs(remedy - num_steps))
    assert not any(n * num_envs % parts == 0 for n in nearer)


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (60, 4), (64, 64), (2**16, 2), (70_000, 7)])
def test_shuffled_covers_every_row_once(rows, parts):
    order = np.asarray(shuffled(jax.random.key(0), rows, parts))
    assert order.shape == (parts, rows // parts)
    np.testing.assert_array_equal(np.sort(order, axis=None), np.arange(rows))
    np.testing.assert_array_equal(order, shuffled(jax.random.key(0), rows, parts))
    if rows > 1:
        assert (order != shuffled(jax.random.key(1), rows, parts)).any()
        # Positions before and after are uncorrelated: 4.5 standard errors.
        correlation = np.corrcoef(order.ravel(), np.arange(rows))[0, 1]
        assert abs(correlation) < 4.5 / rows**0.5


def test_every_order_is_as_likely_as_another():
    keys = jax.random.split(jax.random.key(0), 24_000)
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, 4, 2))(keys)).reshape(-1, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_rows_are_taken_from_every_array():
    x = np.arange(120.0, dtype=np.float32).reshape(60, 2)
    rows = jnp.array([5, 59, 0])
    taken = take_rows({"x": jnp.asarray(x), "y": jnp.arange(60)}, rows)
    np.testing.assert_array_equal(taken["x"], x[[5, 59, 0]])
    np.testing.assert_array_equal(taken["y"], rows)
