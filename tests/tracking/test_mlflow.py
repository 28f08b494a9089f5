"""Runs in MLflow, in a database of their own."""

from __future__ import annotations

import pytest

import klimb
from klimb import PPO
from klimb.runs.series import tag
from klimb.tracking.sync import sync
from problems import Stopper

pytest.importorskip("mlflow")
from mlflow import MlflowClient

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
LENGTH = {**SMALL, "env_steps": 8 * 32, "checkpoint_every": 2}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A client of a new database. MLflow keeps artifacts in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return MlflowClient(f"sqlite:///{tmp_path}/runs.db")


def name_of(client: MlflowClient) -> str:
    return f"mlflow:{client.tracking_uri}"


def runs(client: MlflowClient):
    return client.search_runs([client.get_experiment_by_name("klimb").experiment_id])


def histories(client: MlflowClient, run) -> dict[str, list[tuple[int, float]]]:
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(metric.step, metric.value) for metric in metrics]
        for name, metrics in found.items()
        if not name.startswith("final/")
    }


def expected(history) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in history:
        for metric, value in record.items():
            if metric not in ("env_steps", "status") and value is not None:
                curves.setdefault(tag(metric), []).append((record["env_steps"], value))
    return curves


def without_status(curves):
    return {name: curve for name, curve in curves.items() if name != "step/status"}


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed_and_synced(server):
    with pytest.raises(klimb.Interrupted):
        klimb.train("CartPole-v1", RULE, run_dir="run", log=name_of(server), callback=Stopper(after=3), **LENGTH)
    (run,) = runs(server)
    assert run.info.status == "KILLED"
    resumed = klimb.resume("run", ent_coef=0.01, trust_environment=True)
    (run,) = runs(server)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert len(resumed.history) == 8
    assert without_status(histories(server, run)) == expected(resumed.history)
    params = run.data.params
    assert (params["rule"], params["env"], params["num_envs"], params["hidden"]) == ("ppo", "CartPole-v1", "2", "[4]")
    assert (params["ent_coef"], run.data.tags["klimb.changed.ent_coef"]) == ("0.0", "0.01")
    assert run.data.tags["klimb.ended"] == "complete"
    assert run.data.metrics["final/iterations"] == 8
    files = {file.path for file in server.list_artifacts(run.info.run_id)}
    assert files == {"config.toml", "policy.json", "policy.safetensors"}
    assert sync("run", name_of(server)) == (8, 0)
    (again,) = runs(server)
    assert histories(server, again) == histories(server, run)
    # Of the part that was interrupted, and of the end.
    ends = server.get_metric_history(run.info.run_id, "final/iterations")
    assert len(ends) == 2
    assert (ends[-1].step, ends[-1].value) == (resumed.history[-1]["env_steps"], 8)


@pytest.mark.slow
def test_a_sweep_is_logged_from_its_files(server):
    swept = klimb.sweep("CartPole-v1", RULE, {"clip_eps": [0.1, 0.2]}, run_dir="sweep", log=name_of(server), **LENGTH)
    assert {run.data.tags["klimb.group"] for run in runs(server)} == {"sweep"}
    by_name = {run.info.run_name: run for run in runs(server)}
    for run in swept:
        assert without_status(histories(server, by_name[run.directory.name])) == expected(run.history)


@pytest.mark.slow
def test_a_failed_run_is_failed(server):
    def fail(run):
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="own"):
        klimb.train("CartPole-v1", RULE, run_dir="run", log=name_of(server), callback=fail, **LENGTH)
    (run,) = runs(server)
    assert run.info.status == "FAILED"
    assert "of the user's own" in run.data.tags["klimb.ended_message"]
