"""One worker process, from the side that started it: orders out, answers back, and what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from typing import Any

from klimb.errors import EnvironmentFault

PATIENCE = 60.0
"""Seconds in which an order has to be taken, and at the least those in which the environments have to be made."""
MOST_SAID = 2**20
"""Bytes of what environments print that are kept."""
# One thread each: their number is that of the cores already.
ENVIRONMENT = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class WorkerLost(Exception):
    """The process has ended, hangs, or says what nobody asked; in one line."""


class WorkerProcess:
    """`klimb.collect.host.worker` with a task, and the file descriptors that it inherits."""

    def __init__(self, task: dict[str, Any], inherited: tuple[int, ...]) -> None:
        # Appended to, so that it can be emptied while the process writes.
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed in `end`)
        self._heard = b""
        # What has been asked and not been answered yet: first of all whether the environments are made.
        self._awaited = ["make"]
        # It finds what this process finds.
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "klimb.collect.host.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=inherited,
            env=environment,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self._answers, self._orders = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._answers.register(self.process.stdout, selectors.EVENT_READ)
        self._orders.register(self.process.stdin, selectors.EVENT_WRITE)
        self._write(task)

    def ask(self, do: str, **words: Any) -> None:
        """Give an order. Whether it arrives is heard with the answers."""
        self._write({"do": do, **words})
        self._awaited.append(do)

    def hear(self, deadline: float, timeout: float) -> dict[str, Any]:
        """The answer to the last order, after those to all before it.

        WorkerLost when it has not come by the deadline (of `time.monotonic`), which is put off by the seconds that the
        environments take to be made, and then `timeout`. EnvironmentFault when the environments have given up.
        """
        answer: dict[str, Any] = {}
        while self._awaited:
            making = self._awaited[0] == "make"
            line = self._line(max(deadline, time.monotonic() + PATIENCE) if making else deadline)
            deadline = max(deadline, time.monotonic() + timeout) if making else deadline
            try:
                answer = json.loads(line)
            except ValueError:
                raise self.lost(f"answers {line[:80]!r}") from None
            if answer.get("done") != self._awaited[0]:
                raise self.lost(f"answers {line[:80]!r}")
            if "fatal" in answer:
                raise EnvironmentFault(answer["fatal"])
            self._awaited.pop(0)
        if os.fstat(self._errors.fileno()).st_size > MOST_SAID:
            os.ftruncate(self._errors.fileno(), 0)
        return answer

    @property
    def started(self) -> bool:
        """Whether its environments have been made."""
        return "make" not in self._awaited

    def end(self, *, patience: float) -> None:
        """End the process: by itself within `patience` seconds, else by force."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()
        self._orders.close()
        self._errors.close()

    def lost(self, what: str) -> WorkerLost:
        """With what it wrote last."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return WorkerLost(f"{what}: {lines[-1][:200] if lines else 'it wrote nothing'}")

    def _write(self, words: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        left = memoryview(json.dumps(words).encode() + b"\n")
        # A process that has ended, or takes no orders, is noticed when its answer is waited for.
        with contextlib.suppress(BrokenPipeError):
            while left and self._orders.select(PATIENCE):
                left = left[os.write(self.process.stdin.fileno(), left) :]

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            left = deadline - time.monotonic()
            if left <= 0 or not self._answers.select(left):
                raise self.lost("has not answered in time")
            said = os.read(self.process.stdout.fileno(), 2**16)
            if not said:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=1)
                status = self.process.poll()
                raise self.lost("has closed its output" if status is None else f"has ended with status {status}")
            self._heard += said
        line, _, self._heard = self._heard.partition(b"\n")
        return line
