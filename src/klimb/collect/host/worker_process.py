"""One worker process, seen from the process that started it: send orders, receive answers, notice when it is lost."""

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

MIN_TIMEOUT = 60.0
"""Seconds within which a worker has to read an order, and the shortest time it gets to make its environments."""
MAX_STDERR = 2**20
"""Bytes of a worker's error output after which it is emptied."""
# One thread per worker: there are as many workers as cores.
ENVIRONMENT = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class WorkerLost(Exception):
    """A worker process has ended, hangs, or answers out of order; the message is one line."""


class WorkerProcess:
    """A running process of `klimb.collect.host.worker`.

    task: what it is told first, as plain data. inherited: file descriptors that it inherits.
    """

    def __init__(self, task: dict[str, Any], inherited: tuple[int, ...]) -> None:
        # In append mode, so that it can be emptied while the process writes.
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed in `end`)
        self._received = b""
        # Orders without an answer so far. The first, implicit one is to make the environments.
        self._pending = ["make"]
        # Same sys.path, so the worker imports the same modules.
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

    def send(self, order: str, **arguments: Any) -> None:
        """Send an order. A failure is noticed when its answer is received.

        order: what to do. arguments: of the order, as plain data.
        """
        self._write({"do": order, **arguments})
        self._pending.append(order)

    def receive(self, deadline: float, timeout: float) -> dict[str, Any]:
        """Wait for the answers to all pending orders. Returns the last one.

        deadline: in seconds of `time.monotonic`. timeout: seconds for an order, which begin when the environments are
        made if they are not made yet.
        Raises WorkerLost when an answer is late, wrong or missing, EnvironmentFault when the environments ended the
        training.
        """
        answer: dict[str, Any] = {}
        while self._pending:
            making = self._pending[0] == "make"
            line = self._line(max(deadline, time.monotonic() + MIN_TIMEOUT) if making else deadline)
            deadline = max(deadline, time.monotonic() + timeout) if making else deadline
            try:
                answer = json.loads(line)
            except ValueError:
                raise self.lost(f"answers {line[:80]!r}") from None
            if answer.get("done") != self._pending[0]:
                raise self.lost(f"answers {line[:80]!r}")
            if "fatal" in answer:
                raise EnvironmentFault(answer["fatal"])
            self._pending.pop(0)
        if os.fstat(self._errors.fileno()).st_size > MAX_STDERR:
            os.ftruncate(self._errors.fileno(), 0)
        return answer

    @property
    def started(self) -> bool:
        """Whether its environments have been made."""
        return "make" not in self._pending

    def end(self, *, patience: float) -> None:
        """Close its input, wait up to `patience` seconds for it to end, then kill it."""
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
        """The exception for `what` happened, with the last line of the worker's error output."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return WorkerLost(f"{what}: {lines[-1][:200] if lines else 'it wrote nothing'}")

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        remaining = memoryview(json.dumps(message).encode() + b"\n")
        # A process that has ended, or reads no orders, is noticed when its answer is waited for.
        with contextlib.suppress(BrokenPipeError):
            while remaining and self._orders.select(MIN_TIMEOUT):
                remaining = remaining[os.write(self.process.stdin.fileno(), remaining) :]

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            seconds = deadline - time.monotonic()
            if seconds <= 0 or not self._answers.select(seconds):
                raise self.lost("has not answered in time")
            chunk = os.read(self.process.stdout.fileno(), 2**16)
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=1)
                status = self.process.poll()
                raise self.lost("has closed its output" if status is None else f"has ended with status {status}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line
