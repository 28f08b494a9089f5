"""Products of float32 arrays in float32: accelerators round their factors to 10 (TF32) or 7 bits (bfloat16) by default.

Such products are off by about 1e-3: too much for conjugate gradient to a residual of 1e-5, for ratios that are 1 to
rounding, and for a KL that is held to a limit of 0.01. CPUs multiply in float32 anyway.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose products of arrays have the precision of the arrays, and so have its derivatives.

    Trainings compile their whole program under it, whatever networks and rules are in it. What is also called from
    outside of a training, such as `action_distribution` and klimb's own networks, is wrapped by itself. A precision
    that the user has set counts: `jax.default_matmul_precision`, as a context or in JAX's configuration.

    function: called, or traced, under `jax.default_matmul_precision("highest")`.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        with contextlib.nullcontext() if chosen is not None else jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped
