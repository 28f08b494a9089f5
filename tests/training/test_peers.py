"""Trainings in two processes (`jax.distributed`), against the same in one process with two devices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import klimb
from klimb import TRPO, ConfigError, RunConfig, TrainOptions
from klimb.collect.episodes import EpisodeSummary
from klimb.collect.host.shares import Shares
from klimb.environments.host import Fault
from klimb.runs.directory import RunDirectory
from klimb.training import peers
from klimb.training.driver import _require_same_iteration
from klimb.training.peer_collector import PeerCollector, _together
from problems import assert_same_bits, without_timing
from two_processes import SAME, SMALL, finish, said, start

pytestmark = pytest.mark.usefixtures("two_devices")


def require_same_run(path, run):
    """The same records and the same bytes of the policies."""
    files = sorted(path.glob("policy*.safetensors"))
    assert len(files) == run.config.options.num_seeds
    for file in files:
        assert file.read_bytes() == (run.directory / file.name).read_bytes()
    records = klimb.Run([], run.config, run.state, path).history
    assert_same_bits(without_timing(records), without_timing(run.history))


@pytest.mark.slow
@pytest.mark.parametrize("spread", [pytest.param("rows", marks=pytest.mark.long), "environments"])
def test_two_processes_train_what_two_devices_train(spread, tmp_path):
    options = ["--env-steps", 6 * 128, "--spread", spread, "--eval-every", 256, "--run-dir", tmp_path / "two"]
    assert finish(start(["train", "trpo", "CartPole-v1", *SMALL, *options], tmp_path)) == [0, 0]
    same = {**SAME, "env_steps": 6 * 128, "spread": spread, "eval_every": 256}
    run = klimb.train("CartPole-v1", TRPO(), learn_on=2, run_dir=tmp_path / "one", **same)
    require_same_run(tmp_path / "two", run)
    # The first one alone has written, and printed.
    assert (tmp_path / "two" / "report.html").exists()
    assert (tmp_path / "two" / "best" / "policy.safetensors").exists()
    assert "environment" not in (tmp_path / "said-1").read_text()


@pytest.mark.slow
def test_two_processes_share_out_a_host_environment(tmp_path):
    """Two seeds: each is on one device; what a process collects is what a worker process would."""
    options = ["--env-steps", 4 * 128, "--num-seeds", 2, "--workers", 1, "--run-dir", tmp_path / "two"]
    assert finish(start(["train", "trpo", "gymnasium:CartPole-v1", *SMALL, *options], tmp_path)) == [0, 0]
    same = {**SAME, "env_steps": 4 * 128, "num_seeds": 2, "workers": 2}
    run = klimb.train("gymnasium:CartPole-v1", TRPO(), run_dir=tmp_path / "one", **same)
    require_same_run(tmp_path / "two", run)
    assert finish(start(["resume", tmp_path / "two", "--env-steps", 6 * 128], tmp_path / "on")) == [0, 0]
    require_same_run(tmp_path / "two", klimb.resume(tmp_path / "one", env_steps=6 * 128))


@pytest.mark.slow
def test_environments_that_can_not_be_shared_out(tmp_path):
    words = ["train", "trpo", "gymnasium:CartPole-v1", "--num-envs", 3, "--run-dir", tmp_path / "run"]
    assert finish(start(words, tmp_path)) == [2, 2]
    assert "num_envs = 3 environments can't be shared out equally over 2 processes" in said(tmp_path, 0)[0]
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_different_iterations(tmp_path):
    directory = RunDirectory(tmp_path, RunConfig("CartPole-v1", TRPO(), TrainOptions()))
    _require_same_iteration(directory, [3, 3])
    with pytest.raises(klimb.RunError, match="iterations 3, 2; the run has to be on a file system that all"):
        _require_same_iteration(directory, [3, 2])


def test_alone():
    assert peers.count() == 1
    assert peers.is_first()
    assert peers.share(3) == slice(0, 3)
    assert peers.from_first({"a": [1, None]}) == {"a": [1, None]}
    tree = {"x": np.ones(2)}
    assert peers.gather(tree, axis=0) is tree


def test_without_anything_that_says_how_many(monkeypatch):
    for name in peers.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(peers.jax.config, "update", lambda *_: None)
    with pytest.raises(ConfigError, match=r"can't be joined .* set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"):
        peers.use_all_processes()


def test_episodes_of_all_processes():
    nan = np.nan
    parts = EpisodeSummary(
        count=np.array([[2, 0], [1, 0]]),
        mean_return=np.array([[10.0, nan], [40.0, nan]]),
        mean_length=np.array([[3.0, nan], [6.0, nan]]),
        faults=np.array([[0, 1], [2, 0]]),
        late_rows=np.array([[5, 5], [0, 0]]),
    )
    whole = _together(parts)
    np.testing.assert_array_equal(whole.count, [3, 0])
    np.testing.assert_allclose(whole.mean_return, [20, nan])
    np.testing.assert_allclose(whole.mean_length, [4, nan])
    np.testing.assert_array_equal(whole.faults, [2, 1])
    np.testing.assert_array_equal(whole.late_rows, [5, 5])
    assert _together(dataclasses.replace(parts, late_rows=None)).late_rows is None


def test_faults_are_numbered_among_the_environments_of_all_processes():
    """Two seeds of four environments: the second process has the last two of each."""
    collector = PeerCollector.__new__(PeerCollector)
    collector._shares = Shares(2, 4, 2)
    faults = collector._numbered([[[0, "first", None]], [[1, "second", "trace"], [2, "third", None]]])
    assert [fault.copy for fault in faults] == [0, 3, 6]
    assert faults[1] == Fault(3, "second", "trace")
