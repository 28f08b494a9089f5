"""Environments stepped by actors of a Ray cluster: the same bytes as with processes here, also when nodes die."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

import klimb
from klimb import PPO, ConfigError, EnvironmentFault, MissingExtra
from klimb.collect.host import ray_cluster, ray_workers
from klimb.collect.host.ray_cluster import RayCluster, is_here, require_token
from klimb.collect.host.ray_workers import RayWorkers
from slow_environment import EPISODE
from two_nodes import two_nodes  # noqa: F401 (the fixture `cluster`)

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 4, "num_steps": 64, "hidden": (8,), "critic_epochs": 1, "critic_num_minibatches": 1, "workers": 2}


def plain(run: klimb.Run) -> list[dict]:
    """What a training has measured, but for times."""
    return [{k: v for k, v in record.items() if k not in ("wall_time", "steps_per_second")} for record in run.history]


def require_same(one: klimb.Run, other: klimb.Run) -> None:
    assert plain(one) == plain(other)
    pairs = zip(jax.tree.leaves(one.policy), jax.tree.leaves(other.policy), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def train(env: str, **options: Any) -> klimb.Run:
    return klimb.train(env, RULE, **{"env_steps": 1280, **SMALL, **options})


def at_rollout(monkeypatch, number: int, act) -> None:
    """Have something happen while a rollout is under way. number: of the rollout, from 1. act: gets the actors."""
    begin, count = RayWorkers.begin, 0

    def counting(self, *arguments, **options):
        nonlocal count
        begin(self, *arguments, **options)
        count += 1
        if count == number:
            act(self)

    monkeypatch.setattr(RayWorkers, "begin", counting)


def test_a_cluster_changes_no_bytes(cluster):
    require_same(train("gymnasium:CartPole-v1", ray=cluster.address), train("gymnasium:CartPole-v1"))


LONG = {"num_steps": 256, "num_envs": 8, "env_steps": 4 * 2048}
"""Rollouts of some pieces, each small enough to be part of an answer."""


@pytest.fixture(scope="module")
def undisturbed() -> klimb.Run:
    return train("gymnasium:HalfCheetah-v5", **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlap"])
def test_a_node_dies_in_the_middle_of_a_rollout(overlap, cluster, undisturbed, monkeypatch, caplog):
    at_rollout(monkeypatch, 3, lambda _: cluster.kill(0))
    run = train("gymnasium:HalfCheetah-v5", ray=cluster.address, overlap=overlap, **LONG)
    assert "its rollout is repeated by another, with the same numbers" in caplog.text
    require_same(run, train("gymnasium:HalfCheetah-v5", overlap=True, **LONG) if overlap else undisturbed)


@pytest.mark.slow
def test_a_node_dies_after_a_rollout(cluster, undisturbed, monkeypatch, caplog):
    # In one piece it is too large for that: it stays on the node until it is fetched.
    monkeypatch.setattr(ray_workers, "MAX_IN_PIECES", 0)

    def kill(workers: RayWorkers) -> None:
        """The rollouts are made, and not yet fetched."""
        references = list(workers._rolling)
        workers._ray.wait(references, num_returns=len(references), timeout=60, fetch_local=False)
        cluster.kill(1)

    at_rollout(monkeypatch, 2, kill)
    run = train("gymnasium:HalfCheetah-v5", ray=cluster.address, **LONG)
    assert "its rollout is repeated by another" in caplog.text
    require_same(run, undisturbed)


@pytest.mark.slow
def test_nodes_die_twice_and_actors_too(cluster, undisturbed, monkeypatch, caplog):
    at_rollout(monkeypatch, 2, lambda _: cluster.kill(0))
    at_rollout(monkeypatch, 3, lambda _: cluster.kill(0))
    # It may be one that is lost already, which nobody has noticed yet.
    at_rollout(monkeypatch, 4, lambda workers: workers._ray.kill(workers._actors[1]))
    run = train("gymnasium:HalfCheetah-v5", ray=cluster.address, **LONG)
    assert caplog.text.count("its rollout is repeated by another") >= 2
    require_same(run, undisturbed)


@pytest.mark.slow
def test_the_driver_is_killed_and_resumed_elsewhere(cluster, undisturbed, tmp_path):
    """On one node with two CPUs, and without a cluster: with the same number of workers the numbers are the same."""
    options = {**SMALL, **LONG, "checkpoint_every": 1, "run_dir": str(tmp_path / "run"), "ray": cluster.address}
    code = (
        "import os, signal, klimb\n"
        "from klimb import PPO\n"
        "def kill(run):\n"
        "    if run.iteration == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"klimb.train('gymnasium:HalfCheetah-v5', PPO(epochs=1, num_minibatches=2), callback=kill, **{options!r})"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=170)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with ray_cluster.quiet():
        wide = cluster.add(num_cpus=2)
    try:
        run = klimb.resume(tmp_path / "run", ray=cluster.address)
    finally:
        cluster._cluster.remove_node(wide)
    assert plain(run)[2:] == plain(undisturbed)[2:]


@pytest.mark.slow
def test_the_current_directory_is_not_imported(cluster, tmp_path):
    """Ray would put it before everything else; a stranger's may hold a `gymnasium.py`."""
    train("gymnasium:CartPole-v1", run_dir=tmp_path / "run", env_steps=256)
    for name in ("gymnasium", "random"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    words = ["resume", "run", "--env-steps", "768", "--eval-episodes", "0", "--quiet", "--ray", cluster.address]
    command = [sys.executable, "-P", "-m", "klimb", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_states_that_can_not_be_captured(cluster, monkeypatch, caplog):
    """The rows of the lost actor are left out, as with processes here, and its environments start anew."""
    at_rollout(monkeypatch, 2, lambda workers: os.kill(workers.places()[0].process, signal.SIGKILL))
    run = train("own_for_ray:Counting-v0", ray=cluster.address)
    assert "is repeated" not in caplog.text
    assert sorted(record["env_faults"] for record in run.history) == [0, 0, 0, 0, 2]


@pytest.mark.slow
def test_environments_that_end_their_process(cluster, caplog):
    """A rollout is repeated where it can be: after seeds it can. What is lost every time is left out."""
    endings = Path(os.environ["ENDINGS"])
    for number in range(2):
        (endings / str(number)).touch()
    run = train("own_for_ray:Ending-v0", ray=cluster.address)
    assert 1 <= caplog.text.count("its rollout is repeated by another") <= 2
    assert run.ended.reason == "complete"


@pytest.mark.slow
def test_a_late_actor(cluster, caplog):
    run = train("slow_for_tests:Slow-v0", ray=cluster.address, num_steps=16, env_steps=160, straggler_timeout=0.15)
    late = [record["late_rows"] for record in run.history]
    assert all(0 < missing <= 2 * 15 for missing in late), late
    assert np.diff([record["env_steps"] for record in run.history]).tolist() == [64 - missing for missing in late[1:]]
    ended = [record for record in run.history if record["episodes"] > 0]
    assert ended
    assert all(record["episode_return"] == record["episode_length"] == EPISODE for record in ended)
    assert "a worker was late: after 0.15 s environment 2 had made" in caplog.text


@pytest.mark.slow
def test_no_place(cluster, monkeypatch, caplog):
    monkeypatch.setattr(ray_workers, "SECONDS_UNTIL_TOLD", 0.5)
    caplog.set_level(logging.WARNING)
    with pytest.raises(EnvironmentFault, match=r"has had no place for .* of 4 workers .* add nodes, or use fewer"):
        train("gymnasium:CartPole-v1", ray=cluster.address, workers=4, env_timeout=3.0)
    assert "waiting for a place in the Ray cluster: 4 workers need a CPU each, and it has 2" in caplog.text


@pytest.mark.slow
def test_other_versions(cluster, monkeypatch):
    monkeypatch.setattr(ray_workers, "deciding_versions", lambda packages: {"klimb": "9.9"})
    with pytest.raises(EnvironmentFault, match=r"a node of the Ray cluster has gymnasium .*, and this process nothing"):
        train("gymnasium:CartPole-v1", ray=cluster.address)


@pytest.mark.slow
def test_another_processor(cluster, monkeypatch, caplog):
    monkeypatch.setattr(ray_workers, "cpu_model", lambda: "Zilog Z80")
    train("gymnasium:CartPole-v1", ray=cluster.address, env_steps=256)
    assert "another processor" in caplog.text
    assert "(Zilog Z80): results can differ in the last digits" in caplog.text


@pytest.mark.slow
def test_no_jax_in_actors_that_decide_in_numpy(cluster):
    """What the actors import is what the workers here import."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, klimb.collect.host.ray_actor; print('jax' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_actors_of_a_new_cluster_have_the_priority_of_processes_here():
    code = (
        "import os; from klimb.collect.host.ray_cluster import RayCluster; "
        "cluster = RayCluster('local'); niceness = cluster.ray.remote(lambda: os.nice(0)); "
        "print(cluster.ray.get(niceness.remote())); cluster.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert int(done.stdout) == os.nice(0)


def test_other_machines_need_a_token(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"another machine \(203.0.113.7:6379\).*RAY_AUTH_MODE=token"):
        RayCluster("203.0.113.7:6379")
    monkeypatch.setenv("RAY_ADDRESS", "ray://cluster.example:10001")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"):
        RayCluster("auto")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    require_token(["203.0.113.7:6379"])


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost", "ray://localhost:10001", "[::1]:6379", "::1"])
def test_this_machine(address):
    assert is_here(address)


def test_nobody_there(monkeypatch):
    monkeypatch.setattr("ray.init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody\nanswers")))
    with pytest.raises(ConfigError, match=r"no Ray cluster can be used at '127.0.0.1:1': nobody answers"):
        RayCluster("127.0.0.1:1")


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"klimb\[ray\]"):
        train("gymnasium:CartPole-v1", ray="local")


def test_compiled_environments_need_no_cluster():
    with pytest.raises(ConfigError, match="is compiled: nothing of it runs in a Ray cluster"):
        train("jax:CartPole-v1", ray="local")


def test_objects_can_not_go_to_a_cluster():
    environment = klimb.GymnasiumEnvironment.from_maker("mine", lambda: gymnasium.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="can't be made in another process"):
        train(environment, ray="local")
