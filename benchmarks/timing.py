"""Seconds of a compiled program, and the program of an environment alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from klimb.environments.base import CompiledEnvironment


def seconds_of(program: Callable[[], Any], calls: int = 5) -> list[float]:
    """Of each call, after one that compiles."""
    jax.block_until_ready(program())
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        jax.block_until_ready(program())
        found.append(time.perf_counter() - began)
    return found


def environment_alone(environment: CompiledEnvironment, num_envs: int, num_steps: int) -> Callable[[], Any]:
    """Steps of an environment without anything else: known actions, no policy, no resets."""
    actions = environment.actions
    rows = jnp.zeros((num_envs, *actions.shape), actions.dtype)
    keys = jax.random.split(jax.random.key(0), (num_steps, num_envs))
    first = jax.jit(environment.reset_all)(keys[0])[0]

    @jax.jit
    def steps(state: Any) -> Any:
        def one(state: Any, keys: Any) -> tuple:
            after = environment.step_all(keys, state, actions.unflatten(rows))
            return after.state, after.reward

        return jax.lax.scan(one, state, keys)

    return partial(steps, first)
