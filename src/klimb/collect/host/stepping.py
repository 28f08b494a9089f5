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

Decide = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(time step, observations `[K, n, ...]`, what is remembered `[K, n, C]`) ↦ actions `[K, n, ...]`, as the policy
samples them and as the environment gets them (clipped), and what is remembered after the step."""


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
    valid: ArraySpec
    derivatives: ArraySpec
    carry: ArraySpec
    successor_step: ArraySpec
    successor: ArraySpec


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
    they are not recorded. carry: what the policy remembered at the start of the rollout, `[1, K, N, C]`; none, C = 0,
    of a policy without memory. successor, successor_step: as in `klimb.types.Rollout`, `[E, K, N, ...]`, except that
    the first ones are of the last rows that were made. There is room for E of a column; they come last, so that what is
    not used can be left out where the rest is sent.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    derivatives: np.ndarray
    carry: np.ndarray
    successor_step: np.ndarray
    successor: np.ndarray

    @classmethod
    def layout(
        cls,
        shape: tuple[int, int, int],
        observations: ObservationSpec,
        actions: ActionSpec,
        derivatives: int = 0,
        remembered: int = 0,
    ) -> ColumnsLayout:
        """Shapes and dtypes of the columns, with room for as many successors as there are rows.

        shape: (T, K, N). observations, actions: what one of each is. derivatives: how many numbers those of a step are.
        remembered: C.
        """
        obs = ArraySpec((*shape, *observations.shape), observations.dtype)
        action = ArraySpec((*shape, *actions.shape), actions.dtype)
        reward, flag = ArraySpec(shape, np.float32), ArraySpec(shape, np.bool_)
        numbers = ArraySpec((*shape, derivatives), np.float32)
        carry, step = ArraySpec((1, *shape[1:], remembered), np.float32), ArraySpec(shape, np.int32)
        return ColumnsLayout(obs, action, reward, flag, flag, flag, numbers, carry, step, obs)

    @classmethod
    def empty(cls, layout: ColumnsLayout) -> Columns:
        """New, uninitialised arrays of this layout."""
        return cls(*(np.empty(spec.shape, spec.dtype) for spec in layout))

    @classmethod
    def within(cls, layout: ColumnsLayout, memory: memoryview) -> Columns:
        """Arrays that share the first `bytes_of(layout)` bytes of a block of memory.

        layout: of the arrays. memory: the block. It may be shorter, as `bytes_in_use` says, and then has room for fewer
        successors.
        """
        arrays, start = [], 0
        for spec in layout:
            count = min(math.prod(spec.shape), (len(memory) - start) // np.dtype(spec.dtype).itemsize)
            array = np.frombuffer(memory, spec.dtype, count, start)
            arrays.append(array.reshape(-1, *spec.shape[1:]) if count > 0 else np.zeros(spec.shape, spec.dtype))
            start += spec.num_bytes
        return cls(*arrays)

    def bytes_in_use(self, layout: ColumnsLayout) -> int:
        """Bytes from the start of a block of memory that hold everything. layout: of the block."""
        of_successors = layout.successor.num_bytes - self.successor[: self.used].nbytes
        return bytes_of(layout) - of_successors

    @property
    def rows(self) -> tuple[np.ndarray, ...]:
        """The columns that have a value for every step, `[T, K, N, ...]`."""
        return self[:-3]

    def part(self, part: slice) -> Columns:
        """The columns of some of the N environments. part: which."""
        return Columns(*(column[:, :, part] for column in self))

    def blank(self, start: int = 0) -> None:
        """Rows that are not made: zeros, and not valid. start: the first of them, and all after it."""
        for column in self.rows:
            column[start:] = 0
        if start == 0:
            self.carry[:] = 0
            self.successor_step[:] = len(self.reward)

    @property
    def used(self) -> int:
        """How many successors are kept of the column that has most of them."""
        return int((self.successor_step < len(self.reward)).sum(0).max())

    def with_room(self, room: int | None = None) -> Columns:
        """The same columns with other room for successors, where places that are not used hold T and zeros.

        room: for so many of a column, at least `used`; None for no more than that.
        """
        count, used = len(self.reward), self.used
        room = used if room is None else room
        step = np.full((room, *self.successor_step.shape[1:]), count, self.successor_step.dtype)
        obs = np.zeros((room, *self.successor.shape[1:]), self.successor.dtype)
        step[:used] = self.successor_step[:used]
        exists = step[:used] < count
        obs[:used][exists] = self.successor[:used][exists]
        return self._replace(successor_step=step, successor=obs)


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
    """Running copies of an environment, the observations they wait in, and what the policy remembers of them.

    vector: the copies, n of each of K seeds. part: which n of the N columns of a rollout they fill. seeds: K.
    whole_episodes: whether a rollout is one episode of every copy, after a reset. remembered: C, numbers that the
    policy remembers of each.
    """

    def __init__(
        self, vector: HostVector, part: slice, seeds: int, *, whole_episodes: bool = False, remembered: int = 0
    ) -> None:
        self.vector, self._part, self._seeds = vector, part, seeds
        self._whole_episodes, self._remembered = whole_episodes, remembered
        self._obs: np.ndarray | None = None
        self._carry = np.zeros((seeds, 0, remembered), np.float32)

    def start_from(self, obs: np.ndarray) -> None:
        """Set the copies' observations after a reset, `[K·n, ...]`."""
        self._obs = self._by_seed(obs)
        self._carry = np.zeros((*self._obs.shape[:2], self._remembered), np.float32)

    def capture(self) -> dict[str, list] | None:
        """States, observations and what is remembered of all copies, as plain data by seed and copy.

        None where the states can't be saved.
        """
        states = self.vector.capture()
        if states is None or self._obs is None:
            return None
        copies = len(states) // self._seeds
        return {
            "states": [states[i * copies : (i + 1) * copies] for i in range(self._seeds)],
            "obs": self._obs.tolist(),
            **({"carry": self._carry.tolist()} if self._remembered else {}),
        }

    def restore(self, captured: dict[str, list]) -> None:
        """Restore, after a reset, what `capture` returned. RunError or ValueError when it does not fit."""
        with np.errstate(over="ignore"):
            obs = np.array(captured["obs"], np.float32 if self._obs is None else self._obs.dtype)
            carry = np.array(captured["carry"], np.float32) if self._remembered else self._carry
        if self._obs is None or obs.shape != self._obs.shape:
            raise ValueError(f"observations of the shape {obs.shape}")
        if carry.shape != self._carry.shape:
            raise ValueError(f"a memory of the shape {carry.shape}")
        self.vector.restore([state for seed in captured["states"] for state in seed])
        self._obs, self._carry = obs, carry

    def roll(self, decide: Decide, columns: Columns, seconds: float | None = None) -> int:
        """Run all steps of a rollout; of whole episodes, until the last of them has ended. Returns how many were made.

        decide: the policy. columns: of the whole rollout; this part of them is filled. seconds: after which no further
        step is begun, and the rows of the others are not valid: at least one is made. None for no such limit. The
        copies stay where they are, and go on from there in the next rollout.
        """
        assert self._obs is not None, "reset comes before collect"
        own = columns.part(self._part)
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
        obs, action, reward, terminated, truncated, valid, *_ = own
        own.carry[0] = self._carry
        successors = _Successors(own)
        running = np.ones(reward.shape[1:], bool)
        made = len(reward)
        for t in range(len(reward)):
            if not running.any() or (t > 0 and end < math.inf and time.monotonic() >= end):
                own.blank(t)
                made = t
                break
            if before_step is not None:
                before_step()
            action[t], clipped, carry = decide(t, self._obs, self._carry)
            step: HostStep = self.vector.step(clipped.reshape(-1, *clipped.shape[2:]))
            obs[t] = self._obs
            for column, values in (
                (reward, step.reward),
                (terminated, step.terminated),
                (truncated, step.truncated),
                (valid, step.valid),
            ):
                column[t] = self._by_seed(values)
            ended = terminated[t] | truncated[t]
            if self._remembered:
                # As `klimb.policies.memory.forget`.
                usable = valid[t] & ~ended & np.isfinite(carry).all(-1)
                self._carry = np.where(usable[..., None], carry, np.float32(0))
            successors.keep(t, self._by_seed(step.next_obs), ended & running)
            self._obs = self._by_seed(step.obs)
            if self._whole_episodes:
                valid[t] &= running
                # A fault, after which the row is not valid, ends an episode too.
                running &= valid[t] & ~ended
        successors.end(made)
        if self._whole_episodes:
            truncated[-1] |= running
        return made

    def _by_seed(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self._seeds, -1, *x.shape[1:])


class _Successors:
    """Writes the true successors that a rollout keeps. columns: where to."""

    def __init__(self, columns: Columns) -> None:
        self._step, self._obs = columns.successor_step, columns.successor
        self._step[:] = len(self._step)
        # The first place is for the last row's.
        self._used = np.ones(self._step.shape[1:], int)
        self._last: np.ndarray | None = None

    def keep(self, t: int, next_obs: np.ndarray, ended: np.ndarray) -> None:
        """Note what came after a step.

        t: the step. next_obs: what came, `[K, n, ...]`. ended: where another episode begins after it, `[K, n]`.
        """
        self._last = next_obs
        if t + 1 < len(self._step):
            seed, copy = np.nonzero(ended)
            if len(seed) > 0:
                place = self._used[seed, copy]
                self._step[place, seed, copy], self._obs[place, seed, copy] = t, next_obs[seed, copy]
                self._used[seed, copy] += 1

    def end(self, made: int) -> None:
        """Note what came after the last row. made: number of the steps, at least 1."""
        assert self._last is not None
        self._step[0], self._obs[0] = made - 1, self._last


def parts(count: int, groups: int) -> list[slice]:
    """0 … count − 1 split into consecutive parts of about equal size, none of them empty.

    count: number of items. groups: maximum number of parts.
    """
    edges = np.linspace(0, count, min(count, groups) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
