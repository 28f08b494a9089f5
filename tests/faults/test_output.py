"""Output that can't be printed, and callbacks that fail: a training is worth more than the lines about it."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import subprocess
import sys

import pytest

import klimb
from klimb import PPO
from klimb.cli.main import main
from klimb.console import training_console
from klimb.runs.checkpoint import saved_iterations
from klimb.terminal import LastingStream
from klimb.training.progress.choice import lines_on
from klimb.training.progress.panel import TerminalPanel
from klimb.training.progress.view import View

fault = pytest.mark.fault
slow = pytest.mark.slow
GOES_ON = "a line says so; the training goes on to its end, and its files are whole"
SMALL = {"env_steps": 640, "num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2}
RULE = PPO(epochs=1, num_minibatches=2)
WORDS = shlex.split(
    "train ppo jax:CartPole-v1 --env-steps 640 --num-envs 4 --num-steps 32 --hidden 8 --critic-epochs 2 --epochs 1 "
    "--num-minibatches 2 --eval-episodes 1 --run-dir run --verbose"
)


class Failing(io.StringIO):
    """A stream that takes some writes, and then no more. after: how many. error: what is raised then."""

    def __init__(self, after: int, error: Exception, terminal: bool = False) -> None:
        super().__init__()
        self.left, self.error, self.terminal = after, error, terminal

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.left < 0:
            raise self.error

    def isatty(self) -> bool:
        return self.terminal


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
GONE = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


def require_whole(path) -> None:
    """The run of `WORDS` has been trained to its end, and evaluated."""
    assert json.loads((path / "ended.json").read_text())["reason"] == "complete"
    assert saved_iterations(path / "checkpoints")[0] == 5
    assert (path / "report.html").exists()
    assert (path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("after", "error"),
    [
        pytest.param(0, FULL, marks=fault("standard output is on a full disk from the start", GOES_ON)),
        pytest.param(4, FULL, marks=(slow, fault("the disk of standard output is full after some lines", GOES_ON))),
        pytest.param(
            3, GONE, marks=(slow, fault("nobody reads standard output after three lines, as `head -3` does", GOES_ON))
        ),
        pytest.param(
            2,
            ValueError("I/O operation on closed file."),
            marks=(slow, fault("standard output is closed under way", GOES_ON)),
        ),
    ],
)
def test_a_training_goes_on_without_its_lines(after, error, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sys, "stdout", Failing(after, error))
    assert main(WORDS) == 0
    require_whole(tmp_path / "run")
    said = [record.getMessage() for record in caplog.records if "standard output can't be written" in record.message]
    assert len(said) == 1


@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param("latin-1", marks=(slow, fault("the terminal's encoding is Latin-1", f"{GOES_ON}; – becomes ?"))),
        pytest.param("ascii", marks=fault("the terminal's encoding is ASCII", f"{GOES_ON}; – becomes ?")),
    ],
)
def test_encodings_that_lack_characters(encoding, monkeypatch, tmp_path):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(WORDS) == 0
    require_whole(tmp_path / "run")
    assert main(["compare", "run"]) == 0
    assert main(["train", "ppo", "--help"]) == 0
    said = raw.getvalue().decode(encoding)
    assert "KL 0" in said
    assert "–" not in said
    assert "usage: klimb train" in said


@slow
@fault("the terminal of a panel is gone", "the panel ends, and the training goes on")
def test_a_panel_without_its_terminal(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Failing(1, OSError(errno.EIO, os.strerror(errno.EIO)), terminal=True))
    run = klimb.train("jax:CartPole-v1", RULE, progress=TerminalPanel(training_console()), run_dir="run", **SMALL)
    assert run.ended.reason == "complete"
    assert "standard output can't be written (Input/output error)" in caplog.text


@slow
@fault("standard error is closed, with progress=True in Python", "the training goes on")
def test_progress_on_a_closed_standard_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    run = klimb.train("jax:CartPole-v1", RULE, progress=lines_on(training_console(error=True)), **SMALL)
    assert run.ended.reason == "complete"


def test_what_a_lasting_stream_is_of():
    """It passes on what it can, also that it is a terminal, and asks nothing of a stream that is gone."""
    inner = Failing(1, FULL, terminal=True)
    stream = LastingStream(inner, "it")
    assert stream.isatty()
    assert stream.write("abc") == stream.write("def") == 3
    stream.flush()
    assert inner.getvalue() == "abc"


@fault("the result of a command can't be written: `klimb list` into /dev/full", "one line, exit status 1")
def test_a_result_that_can_not_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "klimb", "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "klimb: standard output can't be written: No space left on device\n"


@fault("nobody reads the result of a command: `klimb list` into `head -1`", "nothing is said, exit status 0")
def test_a_result_that_nobody_reads(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(0, GONE))
    assert main(["list"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("callback", marks=fault("a callback raises", "the error is raised, after a checkpoint")),
        pytest.param(
            "view", marks=(slow, fault("a view of the user's own raises", "the error is raised, after a checkpoint"))
        ),
    ],
)
def test_what_is_told_of_a_training_fails(kind, tmp_path):
    def fail(iteration: int) -> None:
        if iteration >= 3:
            raise ZeroDivisionError("of my own")

    class Own(View):
        def update(self, records):
            fail(records[-1]["iteration"])

    told = {"callback": lambda run: fail(run.iteration)} if kind == "callback" else {"progress": Own()}
    with pytest.raises(ZeroDivisionError, match="of my own"):
        klimb.train("jax:CartPole-v1", RULE, run_dir=tmp_path / "run", **told, **SMALL, check_finite=True)
    assert saved_iterations(tmp_path / "run" / "checkpoints")[0] == 3
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["reason"], ended["iteration"]) == ("failed", 3)
    assert "ZeroDivisionError: of my own" in ended["message"]
    run = klimb.resume(tmp_path / "run")
    whole = klimb.train("jax:CartPole-v1", RULE, **SMALL, check_finite=True)
    assert run.history[-1]["episode_return"] == whole.history[-1]["episode_return"]


@fault("the memory is used up", "one line with what takes less, exit status 1")
def test_memory(monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("klimb.training.driver.start", fail)
    assert main(WORDS) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("klimb: the memory is used up (std::bad_alloc): use fewer environments")


@fault("a warning holds terminal escapes out of a file", "they are printed as text")
def test_warnings_hold_no_escapes(tmp_path):
    code = (
        "import logging; from klimb.terminal import prepare; prepare(); "
        "logging.getLogger('klimb').warning('%s is odd', 'a\\x1b]0;title\\x07\\u202e')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a\\x1b]0;title\\x07\\u202e is odd\n"
