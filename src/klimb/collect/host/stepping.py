"""The loop over a rollout's steps on host environments, into arrays made beforehand. Imports no JAX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from klimb.environments.host import HostStep, HostVector

Decide = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(time step, observations `[K, n, ...]`) ↦ actions `[K, n, ...]`, as the policy has them and as the environment gets
them."""


class Columns(NamedTuple):
    """A rollout of K seeds but for what JAX computes of it: `[T, K, N, ...]`."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray
    valid: np.ndarray

    @classmethod
    def layout(
        cls, shape: tuple[int, int, int], observation: tuple[int, ...], action: tuple[int, ...], discrete: bool
    ) -> Columns:
        """Shapes and types, as (shape, type) pairs in the places of the arrays. `shape` is (T, K, N)."""
        seen, flag = ((*shape, *observation), np.float32), (shape, np.bool_)
        acted = ((*shape, *action), np.int32 if discrete else np.float32)
        return cls(seen, acted, (shape, np.float32), flag, flag, seen, flag)  # type: ignore[arg-type]

    @classmethod
    def empty(cls, layout: Columns) -> Columns:
        """Fresh arrays."""
        return cls(*(np.empty(shape, dtype) for shape, dtype in layout))

    @classmethod
    def within(cls, layout: Columns, memory: memoryview) -> Columns:
        """Arrays in the first `bytes_of(layout)` bytes of a memory."""
        arrays, start = [], 0
        for shape, dtype in layout:
            count = math.prod(shape)
            arrays.append(np.frombuffer(memory, dtype, count, start).reshape(shape))
            start += -(-count * np.dtype(dtype).itemsize // 8) * 8
        return cls(*arrays)


def bytes_of(layout: Columns) -> int:
    """How much memory the arrays of a layout take, each from a multiple of 8 bytes on."""
    return sum(-(-math.prod(shape) * np.dtype(dtype).itemsize // 8) * 8 for shape, dtype in layout)


class Stepper:
    """Running copies of an environment: some (`part`) of the N of each of K seeds."""

    def __init__(self, vector: HostVector, part: slice, seeds: int) -> None:
        self.vector, self._part, self._seeds = vector, part, seeds
        self._obs: np.ndarray | None = None

    def start_from(self, obs: np.ndarray) -> None:
        """Say where the copies stand: `[K·n, ...]`."""
        self._obs = self._by_seed(obs)

    def capture(self) -> dict[str, list] | None:
        """Where the copies stand, as plain data by seed and copy; None where that can't be saved."""
        states = self.vector.capture()
        if states is None or self._obs is None:
            return None
        each = len(states) // self._seeds
        return {
            "states": [states[i * each : (i + 1) * each] for i in range(self._seeds)],
            "obs": self._obs.tolist(),
        }

    def restore(self, captured: dict[str, list]) -> None:
        """Put them there, after a reset. RunError or ValueError when that is not where such copies can stand."""
        with np.errstate(over="ignore"):
            obs = np.array(captured["obs"], np.float32)
        if self._obs is None or obs.shape != self._obs.shape:
            raise ValueError(f"observations of the shape {obs.shape}")
        self.vector.restore([state for seed in captured["states"] for state in seed])
        self._obs = obs

    def roll(self, decide: Decide, columns: Columns) -> None:
        """All steps of a rollout, into this part of its columns."""
        assert self._obs is not None, "reset comes before collect"
        obs, action, reward, terminated, truncated, next_obs, valid = (column[:, :, self._part] for column in columns)
        for t in range(len(reward)):
            action[t], taken = decide(t, self._obs)
            step: HostStep = self.vector.step(taken.reshape(-1, *taken.shape[2:]))
            obs[t], next_obs[t] = self._obs, self._by_seed(step.next_obs)
            for column, values in (
                (reward, step.reward),
                (terminated, step.terminated),
                (truncated, step.truncated),
                (valid, step.valid),
            ):
                column[t] = self._by_seed(values)
            self._obs = self._by_seed(step.obs)

    def _by_seed(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self._seeds, -1, *x.shape[1:])


def parts(count: int, groups: int) -> list[slice]:
    """0 … count − 1 cut into consecutive parts of about the same size, none of them empty."""
    edges = np.linspace(0, count, min(count, groups) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
