"""Signals: a training that is told to stop saves a checkpoint, and says how to continue."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from klimb.runs.metrics import read_metrics
from klimb.training.stop_signals import APART, StopSignals

fault = pytest.mark.fault
INT, TERM = signal.SIGINT, signal.SIGTERM
HUP = getattr(signal, "SIGHUP", None)
pytestmark = pytest.mark.skipif(HUP is None, reason="Windows has no such signals")

STOPPING = """
import sys, time
from klimb.training.stop_signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.received is None:
        time.sleep(0.002)
    time.sleep({checkpoint})
    print("checkpoint", flush=True)
time.sleep({farewell})
print("how to continue", flush=True)
sys.exit(128 + stop.received)
"""
"""A process that stops as a training does: a checkpoint, and a line after it."""

TRAINING = """
import sys, time
from klimb.cli.main import main
from klimb.training.progress.view import Lines
def update(self, records, update=Lines.update):
    update(self, records)
    time.sleep({pause})
Lines.update = update
sys.exit(main(sys.argv[1:]))
"""
"""`klimb`, whose trainings wait for some seconds after every call to the device."""


@dataclass
class Child:
    """A process that signals are sent to. output: what it has printed."""

    process: subprocess.Popen
    output: str = ""

    def send(self, *numbers: int, apart: float) -> None:
        """Send signals, some seconds apart."""
        for k, number in enumerate(numbers):
            time.sleep(apart if k else 0.0)
            self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; returns the status."""
        self.output += self.process.communicate(timeout=100)[0]
        return self.process.returncode


@contextlib.contextmanager
def running(words: list[str], **options: object) -> Iterator[Child]:
    environment = {
        **os.environ,
        "KLIMB_COMPILATION_CACHE": "off",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    # Where the tests run in the background of a script Ctrl-C is ignored, and new processes would ignore it too.
    before = signal.signal(INT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
        )
    finally:
        signal.signal(INT, before)
    try:
        yield Child(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def stopping(checkpoint: float = 0.0, farewell: float = 0.0) -> Iterator[Child]:
    code = STOPPING.format(checkpoint=checkpoint, farewell=farewell)
    with running([sys.executable, "-c", code]) as child:
        assert child.process.stdout.readline() == "ready\n"
        yield child


SAVED = "a checkpoint is saved, and a line says how to continue"
PAIRS = {
    "two in 2 ms": ([TERM, TERM], 0.002, fault("SIGTERM is sent twice, 2 ms apart, as timeout sends it", SAVED)),
    "two in 30 ms": ([TERM, TERM], 0.03, fault("SIGTERM is sent twice, 30 ms apart, as a wrapper sends it", SAVED)),
    "five": ([TERM] * 5, 0.01, fault("SIGTERM is sent five times, 10 ms apart", SAVED)),
    "both": ([INT, TERM], 0.01, fault("Ctrl-C is followed by SIGTERM after 10 ms", SAVED)),
    "two of Ctrl-C": ([INT, INT], 0.01, fault("Ctrl-C arrives twice, 10 ms apart", SAVED)),
}


def pairs(*names: str) -> list:
    return [pytest.param(*PAIRS[name][:2], marks=PAIRS[name][2], id=name) for name in names]


@pytest.mark.parametrize(("numbers", "apart"), pairs(*PAIRS))
def test_a_doubled_signal_is_one(numbers, apart):
    with stopping(checkpoint=0.2) as child:
        child.send(*numbers, apart=apart)
        assert child.end() == 128 + numbers[0], child.output
    assert child.output == "checkpoint\nhow to continue\n"


@fault("the second SIGTERM of a pair arrives after the checkpoint", "the line that says how to continue is printed")
def test_a_doubled_signal_whose_second_one_is_late():
    with stopping(farewell=0.3) as child:
        child.send(TERM, apart=0.0)
        assert child.process.stdout.readline() == "checkpoint\n"
        child.send(TERM, INT, apart=0.01)
        assert child.end() == 128 + TERM, child.output
    assert child.output == "how to continue\n"


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        pytest.param(
            [TERM, TERM],
            -TERM,
            marks=fault("SIGTERM is sent again after 1.5 s, while a checkpoint is waited for", "it ends at once"),
        ),
        pytest.param(
            [INT, INT],
            -INT,
            marks=fault("Ctrl-C is pressed again after 1.5 s, while a checkpoint is waited for", "it ends at once"),
        ),
        pytest.param(
            [TERM, TERM, TERM, TERM],
            -TERM,
            marks=(pytest.mark.slow, fault("SIGTERM is sent every 0.5 s", "it ends at once after 1 s")),
        ),
    ],
)
def test_a_second_signal_is_not_waited_for(numbers, status):
    apart = 1.5 if len(numbers) == 2 else 0.5
    with stopping(checkpoint=30.0) as child:
        began = time.monotonic()
        child.send(*numbers, apart=apart)
        assert child.end() == status
        assert APART <= time.monotonic() - began < 10
    assert "checkpoint\n" not in child.output


def current() -> list:
    return [signal.getsignal(number) for number in (INT, TERM, HUP)]


@pytest.fixture
def handlers() -> Iterator[list]:
    """Handlers of the tests' own, which record what they are called with."""
    seen: list[int] = []
    kept = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in (INT, TERM, HUP)}
    yield seen
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_without_a_signal_every_handler_is_as_before(handlers):
    before = current()
    with StopSignals() as stop:
        assert current() != before
    assert current() == before
    assert stop.received is None


def test_after_a_signal_the_handlers_before_take_over(handlers, monkeypatch):
    monkeypatch.setattr("klimb.training.stop_signals.APART", 0.05)
    before = current()
    with StopSignals() as stop:
        signal.raise_signal(TERM)
        assert (stop.received, handlers) == (TERM, [])
    signal.raise_signal(INT)
    assert handlers == []
    time.sleep(0.06)
    signal.raise_signal(INT)
    assert handlers == [INT]
    assert current() == before


def test_a_second_training_takes_nothing_over_from_the_first(handlers, monkeypatch):
    before = current()
    with StopSignals():
        signal.raise_signal(TERM)
    with StopSignals() as second:
        assert second.received is None
    assert current() == before


def test_a_training_inside_a_training_leaves_the_signals_to_the_outer_one(handlers):
    with StopSignals() as outer:
        with StopSignals():
            pass
        signal.raise_signal(TERM)
        assert outer.received == TERM


def test_a_handler_that_the_caller_sets_during_a_training_stays(handlers):
    with StopSignals():
        signal.signal(TERM, signal.SIG_IGN)
    assert signal.getsignal(TERM) == signal.SIG_IGN


@fault("the terminal is closed (SIGHUP)", SAVED)
def test_a_closed_terminal():
    with stopping() as child:
        child.send(HUP, apart=0.0)
        assert child.end() == 128 + HUP, child.output
    assert child.output == "checkpoint\nhow to continue\n"


@fault("the terminal is closed under nohup", "the training goes on")
def test_a_closed_terminal_under_nohup():
    code = STOPPING.format(checkpoint=0.0, farewell=0.0)
    with running(["nohup", sys.executable, "-u", "-c", code], stdin=subprocess.DEVNULL) as child:
        while child.process.stdout.readline() != "ready\n":
            assert child.process.poll() is None
        child.send(HUP, HUP, apart=0.05)
        time.sleep(0.1)
        assert child.process.poll() is None
        child.send(TERM, apart=0.0)
        assert child.end() == 128 + TERM, child.output


# Trainings.

WORDS = shlex.split(
    "train reinforce jax:CartPole-v1 --num-envs 4 --num-steps 16 --hidden 4 --critic-epochs 1 "
    "--critic-num-minibatches 1 --env-steps 100000000 --eval-episodes 0 --run-dir run"
)


@contextlib.contextmanager
def training(
    folder: Path, *, pause: float = 0.05, before: list[str] | None = None, **options: object
) -> Iterator[Child]:
    """`klimb train` that has made some iterations."""
    words = [*(before or []), sys.executable, "-c", TRAINING.format(pause=pause), *WORDS]
    with running(words, cwd=folder, **options) as child:
        metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 100
        while not (metrics.exists() and metrics.stat().st_size > 0):
            assert child.process.poll() is None, child.process.communicate()[0]
            assert time.monotonic() < deadline, "the training did not begin"
            time.sleep(0.05)
        yield child


def require_saved(run: Path) -> None:
    """The newest checkpoint is of the last iteration that is recorded."""
    recorded = read_metrics(run / "metrics.jsonl")[-1]["iteration"]
    assert (run / "checkpoints" / f"{recorded:09}.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "apart"), pairs("two in 2 ms", "five", "both"))
def test_a_training_that_is_told_twice(numbers, apart, tmp_path):
    with training(tmp_path) as child:
        child.send(*numbers, apart=apart)
        assert child.end() == 128 + numbers[0], child.output
    assert "checkpoint saved; go on with: klimb resume run" in child.output
    require_saved(tmp_path / "run")


@pytest.mark.slow
@fault("Ctrl-C is pressed again after 1.5 s, while a checkpoint is waited for", "it ends at once")
def test_a_training_that_is_told_once_more(tmp_path):
    with training(tmp_path, pause=30.0) as child:
        child.send(INT, INT, apart=1.5)
        assert child.end() == 130, child.output
    assert "stopped at once; from the last checkpoint go on with: klimb resume run" in child.output


@pytest.mark.slow
@fault("a training runs under timeout, which ends it", SAVED)
def test_under_timeout(tmp_path):
    with training(tmp_path, before=["timeout", "15"]) as child:
        assert child.end() == 124, child.output
    assert "checkpoint saved; go on with: klimb resume run" in child.output
    require_saved(tmp_path / "run")


@pytest.mark.slow
@fault("a pseudo-terminal is closed under its training", "a checkpoint is saved, and the exit status is 129")
def test_a_terminal_that_goes_away(tmp_path):
    ours, theirs = pty.openpty()
    own = [sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
           "os.execv(sys.argv[1], sys.argv[1:])"]  # fmt: skip
    with training(tmp_path, before=own, stdin=theirs, start_new_session=True) as child:
        os.close(theirs)
        os.close(ours)
        assert child.end() == 128 + HUP, child.output
    assert "checkpoint saved; go on with: klimb resume run" in child.output
    require_saved(tmp_path / "run")
