"""Worker processes that step a Gymnasium environment: parameters out, whole rollouts back, through shared memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
from typing import IO, Any

import numpy as np

from klimb.collect.host_policy import HostPolicySpec
from klimb.collect.stepping import Columns, parts
from klimb.collect.worker import SharedRollout
from klimb.errors import RunError

# One thread each: their number is that of the cores already.
ENVIRONMENT = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class Workers:
    """`count` processes with a share of the N environments of every seed each. They start at once, and in parallel."""

    def __init__(
        self, recipe: dict[str, Any], spec: HostPolicySpec, shape: tuple[int, int, int], layout: Columns, count: int
    ) -> None:
        self._parts = parts(shape[2], count)
        self._file = _memory_file(SharedRollout.size(spec, shape, layout))
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self.shared = SharedRollout(self._memory, spec, shape, layout)
        self._errors = [tempfile.TemporaryFile() for _ in self._parts]  # noqa: SIM115 (closed in `close`)
        # What has been asked and not been answered yet: first of all whether the environments are made.
        self._awaited = ["ready"]
        task = {
            "shape": shape,
            "policy": spec.to_dict(),
            "observation": layout.obs[0][3:],
            "action": layout.action[0][3:],
            "memory": self._file.fileno(),
            "recipe": recipe,
        }
        # They find what this process finds.
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "klimb.collect.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                pass_fds=(self._file.fileno(),),
                env=environment,
            )
            for errors in self._errors
        ]
        try:
            for worker, part in enumerate(self._parts):
                self._tell(worker, {**task, "part": (part.start, part.stop)})
        except RunError:
            self.close()
            raise

    def reset(self, seeds: np.ndarray) -> None:
        """Start all episodes anew; `seeds` is `[K, N]`. Does not wait for it."""
        for worker, part in enumerate(self._parts):
            self._tell(worker, {"do": "reset", "seeds": [int(seed) for seed in seeds[:, part].reshape(-1)]})
        self._awaited.append("done")

    def begin(self, numbers: np.ndarray, noise: np.ndarray) -> None:
        """Let every worker begin a rollout with these policies `[K, spec.size]` and this noise `[T, K, N, *act]`."""
        self.shared.numbers[:] = numbers
        self.shared.noise[:] = noise
        for worker in range(len(self._parts)):
            self._tell(worker, {"do": "roll"})
        self._awaited.append("done")

    def finish(self) -> Columns:
        """The rollout that was begun, as arrays of its own."""
        self._hear()
        return Columns(*(column.copy() for column in self.shared.columns))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        for process in self._processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in (*self._errors, self._file):
            file.close()

    def _tell(self, worker: int, order: dict[str, Any]) -> None:
        stdin = self._processes[worker].stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
        except OSError:
            raise self._failure(worker) from None

    def _hear(self) -> None:
        """Wait for every worker's answers."""
        for expected in self._awaited:
            for worker, process in enumerate(self._processes):
                assert process.stdout is not None
                if process.stdout.readline().strip() != expected:
                    raise self._failure(worker)
        self._awaited = []

    def _failure(self, worker: int) -> RunError:
        """What a worker that has ended, or said something else, wrote last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[worker].wait(timeout=1)
        status = self._processes[worker].poll()
        self._errors[worker].seek(0)
        lines = self._errors[worker].read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it wrote nothing"
        part = self._parts[worker]
        return RunError(
            f"the process that steps the environments {part.start} to {part.stop - 1} of every seed has "
            f"{'stopped answering' if status is None else f'ended with status {status}'}: {last}; "
            "--workers 0 steps them in this process, with the whole traceback"
        )


def _memory_file(size: int) -> IO[bytes]:
    """A file that is memory and has no name, for other processes to inherit."""
    named = hasattr(os, "memfd_create")  # Linux only
    file = os.fdopen(os.memfd_create("klimb"), "w+b") if named else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file
