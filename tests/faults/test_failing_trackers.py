"""Trackers that raise, hang, or are named by somebody else, and passwords in their addresses."""

from __future__ import annotations

import json
import logging
import os

import pytest

import klimb
import tracker_sinks
from klimb import PPO, ConfigError
from klimb.cli.main import main
from klimb.errors import UntrustedEnvironment
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.own_files import TRACKING
from klimb.runs.tracking_file import identifier_of
from klimb.tracking.described import outcome_of
from klimb.tracking.trackers import Trackers
from problems import same_bits, without_timing
from tracker_sinks import BEGUN, POINTS, Hangs

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
LENGTH = {**SMALL, "env_steps": 8 * 32, "checkpoint_every": 2}
REMEMBERING = "tracker_sinks:Remembering"


@pytest.fixture(autouse=True)
def empty_server():
    tracker_sinks.forget()


def train(path, log):
    return klimb.train("CartPole-v1", RULE, run_dir=path, log=log, **LENGTH)


CAUSES = {
    "FailsToBegin": "OSError: https://…@somewhere does not answer at all",
    "FailsToLog": "SystemExit: password=… is wrong",
    "FailsToFinish": "ValueError",
}


@pytest.mark.fault("a tracker raises, in any call", "one line; the training and its files are as without it")
def test_a_tracker_that_fails_is_dropped_with_one_line(tmp_path, caplog):
    without = train(tmp_path / "without", ())
    run = train(tmp_path / "run", (*(f"tracker_sinks:{name}" for name in CAUSES), REMEMBERING))
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sorted(lines) == sorted(
        f"tracker_sinks:{name}: nothing more is logged there ({cause}); the training does not depend on it; add the "
        f"rest later: klimb sync {run.directory} tracker_sinks:{name}"
        for name, cause in CAUSES.items()
    )
    assert without_timing(run.history) == without_timing(without.history)
    assert same_bits(run.state, without.state)
    for file in ("policy.json", "policy.safetensors", "best/policy.safetensors", "ended.json"):
        assert (run.directory / file).read_bytes() == (without.directory / file).read_bytes()
    new = {path.name for path in run.directory.iterdir()} - {path.name for path in without.directory.iterdir()}
    assert {name for name in new if "tfevents" not in name} == {TRACKING}
    # The one beside them does not notice.
    assert [point.step for point in POINTS[identifier_of(run.directory)]] == [r["env_steps"] for r in run.history]


@pytest.mark.fault("a tracker hangs", "the training does not wait; at its end a minute, then one line")
def test_a_tracker_that_hangs_is_left_alone(tmp_path, monkeypatch, caplog):
    Hangs.released.clear()
    monkeypatch.setattr("klimb.tracking.trackers.SECONDS_TO_FINISH", 0.3)
    run = train(tmp_path / "run", "tracker_sinks:Hangs")
    assert len(run.history) == 8
    assert "tracker_sinks:Hangs: nothing more is logged there (it does not answer)" in caplog.text
    Hangs.released.set()


def test_ctrl_c_while_a_tracker_is_waited_for_keeps_the_run(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("klimb.tracking.trackers.RunTrackers.wait", interrupted)
    run = train(None, REMEMBERING)
    assert len(run.history) == 8


def test_a_tracker_that_can_not_be_started_is_left_out(monkeypatch, caplog):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("klimb.tracking.tracker.threading.Thread.start", no_thread)
    assert Trackers().begin(RunConfig("CartPole-v1", RULE, TrainOptions(log=(REMEMBERING,))), None, []) is None
    assert "the run is not logged to tracker_sinks:Remembering: can't start new thread" in caplog.text


def test_a_tracker_that_does_not_answer_is_waited_for_once(monkeypatch, caplog):
    """In a sweep, it would be a minute for every run."""
    Hangs.released.clear()
    config = RunConfig("CartPole-v1", RULE, TrainOptions(log=("tracker_sinks:Hangs",)))
    trackers = Trackers()
    records = [{"iteration": 1, "env_steps": 32, "wall_time": 0.1}]
    assert trackers.begin(config, None, records) is not None
    trackers.finish(seconds=0.3)
    assert "it does not answer" in caplog.text
    assert trackers.begin(config, None, records) is None
    Hangs.released.set()


def test_an_evaluation_before_a_resume_is_not_that_of_the_run(tmp_path):
    run = train(tmp_path / "run", ())
    evaluation = {"seeds": [{"seed": 0, "standard_error": 1.0}], "episodes": 1, "mean": 12345.0}
    path = run.directory / "evaluation.json"
    path.write_text(json.dumps(evaluation))
    assert outcome_of(run.directory, run.ended).summary["final/eval_return"] == 12345
    os.utime(path, (1, 1))
    assert "final/eval_return" not in outcome_of(run.directory, run.ended).summary


@pytest.mark.fault("a run is resumed from an older checkpoint, and repeats iterations", "trackers get no step twice")
def test_iterations_that_are_repeated_are_not_logged_twice(tmp_path):
    run = train(tmp_path / "run", REMEMBERING)
    before = list(POINTS[identifier_of(run.directory)])
    for path in sorted((run.directory / "checkpoints").iterdir())[1:]:
        path.unlink()
    again = klimb.resume(run.directory, trust_environment=True)
    assert len(again.history) == 8
    assert POINTS[identifier_of(run.directory)] == before


SECRETS = [
    "mlflow:https://joe:hunter2@host/path",
    "mlflow:https://hunter2@host",
    "mlflow:postgresql://joe:hunter2@host/db",
    "mlflow:https://host/path?token=hunter2",
    "mlflow:sqlite:///runs.db?password=hunter2",
    "mlflw:https://joe:hunter2@host",
    "wandb:hunter2",
    "https://joe:hunter2@host",
    "mlflow:https://[hunter2",
    "mlflow:postgresql://joe:hunter2/w@host/db",
    "mlflow:postgresql://joe:hunter2#w@host/db",
    "mlflow:postgresql://joe:hunter2?w@host/db",
    "mlflow:postgresql://joe@host/db?x=hunter2",
    "mlflow:mssql+pyodbc:///?odbc_connect=PWD%3Dhunter2",
    "mlflow:https://host/#token=hunter2",
    "mlflow:https://host/?a=1;token=hunter2",
    "mlflow:joe:hunter2@host:5000",
    "mlflow:databricks://hunter2@host",
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.fault("the address of a tracker holds a password", "refused before anything is written, without it")
def test_passwords_are_refused_and_not_repeated(name, tmp_path, capsys):
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", log=name)
    assert "hunter2" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert main(["sync", str(tmp_path), name]) == 2
    assert main(["train", "ppo", "CartPole-v1", "--log", name]) == 2
    assert "hunter2" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", [REMEMBERING, "mlflow:http://127.0.0.1:9"])
@pytest.mark.fault("a run of somebody else names a tracker's class or address", "refused without --trust-environment")
def test_what_a_file_names_is_neither_imported_nor_sent_to(name, tmp_path):
    run = train(tmp_path / "run", log=())
    file = run.directory / "config.toml"
    file.write_text(file.read_text().replace("log = []", f'log = ["{name}"]'))
    with pytest.raises(UntrustedEnvironment, match="--trust-environment"):
        klimb.resume(run.directory, env_steps=12 * 32)
    assert not BEGUN
