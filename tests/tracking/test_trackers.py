"""What trackers are told of a training, and that a training does not depend on them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

import klimb
import tracker_sinks
from klimb import PPO, ConfigError, RunConfig, TrainOptions
from klimb.cli.main import main
from klimb.errors import MissingExtra, RunError
from klimb.runs.lock import RunLock
from klimb.runs.own_files import TRACKING
from klimb.runs.series import columns_of, numbers_of, step_of, tag
from klimb.runs.tracking_file import identifier_of
from klimb.tracking import tracker
from klimb.tracking.registry import sinks_of
from klimb.tracking.secrets import without_secrets
from klimb.tracking.sink import Outcome, Point, Sink, TrackedRun
from klimb.tracking.sync import sync
from problems import Stopper, without_timing
from tracker_sinks import BEGUN, OUTCOMES, POINTS, RUNS, Hangs

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
LENGTH = {**SMALL, "env_steps": 8 * 32, "checkpoint_every": 2}
BARE = TrackedRun("id", "run", None, None, {}, {}, "speed/iteration")
REMEMBERING = "tracker_sinks:Remembering"


@pytest.fixture(autouse=True)
def empty_server():
    tracker_sinks.forget()


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A training without trackers, in a directory."""
    return klimb.train("CartPole-v1", RULE, run_dir=tmp_path_factory.mktemp("runs") / "without", **LENGTH)


def copy_of(run, folder: Path) -> Path:
    """A copy of its directory, which a test may change."""
    shutil.copytree(run.directory, folder / "run")
    return folder / "run"


def train(path: Path | None, log=REMEMBERING, **options):
    return klimb.train("CartPole-v1", RULE, run_dir=path, log=log, **{**LENGTH, **options})


def expected(history, seeds=range(1)) -> list[tuple[int, dict[str, float]]]:
    """Steps and values as TensorBoard's names have them, computed from the records."""
    points = []
    for record in history:
        values = {}
        for column, number_in in columns_of(seeds).items():
            for metric, value in record.items():
                number = number_in(numbers_of(metric, value))
                if metric != "env_steps" and number is not None:
                    values["/".join(filter(None, (column, tag(metric))))] = number
        points.append((step_of(record), values))
    return points


def told(run) -> list[tuple[int, dict[str, float]]]:
    return [(point.step, point.values) for point in POINTS[identifier_of(run.directory)]]


def test_every_record_is_logged_with_what_is_known_of_the_run(tmp_path):
    run = train(tmp_path / "run")
    assert len(run.history) == 8
    assert told(run) == expected(run.history)
    (one,) = RUNS.values()
    assert (one.name, one.group, one.directory) == ("run", None, run.directory)
    assert one.settings["rule"] == "ppo"
    assert one.settings["env"] == "CartPole-v1"
    assert (one.settings["epochs"], one.settings["num_envs"], one.settings["hidden"]) == (1, 2, [4])
    assert "log" not in one.settings
    assert one.provenance["klimb"] == klimb.__version__
    (outcome,) = OUTCOMES[one.id]
    assert outcome.reason == "complete"
    assert outcome.summary["final/iterations"] == 8.0
    assert {path.name for path in outcome.files} == {"config.toml", "policy.json", "policy.safetensors"}
    times = [point.time for point in POINTS[one.id]]
    assert times == sorted(times)
    assert abs(times[-1] - time.time()) < 60
    lock = RunLock(run.directory)
    with pytest.raises(RunError, match="is being trained by process"):
        sync(run.directory, REMEMBERING)
    lock.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "klimb-tracker-tracker_sinks"]
    assert {list(point.values)[-1] for point in POINTS[one.id]} == {one.counter}


def test_seeds_have_names_of_their_own(tmp_path):
    run = train(tmp_path / "run", num_seeds=2, seed=3)
    assert told(run) == expected(run.history, range(3, 5))
    assert "seed_4/step/kl_old_new" in told(run)[0][1]
    (one,) = RUNS.values()
    assert one.counter == list(told(run)[0][1])[-1].replace("seed_4", "seed_3")


def test_a_run_in_memory_is_logged_too():
    run = train(None)
    (identifier,) = RUNS
    assert [(point.step, point.values) for point in POINTS[identifier]] == expected(run.history)
    assert RUNS[identifier].name == "ppo-CartPole-v1"
    assert RUNS[identifier].directory is None
    (outcome,) = OUTCOMES[identifier]
    assert (outcome.reason, list(outcome.files)) == ("complete", [])


def test_a_tracker_that_is_too_slow_is_left_alone(monkeypatch):
    Hangs.released.clear()
    monkeypatch.setattr(tracker, "MAX_WAITING", 3)
    one = tracker.Tracker("hangs", Hangs, BARE, [])
    for step in range(6):
        one.log([Point(step, 0.0, {})])
    assert one.failure is not None
    assert one.failure.startswith("it is too slow: ")
    Hangs.released.set()


def test_a_stopped_run_goes_on_with_the_same_run_of_the_tracker(tmp_path, without):
    with pytest.raises(klimb.Interrupted):
        klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "run", log=REMEMBERING, callback=Stopper(after=3), **LENGTH)
    (identifier,) = RUNS
    assert OUTCOMES[identifier][-1].reason == "interrupted"
    before = len(POINTS[identifier])
    assert 3 <= before < 8
    run = klimb.resume(tmp_path / "run", trust_environment=True)
    assert list(RUNS) == [identifier]
    assert [identifier] * 2 == BEGUN
    assert told(run) == expected(run.history)
    assert without_timing(run.history) == without_timing(without.history)
    assert [outcome.reason for outcome in OUTCOMES[identifier]] == ["interrupted", "complete"]


def test_what_a_tracker_missed_is_logged_when_the_run_is_resumed(tmp_path, without):
    run = dataclasses.replace(without, directory=copy_of(without, tmp_path))
    resumed = klimb.resume(run.directory, env_steps=12 * 32, log=REMEMBERING, trust_environment=True)
    assert len(resumed.history) == 12
    assert told(resumed) == expected(resumed.history)
    assert klimb.RunConfig.read(run.directory / "config.toml").options.log == (REMEMBERING,)


def test_sync_adds_what_is_missing_and_nothing_twice(tmp_path, without):
    run = dataclasses.replace(without, directory=copy_of(without, tmp_path))
    assert sync(run.directory, REMEMBERING) == (8, 8)
    assert told(run) == expected(run.history)
    before = list(POINTS[identifier_of(run.directory)])
    assert sync(run.directory, REMEMBERING) == (8, 0)
    assert POINTS[identifier_of(run.directory)] == before
    resumed = klimb.resume(run.directory, env_steps=12 * 32)
    assert sync(run.directory, REMEMBERING) == (12, 4)
    assert told(run) == expected(resumed.history)
    assert [outcome.reason for outcome in OUTCOMES[identifier_of(run.directory)]] == ["complete"] * 3


def test_sync_says_what_fails(tmp_path, without):
    with pytest.raises(
        RunError, match="could not be logged to tracker_sinks:FailsToBegin: OSError: https://…@somewhere"
    ):
        sync(without.directory, "tracker_sinks:FailsToBegin")
    with pytest.raises(RunError, match="is not a run"):
        sync(tmp_path / "none", REMEMBERING)


def test_every_run_of_a_sweep_is_a_run_of_the_tracker(tmp_path, capsys):
    runs = klimb.sweep(
        "CartPole-v1", RULE, {"clip_eps": [0.1, 0.2]}, run_dir=tmp_path / "sweep", log=REMEMBERING, **LENGTH
    )
    assert {run.name for run in RUNS.values()} == {"clip_eps=0.1", "clip_eps=0.2"}
    assert {run.group for run in RUNS.values()} == {"sweep"}
    assert {run.settings["clip_eps"] for run in RUNS.values()} == {0.1, 0.2}
    for run in runs:
        assert told(run) == expected(run.history)
    points = {identifier: list(one) for identifier, one in POINTS.items()}
    assert main(["sync", str(tmp_path / "sweep"), REMEMBERING]) == 0
    assert capsys.readouterr().out.count(f": 0 of 8 records were new to {REMEMBERING}") == 2
    assert points == POINTS


@pytest.mark.slow
def test_every_trial_of_a_search_is_one_run_of_the_tracker(tmp_path):
    """Also where it is paused, and pruned."""
    options = {**LENGTH, "eval_episodes": 2, "log": REMEMBERING}
    over = {"learning_rate": "log:1e-6:1e-1"}
    found = klimb.tune(
        "CartPole-v1", RULE, over, run_dir=tmp_path / "tune", trials=6, trials_at_once=3, prune=True, **options
    )
    assert sorted(run.name for run in RUNS.values()) == [trial.name for trial in found.trials]
    assert {run.group for run in RUNS.values()} == {"tune"}
    assert len(BEGUN) == len(RUNS)
    reasons = {RUNS[one].name: outcome.reason for one, (outcome,) in OUTCOMES.items()}
    assert reasons == {trial.name: trial.state for trial in found.trials}
    assert "pruned" in reasons.values()
    for identifier, points in POINTS.items():
        run = klimb.runs.directory.RunDirectory.open(tmp_path / "tune" / RUNS[identifier].name)
        assert [(point.step, point.values) for point in points] == expected(run.history())
    scores = {RUNS[one].name: outcome.summary.get("final/eval_return") for one, (outcome,) in OUTCOMES.items()}
    assert scores == {trial.name: trial.score for trial in found.trials}


def test_the_command_logs_the_evaluation_and_the_report_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    flags = "--env-steps 128 --num-envs 2 --num-steps 16 --hidden 4 --critic-num-minibatches 1 --eval-episodes 3"
    words = f"train ppo CartPole-v1 --num-minibatches 2 {flags} --preset none --run-dir run --quiet"
    assert main([*words.split(), "--log", REMEMBERING]) == 0
    (identifier,) = RUNS
    (outcome,) = OUTCOMES[identifier]
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert outcome.summary["final/eval_return"] == evaluation["mean"]
    assert outcome.summary["final/eval_episodes"] == 3.0
    assert [path.name for path in outcome.files] == ["config.toml", "policy.json", "policy.safetensors", "report.html"]
    assert [identifier] == BEGUN


def test_a_link_is_not_sent(tmp_path, without):
    run = dataclasses.replace(without, directory=copy_of(without, tmp_path))
    (tmp_path / "private").write_text("private")
    (run.directory / "policy_mine.json").symlink_to(tmp_path / "private")
    sync(run.directory, REMEMBERING)
    ((outcome,),) = OUTCOMES.values()
    assert "policy_mine.json" not in {path.name for path in outcome.files}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "mlflow:sqlite:///runs.db", "mlflow:sqlite:////a@b/runs.db"])
def test_names_that_are_right(name):
    assert RunConfig("CartPole-v1", RULE, TrainOptions(log=(name,))).options.log == (name,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wanbd", "log = 'wanbd' is no tracker; did you mean 'wandb'"),
        ("mlflow:", "no address behind the colon"),
        ("tracker_sinks:Nothing", "tracker_sinks has no 'Nothing'"),
        ("tracker_sinks:NoTracker", "no class with log and finish"),
        ("no_module_at_all:Sink", "there is no module 'no_module_at_all'"),
    ],
)
def test_wrong_names_are_refused_before_the_training(name, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", log=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "alembic")])
def test_a_missing_package_is_refused_before_the_training(name, package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == package else find(one))
    with pytest.raises(MissingExtra, match=rf"pip install 'klimb\[{name}\]'"):
        train(tmp_path / "run", log=name)
    assert not (tmp_path / "run").exists()


def test_a_server_of_mlflow_needs_no_database(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == "alembic" else find(one))
    assert list(sinks_of(["mlflow:http://127.0.0.1:9"])) == ["mlflow:http://127.0.0.1:9"]


def test_none_withdraws_trackers():
    assert TrainOptions(log=("wandb", "none", "mlflow")).log == ("mlflow",)
    assert TrainOptions(log=("wandb", "wandb")).log == ("wandb",)
    assert TrainOptions(log="wandb").log == ("wandb",)
    assert TrainOptions(log="none").log == ()


def test_messages_have_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef0123")
    assert without_secrets("key abcdef0123 at https://joe:x@h/?token=y&a=1") == "key … at https://…@h/?token=…&a=1"


@pytest.mark.parametrize("text", ["", "[]", '{"id": 3}', '{"id": "../../etc"}', "[" * 10_000])
def test_an_identifier_that_is_damaged(text, tmp_path):
    (tmp_path / TRACKING).write_text(text)
    with pytest.raises(RunError, match="remove the file"):
        identifier_of(tmp_path)


def test_the_sinks_are_sinks():
    for name in ("wandb", "mlflow", REMEMBERING):
        assert isinstance(sinks_of([name])[name](), Sink)


def test_steps_of_points_rise():
    """A record at a step that is there already is left out: metrics of a stranger may have any order."""
    points = [Point(step, 0.0, {"speed/iteration": 1.0}) for step in (1, 3, 2, 3, 4)]
    one = tracker.Tracker("remembering", tracker_sinks.Remembering, BARE, points)
    one.finish(Outcome(None, {}, []))
    one.wait()
    assert [point.step for point in POINTS["id"]] == [1, 3, 4]
    assert one.added == 3
