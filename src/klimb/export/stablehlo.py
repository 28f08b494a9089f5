"""A policy as a StableHLO program, for JAX on CPUs and NVIDIA GPUs: of any class, with its numbers inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export

from klimb.export.interface import Inputs
from klimb.export.program import program
from klimb.policies.action_spec import ActionSpec
from klimb.policies.policy import Policy

PLATFORMS = ("cpu", "cuda")


def stablehlo_file(policy: Policy, inputs: Inputs, actions: ActionSpec) -> bytes:
    """The program, serialised by `jax.export`, for any number of observations.

    policy, inputs, actions: as for `klimb.export.program.program`.
    """
    (batch,) = jax.export.symbolic_shape("B")
    arrays = {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in inputs.shapes().items()}
    with _without_places():
        exported = jax.export.export(jax.jit(program(policy, inputs, actions)), platforms=PLATFORMS)(arrays)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Without the places in source files that operations are from: paths of this machine, for all who get the file."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def load_stablehlo_file(content: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the program computes from arrays, by name.

    content: of the file.
    """
    return jax.jit(jax.export.deserialize(bytearray(content)).call)
