"""The loop over the steps of a rollout on host environments, into preallocated arrays. Imports no JAX."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from klimb.environments.host import Fault, HostStep, HostVector
from klimb.policies.action_spec import ActionSpec
from klimb.policies.observations import ObservationSpec

Decide = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(time step, observations `[K, n, ...]`) ↦ actions `[K, n, ...]`, as the policy samples them and as the environment
gets them (clipped)."""


class ArraySpec(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def num_bytes(self) -> int:
        """Memory it takes, rounded up to a multiple of 8 so that the next array is aligned."""
        return -(-math.prod(self.shape) * np.dtype(self.dtype).itemsize // 8) * 8


class ColumnsLayout(NamedTuple):
    """Shapes and dtypes of `Columns`, in the same order."""

    obs: ArraySpec
    action: ArraySpec
    reward: ArraySpec
    terminated: ArraySpec
    truncated: ArraySpec
    next_obs: ArraySpec
    valid: ArraySpec
    derivatives: ArraySpec


class NoiseLayout(NamedTuple):
    """The noise of a rollout, `[rows, K, N, *shape]`: row t // steps is that of step t.

    rows: how often noise is drawn. steps: for which a draw is used. shape: of the noise of one action.
    """

    rows: int
    steps: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, num_steps: int, steps: int, shape: tuple[int, ...]) -> NoiseLayout:
        """For a rollout of so many steps. steps, shape: as the fields."""
        return cls(-(-num_steps // steps), steps, shape)


class Columns(NamedTuple):
    """What environments and policies return in a rollout of K seeds, `[T, K, N, ...]`; JAX computes the rest.

    derivatives: of every step, the arrays of `klimb.types.Derivatives` one after the other; none, `[T, K, N, 0]`, where
    they are not recorded.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray
    valid: np.ndarray
    derivatives: np.ndarray

    @classmethod
    def layout(
        cls, shape: tuple[int, int, int], observations: ObservationSpec, actions: ActionSpec, derivatives: int = 0
    ) -> ColumnsLayout:
        """Shapes and dtypes of the columns.

        shape: (T, K, N). observations, actions: what one of each is. derivatives: how many numbers those of a step are.
        """
        obs = ArraySpec((*shape, *observations.shape), observations.dtype)
        action = ArraySpec((*shape, *actions.shape), actions.dtype)
        reward, flag = ArraySpec(shape, np.float32), ArraySpec(shape, np.bool_)
        return ColumnsLayout(obs, action, reward, flag, flag, obs, flag, ArraySpec((*shape, derivatives), np.float32))

    @classmethod
    def empty(cls, layout: ColumnsLayout) -> Columns:
        """New, uninitialised arrays of this layout."""
        return cls(*(np.empty(spec.shape, spec.dtype) for spec in layout))

    @classmethod
    def within(cls, layout: ColumnsLayout, memory: memoryview) -> Columns:
        """Arrays that share the first `bytes_of(layout)` bytes of a block of memory.

        layout: of the arrays. memory: the block, at least as long.
        """
        arrays, start = [], 0
        for spec in layout:
            array = np.frombuffer(memory, spec.dtype, math.prod(spec.shape), start)
            arrays.append(array.reshape(spec.shape))
            start += spec.num_bytes
        return cls(*arrays)


class Stepped(NamedTuple):
    """A rollout as it is handed over.

    columns: `[T, K, N, …]`. faults: that were survived; copies are counted over seeds, then environments:
    seed · N + environment. made: how many of the T steps each of the N environments of every seed has made, `[N]`,
    where a worker may be late; None where all have made all of them. The rows of the others are not valid.
    """

    columns: Columns
    faults: list[Fault]
    made: Integer[np.ndarray, " N"] | None = None


def bytes_of(layout: ColumnsLayout) -> int:
    """Memory that the arrays of a layout take, in bytes."""
    return sum(spec.num_bytes for spec in layout)


class Stepper:
    """Running copies of an environment, and the observations they wait in.

    vector: the copies, n of each of K seeds. part: which n of the N columns of a rollout they fill. seeds: K.
    whole_episodes: whether a rollout is one episode of every copy, after a reset.
    """

    def __init__(self, vector: HostVector, part: slice, seeds: int, *, whole_episodes: bool = False) -> None:
        self.vector, self._part, self._seeds = vector, part, seeds
        self._whole_episodes = whole_episodes
        self._obs: np.ndarray | None = None

    def start_from(self, obs: np.ndarray) -> None:
        """Set the copies' observations after a reset, `[K·n, ...]`."""
        self._obs = self._by_seed(obs)

    def capture(self) -> dict[str, list] | None:
        """States and observations of all copies, as plain data by seed and copy; None where they can't be saved."""
        states = self.vector.capture()
        if states is None or self._obs is None:
            return None
        copies = len(states) // self._seeds
        return {
            "states": [states[i * copies : (i + 1) * copies] for i in range(self._seeds)],
            "obs": self._obs.tolist(),
        }

    def restore(self, captured: dict[str, list]) -> None:
        """Restore, after a reset, what `capture` returned. RunError or ValueError when it does not fit."""
        with np.errstate(over="ignore"):
            obs = np.array(captured["obs"], np.float32)
        if self._obs is None or obs.shape != self._obs.shape:
            raise ValueError(f"observations of the shape {obs.shape}")
        self.vector.restore([state for seed in captured["states"] for state in seed])
        self._obs = obs

    def roll(self, decide: Decide, columns: Columns, seconds: float | None = None) -> int:
        """Run all steps of a rollout; of whole episodes, until the last of them has ended. Returns how many were made.

        decide: the policy. columns: of the whole rollout; this part of them is filled. seconds: after which no further
        step is begun, and the rows of the others are not valid: at least one is made. None for no such limit. The
        copies stay where they are, and go on from there in the next rollout.
        """
        assert self._obs is not None, "reset comes before collect"
        own = Columns(*(column[:, :, self._part] for column in columns))
        end = math.inf if seconds is None else time.monotonic() + seconds
        if own.derivatives.shape[-1] == 0:
            made = self._roll(decide, own, end)
        else:
            own.derivatives[:] = 0
            states: list[np.ndarray] = []
            made = self._roll(decide, own, end, lambda: states.append(self._by_seed(self.vector.simulator_states())))
            rows = own.valid[: len(states)]
            own.derivatives[: len(states)][rows] = self.vector.differentiate(
                np.stack(states)[rows], own.action[: len(states)][rows]
            )
        return made

    def _roll(self, decide: Decide, own: Columns, end: float, before_step: Callable[[], None] | None = None) -> int:
        """Run all steps into the part of the columns that is this one's: how many were made.

        end: seconds of `time.monotonic` after which no step is begun but the first. before_step: called before each.
        """
        assert self._obs is not None
        obs, action, reward, terminated, truncated, next_obs, valid, _ = own
        running = np.ones(reward.shape[1:], bool)
        for t in range(len(reward)):
            if not running.any() or (t > 0 and end < math.inf and time.monotonic() >= end):
                for column in own:
                    column[t:] = 0
                return t
            if before_step is not None:
                before_step()
            action[t], clipped = decide(t, self._obs)
            step: HostStep = self.vector.step(clipped.reshape(-1, *clipped.shape[2:]))
            obs[t], next_obs[t] = self._obs, self._by_seed(step.next_obs)
            for column, values in (
                (reward, step.reward),
                (terminated, step.terminated),
                (truncated, step.truncated),
                (valid, step.valid),
            ):
                column[t] = self._by_seed(values)
            self._obs = self._by_seed(step.obs)
            if self._whole_episodes:
                valid[t] &= running
                # A fault, after which the row is not valid, ends an episode too.
                running &= valid[t] & ~(terminated[t] | truncated[t])
        if self._whole_episodes:
            truncated[-1] |= running
        return len(reward)

    def _by_seed(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self._seeds, -1, *x.shape[1:])


def parts(count: int, groups: int) -> list[slice]:
    """0 … count − 1 split into consecutive parts of about equal size, none of them empty.

    count: number of items. groups: maximum number of parts.
    """
    edges = np.linspace(0, count, min(count, groups) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
