"""Decisions of a policy in a user's own class, for worker processes: its program, compiled from StableHLO.

The collector traces the policy once and hands the program over; no class of the user's is imported in a worker and no
object is pickled. A worker that runs one imports JAX, and makes a call into it at every step: docs/own-network.md says
what that costs. The module imports no JAX before a program is loaded.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class ExportedPolicySpec:
    """A policy's program and the layout of its parameters.

    leaves: (shape, dtype) of one seed's arrays, in order. programs: from the number of environments of a worker to the
    serialised program `(*leaves [K, …], obs [K, n, …], noise [K, n, …], carry [K, n, C]) ↦ (actions, actions for the
    environment, carry)`.
    """

    leaves: tuple[tuple[tuple[int, ...], str], ...]
    programs: dict[int, bytes]

    @property
    def size(self) -> int:
        """Parameters of one seed's policy, in numbers of four bytes."""
        return sum(_words(shape, dtype) for shape, dtype in self.leaves)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        programs = {str(n): base64.b64encode(program).decode() for n, program in self.programs.items()}
        return {"leaves": self.leaves, "programs": programs}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ExportedPolicySpec:
        """The inverse of `to_dict`."""
        leaves = tuple((tuple(shape), dtype) for shape, dtype in fields["leaves"])
        return cls(leaves, {int(n): base64.b64decode(program) for n, program in fields["programs"].items()})

    def pack(self, arrays: list[Array]) -> Array:
        """K seeds' arrays `[K, …]` as `[K, size]` float32, byte for byte."""
        packed = np.zeros((len(arrays[0]), self.size), np.float32)
        start = 0
        for array, (shape, dtype) in zip(arrays, self.leaves, strict=True):
            rows = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
            packed.view(np.uint8)[:, 4 * start : 4 * start + rows.shape[1]] = rows
            start += _words(shape, dtype)
        return packed

    def decider(self, parameters: Array) -> Callable[[Array, Array, Array], tuple[Array, Array, Array]]:
        """The decisions of K seeds' policies. parameters: `[K, size]` as `pack` makes them."""
        arrays, start, raw = [], 0, parameters.view(np.uint8)
        for shape, dtype in self.leaves:
            count = math.prod(shape) * np.dtype(dtype).itemsize
            rows = np.ascontiguousarray(raw[:, 4 * start : 4 * start + count])
            arrays.append(rows.view(dtype).reshape(len(raw), *shape))
            start += _words(shape, dtype)

        def decide(obs: Array, noise: Array, carry: Array) -> tuple[Array, Array, Array]:
            decision = _load(self.programs[obs.shape[1]])(*arrays, obs, noise, carry)
            action, taken, carry = (np.asarray(x) for x in decision)
            return action, taken, carry

        return decide


def _words(shape: tuple[int, ...], dtype: str) -> int:
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // 4)


_LOADED: dict[bytes, Callable[..., Any]] = {}


def _load(program: bytes) -> Callable[..., Any]:
    """The program, compiled; once per process."""
    if program not in _LOADED:
        # One thread: there is a worker process for every core already. Both count only before JAX starts.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
        import jax
        import jax.export

        _LOADED[program] = jax.jit(jax.export.deserialize(bytearray(program)).call)
    return _LOADED[program]
