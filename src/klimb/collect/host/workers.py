"""Worker processes that step a Gymnasium environment: parameters out, whole rollouts back, through shared memory."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from jaxtyping import PyTree

from klimb.collect.host import decisions
from klimb.collect.host.decisions import PolicySpec
from klimb.collect.host.stepping import Columns, parts
from klimb.collect.host.worker import SharedRollout
from klimb.collect.host.worker_process import WorkerLost, WorkerProcess
from klimb.environments.adapters.gymnasium import copy_seeds
from klimb.environments.host import Fault
from klimb.errors import EnvironmentFault

MOST_LOSSES = 3
"""Rollouts in a row that one worker may be lost in."""
REMEDY = "--workers 0 steps them in this process, with the whole traceback"


class Workers:
    """`count` processes with a share of the N environments of every seed each. They start at once, and in parallel.

    timeout: seconds that a worker may take to answer. With `restart` a worker that is lost is started anew, and the
    rows of its environments are not valid in that rollout; else, and when it is lost in `MOST_LOSSES` rollouts in a
    row, that is an EnvironmentFault.
    """

    def __init__(
        self,
        env_spec: dict[str, Any],
        spec: PolicySpec,
        shape: tuple[int, int, int],
        layout: Columns,
        count: int,
        pack: Callable[[PyTree], np.ndarray],
        *,
        restart: bool = False,
        timeout: float = 300.0,
    ) -> None:
        self._parts = parts(shape[2], count)
        self._restart, self._timeout, self._pack = restart, timeout, pack
        self._file = _memory_file(SharedRollout.size(spec, shape, layout))
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self.shared = SharedRollout(self._memory, spec, shape, layout)
        self._task = {
            "shape": shape,
            "policy": decisions.to_dict(spec),
            "discrete": bool(np.issubdtype(layout.action[1], np.integer)),
            "observation": layout.obs[0][3:],
            "action": layout.action[0][3:],
            "memory": self._file.fileno(),
            "env_spec": env_spec,
            "restart": restart,
        }
        self._seeds = shape[1]
        self._seed, self._restarts = 0, 0
        self._losses = [0] * len(self._parts)
        self._workers: list[WorkerProcess] = []
        try:
            for part in self._parts:
                self._workers.append(self._start(part))
        except OSError as error:
            self.close()
            raise EnvironmentFault(
                f"worker processes can't be started ({error.strerror}): use fewer --workers"
            ) from None

    def reset(self, seed: int) -> None:
        """Start all episodes again, with seeds derived from `seed`. Does not wait for it."""
        seeds = copy_seeds(seed, self._seeds * self._copies).reshape(self._seeds, self._copies)
        self._seed = int(seeds[0, 0])
        for worker, part in zip(self._workers, self._parts, strict=True):
            worker.ask("reset", seeds=[int(seed) for seed in seeds[:, part].reshape(-1)])

    def begin(self, policy: PyTree, noise: np.ndarray, *, at_once: bool = False) -> None:
        """Let every worker begin a rollout.

        policy: arrays `[K, …]`. noise: `[T, K, N, *act]`. at_once: makes no difference here.
        """
        self.shared.parameters[:] = self._pack(policy)
        self.shared.noise[:] = noise
        for worker in self._workers:
            worker.ask("roll")

    def finish(self) -> tuple[Columns, list[Fault]]:
        """The rollout that was begun, as arrays of its own, and what went wrong; copies count over seeds, then N."""
        faults: list[Fault] = []
        deadline = time.monotonic() + self._timeout
        for number, part in enumerate(self._parts):
            try:
                answer = self._workers[number].hear(deadline, self._timeout)
            except WorkerLost as lost:
                faults += self._replace(number, lost)
                continue
            except EnvironmentFault as fault:
                raise EnvironmentFault(f"{self._name(number)}: {fault}; {REMEDY}") from None
            self._losses[number] = 0
            width = part.stop - part.start
            faults += [
                Fault(copy // width * self._copies + part.start + copy % width, cause)
                for copy, cause in answer["faults"]
            ]
        return Columns(*(column.copy() for column in self.shared.columns)), faults

    def capture(self) -> dict[str, list] | None:
        """Where all copies stand, by seed and copy; None where that can't be saved, or a worker is lost."""
        try:
            captured = [answer["captured"] for answer in self._all("capture", [{}] * len(self._parts))]
        except (WorkerLost, EnvironmentFault):
            return None
        if any(part is None for part in captured):
            return None
        return {
            name: [[copy for part in captured for copy in part[name][k]] for k in range(self._seeds)]
            for name in captured[0]
        }

    def restore(self, captured: dict[str, list]) -> None:
        """Put them there. EnvironmentFault when a worker can't."""
        own = [{name: [seed[part] for seed in rows] for name, rows in captured.items()} for part in self._parts]
        try:
            self._all("restore", [{"captured": one} for one in own])
        except (WorkerLost, EnvironmentFault) as lost:
            raise EnvironmentFault(f"the environments can't be put where the checkpoint left them: {lost}") from None

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            # Those that wait for orders end at once.
            worker.end(patience=5.0)
        self._file.close()

    def _all(self, order: str, words: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every worker's answer to an order. WorkerLost or EnvironmentFault when one has none."""
        for worker, one in zip(self._workers, words, strict=True):
            worker.ask(order, **one)
        deadline = time.monotonic() + self._timeout
        return [worker.hear(deadline, self._timeout) for worker in self._workers]

    @property
    def _copies(self) -> int:
        return self._parts[-1].stop

    def _name(self, number: int) -> str:
        part = self._parts[number]
        return f"the process that steps the environments {part.start} to {part.stop - 1} of every seed"

    def _start(self, part: slice) -> WorkerProcess:
        return WorkerProcess({**self._task, "part": (part.start, part.stop)}, (self._file.fileno(),))

    def _replace(self, number: int, lost: WorkerLost) -> list[Fault]:
        """Another worker in the place of a lost one, whose rows of this rollout are not valid: the faults."""
        part = self._parts[number]
        self._losses[number] += 1
        story = f"{self._name(number)} {lost}"
        # One whose environments can't even be made would be lost again.
        if not (self._restart and self._workers[number].started) or self._losses[number] >= MOST_LOSSES:
            times = f" ({self._losses[number]} rollouts in a row)" if self._losses[number] > 1 else ""
            raise EnvironmentFault(f"{story}{times}; {REMEDY}")
        # By force: it may hang, and nobody else may write into the memory from now on.
        self._workers[number].end(patience=0.0)
        for column in self.shared.columns:
            column[:, :, part] = 0
        self._workers[number] = self._start(part)
        self._restarts += 1
        seed = int(np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)[0])
        count = self._seeds * (part.stop - part.start)
        self._workers[number].ask("reset", seeds=[int(one) for one in copy_seeds(seed, count)])
        return [
            Fault(seed * self._copies + copy, story)
            for seed in range(self._seeds)
            for copy in range(part.start, part.stop)
        ]


def _memory_file(size: int) -> IO[bytes]:
    """A file that is memory and has no name, for other processes to inherit."""
    named = hasattr(os, "memfd_create")  # Linux only
    file = os.fdopen(os.memfd_create("klimb"), "w+b") if named else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file
