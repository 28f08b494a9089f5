"""One worker process, seen from the process that started it: send orders, receive answers, notice when it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from klimb import processes
from klimb.errors import EnvironmentFault, one_line, printable

MIN_TIMEOUT = 60.0
"""Seconds within which a worker has to read an order, and the shortest time it gets to make its environments."""
MAX_STDERR = 2**20
"""Bytes of a worker's error output after which it is emptied."""
MAX_QUOTED = 8_000
"""Characters of a worker's error output that are quoted when it is lost."""
SECONDS_TO_SAY_WHERE = 2.0
"""Seconds that a hanging worker gets to say where it hangs."""
# One thread per worker: there are as many workers as cores.
ENVIRONMENT = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class WorkerLost(Exception):
    """A worker process has ended, hangs, or answers out of order; the message is one line.

    error_output: the end of what it wrote to its standard error, where that is more than a line; else None.
    """

    def __init__(self, message: str, error_output: str | None = None) -> None:
        super().__init__(message)
        self.error_output = error_output


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
        self.process = processes.start(
            processes.command("klimb.collect.host.worker", "serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=inherited,
            env={**os.environ, **ENVIRONMENT},
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
                raise EnvironmentFault(answer["fatal"], answer["traceback"])
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
        """The exception for `what` happened, with the line of the worker's error output that says most."""
        self._errors.seek(0)
        text = printable(self._errors.read().decode(errors="replace").strip())
        lines = text.splitlines()
        # Of a crash faulthandler writes the reason first, and then where it was.
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        last = (fatal or lines or ["it wrote nothing"])[-1]
        return WorkerLost(f"{what}: {one_line(last, 200)}", f"{text[-MAX_QUOTED:]}\n" if len(lines) > 1 else None)

    def _hangs(self) -> WorkerLost:
        """The exception for an answer that does not come, with the place where the worker hangs."""
        self._errors.seek(0, os.SEEK_END)
        before = self._errors.tell()
        if hasattr(signal, "SIGUSR1"):
            self.process.send_signal(signal.SIGUSR1)
            end = time.monotonic() + SECONDS_TO_SAY_WHERE
            while os.fstat(self._errors.fileno()).st_size == before and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.05)  # until it has written all of it
        self._errors.seek(before)
        stack = printable(self._errors.read().decode(errors="replace"))
        # `Stack (most recent call first):` and lines `  File "…", line N in NAME`.
        place = re.search(r'^  File "(.*)", line (\d+) in (.*)$', stack, flags=re.MULTILINE)
        if place is None:
            return self.lost("has not answered in time")
        where = f"{place[3]} ({Path(place[1]).name}, line {place[2]})"
        return WorkerLost(f"has not answered in time: it hangs in {one_line(where)}", stack)

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
                raise self._hangs()
            chunk = os.read(self.process.stdout.fileno(), 2**16)
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=1)
                status = self.process.poll()
                raise self.lost("has closed its output" if status is None else f"has ended with status {status}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line
