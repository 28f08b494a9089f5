"""Products of float32 arrays in float32: accelerators round their factors to 10 (TF32) or 7 bits (bfloat16) by default.

Such products are off by about 1e-3: too much for conjugate gradient to a residual of 1e-5, for ratios that are 1 to
rounding, and for a KL that is held to a limit of 0.01. CPUs multiply in float32 anyway.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import jax

Precision = Literal["float32", "tensorfloat32"]
"""Of the products of a training. On a CPU both are float32; a TPU has three products of bfloat16 for the second."""

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose products of arrays have the precision of the arrays, and so have its derivatives.

    What is also called from outside of a training, such as `action_distribution` and klimb's own networks, is wrapped
    by itself; inside of a training its option `precision` counts (`with_precision`). A precision that the user has set
    counts: `jax.default_matmul_precision`, as a context or in JAX's configuration.

    function: called, or traced, under `jax.default_matmul_precision("highest")`.
    """
    return with_precision("float32")(function)


def with_precision(precision: Precision) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """What wraps a function so that its products of arrays have a precision, unless the user has set one.

    Trainings compile their whole program with it, whatever networks and rules are in it.

    precision: of the products.
    """
    level = {"float32": "highest", "tensorfloat32": "high"}[precision]

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
            with contextlib.nullcontext() if chosen is not None else jax.default_matmul_precision(level):
                return function(*args, **kwargs)

        return wrapped

    return wrap
