"""Environments in the current directory, from every command that takes one; and `klimb check-env`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import gymnasium
import pytest

from klimb.cli.main import main
from klimb.cli.parser import make_importable
from klimb.errors import EnvironmentFault, TrainingFailed

ROBOT = """
import gymnasium
import numpy as np

class Robot(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, falls=False):
        self.falls = falls

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs(), {}

    def obs(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        if self.falls:
            raise ValueError("my robot fell over")
        return self.obs(), float(action), False, False, {}

gymnasium.register("Robot-v0", "NAME:Robot", max_episode_steps=6)
gymnasium.register("Falling-v0", "NAME:Robot", kwargs={"falls": True}, max_episode_steps=6)
"""
SMALL = shlex.split(
    "--num-envs 2 --num-steps 16 --hidden 4 --critic-epochs 1 --critic-num-minibatches 1 --env-steps 64 "
    "--eval-episodes 2 --run-dir run --workers 1"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The name of a module in the current directory, which is not on Python's search path."""
    name = "robot_of_the_tests"
    (tmp_path / f"{name}.py").write_text(ROBOT.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    yield name
    forget(name)


def forget(name):
    """As in a new process."""
    sys.modules.pop(name, None)
    for identifier in ("Robot-v0", "Falling-v0"):
        gymnasium.registry.pop(identifier, None)
    while str(Path.cwd()) in sys.path:
        sys.path.remove(str(Path.cwd()))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "gymnasium:"])
def test_a_module_of_the_current_directory_is_found_by_every_command(here, prefix, capsys):
    """In worker processes too; the commands that find its name in a file want to be told to trust it."""
    env = f"{prefix}{here}:Robot-v0"
    assert main(["train", "trpo", env, *SMALL]) == 0
    for words in (["evaluate", "run", "--episodes", "2"], ["resume", "run"]):
        forget(here)
        assert main(words) == 2
        assert "--trust-environment" in capsys.readouterr().err
        assert main([*words, "--trust-environment"]) == 0
    forget(here)
    assert main(["evaluate", "run", "--episodes", "2", "--env", env]) == 0


@pytest.mark.parametrize("value", ["robot:R-v0", "gymnasium:robot:R-v0", "--env=robot:R-v0", "my.robots:R-v0"])
def test_words_that_name_a_module_make_the_current_directory_importable(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    make_importable(["x", value])
    assert sys.path == [str(tmp_path)]


@pytest.mark.parametrize("value", ["CartPole-v1", "gymnasium:CartPole-v1", "jax:CartPole-v1", "--run-dir=a/b"])
def test_other_words_do_not(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    make_importable(["x", value])
    assert sys.path == []


def test_check_env_says_what_holds(here, capsys):
    assert main(["check-env", f"{here}:Robot-v0", "--steps", "20"]) == 0
    out, err = capsys.readouterr()
    assert f"environment  gymnasium:{here}:Robot-v0 (stepped in Python)" in out
    assert "ok     worker processes" in out
    assert f"it can be trained: klimb train trpo {here}:Robot-v0" in out
    assert not err


def test_the_command_that_is_shown_can_be_pasted(capsys):
    name = "gymnasium:Pendulum-v1+gymnasium.wrappers:TimeLimit(max_episode_steps=9)"
    assert main(["check-env", name, "--steps", "12"]) == 0
    assert f"it can be trained: klimb train trpo '{name}'\n" in capsys.readouterr().out


def test_a_port_is_compared_on_the_command_line(capsys):
    assert main(["check-env", "Pendulum-v1", "Pendulum-v1", "--steps", "12"]) == 0
    assert "ok     the same as the reference  12 steps as Pendulum-v1 makes them" in capsys.readouterr().out


def test_check_env_fails_with_the_traceback_and_status_1(here, capsys):
    assert main(["check-env", f"gymnasium:{here}:Falling-v0", "--steps", "20"]) == 1
    out, err = capsys.readouterr()
    assert "fails  reset and step" in out
    assert 'raise ValueError("my robot fell over")' in err
    assert err.splitlines()[-1] == f"klimb: gymnasium:{here}:Falling-v0 can't be trained yet; to fix: reset and step"


@pytest.mark.parametrize("words", [["nowhere:Robot-v0"], ["CartPol-v1"], ["CartPole-v1", "--steps", "0"], []])
def test_mistakes_have_status_2(here, words, capsys):
    assert main(["check-env", *words]) == 2
    assert capsys.readouterr().err.startswith("klimb: ")


def test_the_traceback_of_an_environment_stands_before_the_line(monkeypatch, capsys):
    def fail(words):
        try:
            raise EnvironmentFault("copy 0 fails", "Traceback of robot.py\n")
        except EnvironmentFault as fault:
            raise TrainingFailed("stopped") from fault

    monkeypatch.setattr("klimb.cli.main.execute", fail)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "Traceback of robot.py\nklimb: stopped\n"
