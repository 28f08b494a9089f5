"""Worker processes that step a Gymnasium environment. Policy parameters and rollouts go through shared memory."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from jaxtyping import Integer, PyTree

from klimb.collect.host import decisions
from klimb.collect.host.decisions import PolicySpec
from klimb.collect.host.shares import MAX_LOSSES, REMEDY, Shares
from klimb.collect.host.stepping import Columns, NoiseLayout, Stepped
from klimb.collect.host.worker import SharedRollout
from klimb.collect.host.worker_process import WorkerLost, WorkerProcess
from klimb.environments.faults import RemoteTraceback
from klimb.environments.host import Fault
from klimb.errors import EnvironmentFault
from klimb.policies.action_spec import ActionSpec
from klimb.policies.observations import ObservationSpec


class Workers:
    """Worker processes, each with a share of the N environments of every seed. All start in parallel at construction.

    env_spec: how to make an environment (`HostEnvironment.env_spec`). spec: of the policy. shape: (T, K, N).
    observations, actions: of the environment. count: number of processes, at most N. pack: from the policies' arrays
    `[K, …]` to their parameters `[K, spec.size]`. whole_episodes: whether a rollout is one episode of every copy, after
    a reset. noise: how it is laid out; None for one of the shape of an action at every step. derivatives: how many
    numbers those of a step are, 0 where they are not wanted. remembered: how many numbers the policy remembers.
    timeout: seconds that a worker may take to answer. straggler_timeout: seconds after which a worker hands over the
    steps of a rollout that it has made; None: it makes all of them.
    restart: whether a worker that is lost (ended, hanging) is restarted; the rows of its environments are then not
    valid in that rollout. EnvironmentFault without `restart`, and when a worker is lost in `MAX_LOSSES` rollouts in a
    row.
    """

    def __init__(
        self,
        env_spec: dict[str, Any],
        spec: PolicySpec,
        shape: tuple[int, int, int],
        observations: ObservationSpec,
        actions: ActionSpec,
        count: int,
        pack: Callable[[PyTree], np.ndarray],
        *,
        whole_episodes: bool = False,
        noise: NoiseLayout | None = None,
        derivatives: int = 0,
        remembered: int = 0,
        restart: bool = False,
        timeout: float = 300.0,
        straggler_timeout: float | None = None,
    ) -> None:
        self._straggler_timeout = straggler_timeout
        self._shares = Shares(shape[1], shape[2], count)
        self._restart, self._timeout, self._pack = restart, timeout, pack
        layout = Columns.layout(shape, observations, actions, derivatives, remembered)
        noise = NoiseLayout.of(shape[0], 1, actions.shape) if noise is None else noise
        self._file = _memory_file(SharedRollout.size(spec, shape, layout, noise))
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self.shared = SharedRollout(self._memory, spec, shape, layout, noise)
        self._task = {
            "shape": shape,
            "policy": decisions.to_dict(spec),
            "observations": observations.to_json(),
            "actions": actions.to_json(),
            "noise": noise,
            "memory": self._file.fileno(),
            "env_spec": env_spec,
            "whole_episodes": whole_episodes,
            "derivatives": derivatives,
            "remembered": remembered,
            "restart": restart,
        }
        self._losses = [0] * len(self._shares)
        self._workers: list[WorkerProcess] = []
        try:
            for part in self._shares.parts:
                self._workers.append(self._start(part))
        except OSError as error:
            self.close()
            raise EnvironmentFault(
                f"worker processes can't be started ({error.strerror}): use fewer --workers"
            ) from None

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        """Begin new episodes in all environments, without waiting for it. seeds: one per environment."""
        self._shares.reset(seeds)
        for number in range(len(self._shares)):
            self._reset(number)

    def begin(self, policy: PyTree, noise: np.ndarray, *, at_once: bool = False) -> None:
        """Begin a rollout in every worker.

        policy: arrays of every seed's policy, `[K, …]`. noise: of its actions, as `NoiseLayout` says. at_once: makes no
        difference here.
        """
        self.shared.parameters[:] = self._pack(policy)
        self.shared.noise[:] = noise
        for worker in self._workers:
            worker.send("roll", seconds=self._straggler_timeout)

    def finish(self) -> Stepped:
        """Wait for the rollout that was begun: copies of its arrays. Raises EnvironmentFault as the class says."""
        faults: list[Fault] = []
        made: list[int | None] = [None] * len(self._shares)
        deadline = time.monotonic() + self._timeout
        for number in range(len(self._shares)):
            try:
                answer = self._workers[number].receive(deadline, self._timeout)
            except WorkerLost as lost:
                faults += self._replace(number, lost)
                continue
            except EnvironmentFault as fault:
                trace = fault.environment_traceback
                message = f"{self._shares.name(number)}: {fault}; {REMEDY}"
                raise EnvironmentFault(message, trace) from (None if trace is None else RemoteTraceback(trace))
            self._losses[number], made[number] = 0, answer["made"]
            faults += self._shares.survived(number, answer["faults"])
        columns = Columns(*(column.copy() for column in self.shared.columns.with_room()))
        return Stepped(columns, faults, None if self._straggler_timeout is None else self._shares.made(made, columns))

    def capture(self) -> dict[str, list] | None:
        """The states of all environments, by seed and environment; None where they can't be saved."""
        try:
            answers = self._all("capture", [{}] * len(self._shares))
        except (WorkerLost, EnvironmentFault):
            return None
        return self._shares.joined([answer["captured"] for answer in answers])

    def restore(self, captured: dict[str, list]) -> None:
        """Restore what `capture` returned. EnvironmentFault when a worker can't."""
        try:
            self._all("restore", [{"captured": share} for share in self._shares.split(captured)])
        except (WorkerLost, EnvironmentFault) as error:
            raise EnvironmentFault(f"the environments can't be restored from the checkpoint: {error}") from None

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            # A worker that waits for orders ends at once when its input is closed.
            worker.end(patience=5.0)
        self._file.close()

    def _all(self, order: str, arguments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every worker's answer to an order, given with its own arguments. WorkerLost or EnvironmentFault."""
        for worker, own in zip(self._workers, arguments, strict=True):
            worker.send(order, **own)
        deadline = time.monotonic() + self._timeout
        return [worker.receive(deadline, self._timeout) for worker in self._workers]

    def _reset(self, number: int) -> None:
        """Have a worker begin new episodes, without waiting for it."""
        self._workers[number].send("reset", seeds=self._shares.seeds(number))

    def _start(self, part: slice) -> WorkerProcess:
        return WorkerProcess({**self._task, "part": (part.start, part.stop)}, (self._file.fileno(),))

    def _replace(self, number: int, lost: WorkerLost) -> list[Fault]:
        """Replace a lost worker, and blank its rows of this rollout. Returns a fault for each of its environments."""
        part = self._shares.parts[number]
        self._losses[number] += 1
        cause = f"{self._shares.name(number)} {lost}"
        # A worker that could not make its environments would be lost again.
        if not (self._restart and self._workers[number].started) or self._losses[number] >= MAX_LOSSES:
            times = f" ({self._losses[number]} rollouts in a row)" if self._losses[number] > 1 else ""
            raise EnvironmentFault(f"{cause}{times}; {REMEDY}", lost.error_output)
        # Killed at once: it may hang, and must not write into the shared memory any more.
        self._workers[number].end(patience=0.0)
        self.shared.columns.part(part).blank()
        self._workers[number] = self._start(part)
        faults = self._shares.lost(number, cause, lost.error_output)
        self._reset(number)
        return faults


def _memory_file(size: int) -> IO[bytes]:
    """An anonymous in-memory file (memfd), inherited by the workers; a temporary file where there is no memfd."""
    has_memfd = hasattr(os, "memfd_create")  # Linux only
    file = os.fdopen(os.memfd_create("klimb"), "w+b") if has_memfd else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file
