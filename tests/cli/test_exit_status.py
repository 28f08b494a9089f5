"""The exit status says what became of a command: every number that is listed is one that there is."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import klimb.cli.main as command_line
from klimb import ConfigError, Interrupted, TrainingFailed
from klimb.cli.main import EXIT_STATUS, main
from klimb.errors import CheckFailed
from klimb.training.progress.view import Lines

SMALL = shlex.split("--num-envs 4 --num-steps 16 --hidden 4 --critic-epochs 1 --critic-num-minibatches 1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


OUTCOMES = [
    (None, 0, ""),
    (TrainingFailed("the policy is gone"), 1, "klimb: the policy is gone\n"),
    (CheckFailed("1 statement does not hold"), 1, "klimb: 1 statement does not hold\n"),
    (ConfigError("no such flag"), 2, "klimb: no such flag\n"),
    (Interrupted("stopped; go on", 1, []), 129, "\nklimb: stopped; go on\n"),  # SIGHUP, which Windows does not have
    (KeyboardInterrupt(), 130, "\nklimb: stopped\n"),
    (Interrupted("stopped; go on", signal.SIGINT, []), 130, "\nklimb: stopped; go on\n"),
    (Interrupted("stopped; go on", signal.SIGTERM, []), 143, "\nklimb: stopped; go on\n"),
]


@pytest.mark.parametrize(("outcome", "status", "said"), OUTCOMES)
def test_how_a_command_ends_is_its_exit_status(outcome, status, said, monkeypatch, capsys):
    def execute(words):
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(command_line, "execute", execute)
    assert main(["train"]) == status
    assert capsys.readouterr().err == said


def test_every_status_is_listed_and_every_listed_one_is_there(capsys):
    assert set(EXIT_STATUS) == {status for _, status, _ in OUTCOMES}
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.split("exit status:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [[str(n), text] for n, text in EXIT_STATUS.items()]


TRAINED = "import sys, klimb.cli.main as m; m.execute = lambda words: print('iteration 1'); sys.exit(m.main(['train']))"


@pytest.mark.parametrize(
    ("command", "status"),
    [(["-m", "klimb", "list", "metrics"], 0), (["-m", "klimb", "--help"], 0), (["-c", TRAINED], 0)],
    ids=["list", "help", "train"],
)
def test_a_reader_that_goes_away_is_no_failure(command, status):
    """As `klimb list | head -1` does; nothing is said about it. A training has its files."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, *command], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.slow
def test_lines_to_type_again_are_quoted(capsys):
    """With a space in a name every line that is printed is one that a shell understands."""
    run = ["--run-dir", "my runs/one"]
    assert main(["train", "trpo", "CartPole-v1", *SMALL, *run, "--env-steps", "64", "--eval-episodes", "1"]) == 0
    again = command_in(capsys.readouterr().out, "again ")
    assert again == ["klimb", "evaluate", "my runs/one"]
    assert main(["record", "my runs/one", "--episodes", "1"]) == 0
    clone = command_in(capsys.readouterr().out, "clone ")
    assert clone[-2:] == ["--demonstrations", "my runs/one"]
    assert main(["train", "trpo", "CartPole-v1", *run]) == 2
    assert shlex.split(capsys.readouterr().err.split("go on with it: ")[1]) == ["klimb", "resume", "my runs/one"]
    assert main(["train", "trpo", "CartPole-v1", "--demonstrations", "my runs/one"]) == 2
    inside = capsys.readouterr().err.split("(")[1].split(")")[0]
    assert shlex.split(inside)[-2:] == ["--demonstrations", "my runs/one"]


def command_in(out: str, name: str) -> list[str]:
    """The words of the command on the line of this name."""
    return shlex.split(next(line for line in out.splitlines() if line.startswith(name)).removeprefix(name))


@pytest.mark.slow
def test_an_interrupted_run_in_a_folder_with_a_space(monkeypatch, capsys):
    """The line of Ctrl-C, which comes from the training itself."""

    def interrupt(self, records):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "update", interrupt)
    words = ["train", "reinforce", "CartPole-v1", *SMALL, "--env-steps", "6400", "--run-dir", "my runs/two"]
    assert main(words) == 130
    line = capsys.readouterr().err.strip()
    assert shlex.split(line.split("go on with: ")[1]) == ["klimb", "resume", "my runs/two"]
    assert Path("my runs/two/checkpoints").is_dir()
