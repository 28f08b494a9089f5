"""Sweeps as tasks of a Ray cluster: tasks that are lost are repeated and go on, and a stopped sweep is resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import klimb
from klimb import PPO, ConfigError, RunError, TrainingFailed
from klimb.cli.main import main
from klimb.environments.control.cartpole import CartPole
from klimb.runs.checkpoint import saved_iterations
from klimb.training import sweep_on_ray
from klimb.training.sweep_on_ray import train_part
from two_nodes import TwoNodes, two_nodes  # noqa: F401 (the fixture `cluster`)

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 1, "critic_num_minibatches": 1, "cores": 1}
OVER = {"clip_eps": [0.1, 0.2], "gamma": [0.9, 0.99]}


def policies(folder: Path) -> dict[str, bytes]:
    """The policy of every run of a sweep, as it is written."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/policy.safetensors")}


def in_a_process(folder: Path, address: str | None, env_steps: int) -> list[str]:
    """A command that trains the sweep."""
    arguments = f"run_dir={str(folder)!r}, ray={address!r}, env_steps={env_steps}, **{SMALL!r}"
    code = (
        "import klimb; from klimb import PPO; "
        f"klimb.sweep('jax:CartPole-v1', PPO(epochs=1, num_minibatches=2), {OVER!r}, {arguments})"
    )
    return [sys.executable, "-c", code]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    """The policies of the sweep without a cluster, in a process of its own, as tasks are."""
    folder = tmp_path_factory.mktemp("alone") / "sweep"
    subprocess.run(in_a_process(folder, None, 4096), check=True, timeout=170)
    return policies(folder)


@pytest.mark.slow
def test_a_sweep_has_the_same_policies(cluster: TwoNodes, alone, tmp_path):
    runs = klimb.sweep(
        "jax:CartPole-v1", RULE, OVER, run_dir=tmp_path / "sweep", ray=cluster.address, env_steps=4096, **SMALL
    )
    assert [(run.config.rule.clip_eps, run.config.options.gamma) for run in runs] == [
        (0.1, 0.9), (0.1, 0.99), (0.2, 0.9), (0.2, 0.99),
    ]  # fmt: skip
    assert all(run.ended.reason == "complete" for run in runs)
    assert all(len(run.history) == 32 for run in runs)
    assert policies(tmp_path / "sweep") == alone
    assert not list((tmp_path / "sweep").glob(".shared-*"))
    # There is nothing left to do.
    assert klimb.resume_sweep(tmp_path / "sweep", ray=cluster.address) == []


@pytest.mark.slow
def test_seeds_are_spread_over_tasks(cluster: TwoNodes, tmp_path, capsys):
    """One run per seed, with the bytes that it has alone, and pooled when they are compared."""
    options = {**SMALL, "env_steps": 2048}
    runs = klimb.sweep(
        "jax:CartPole-v1", RULE, {"seed": [3, 4, 5]}, run_dir=tmp_path / "sweep", ray=cluster.address, **options
    )
    assert [run.directory.name for run in runs] == ["seed=3", "seed=4", "seed=5"]
    # In a process of its own, as tasks are.
    place = str(tmp_path / "alone" / "seed=4")
    code = (
        "import klimb; from klimb import PPO; "
        f"klimb.train('jax:CartPole-v1', {RULE!r}, seed=4, run_dir={place!r}, **{options!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=170)
    ((name, content),) = policies(tmp_path / "alone").items()
    assert policies(tmp_path / "sweep")[name] == content
    assert main(["compare", str(tmp_path / "sweep")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PPO ")]
    assert row.split()[1] == "3"


@pytest.mark.slow
def test_a_lost_task_is_repeated_and_goes_on(cluster: TwoNodes, alone, tmp_path):
    """Both nodes die when a task has saved a checkpoint."""
    sweep = partial(
        klimb.sweep, "jax:CartPole-v1", RULE, OVER, run_dir=tmp_path / "sweep", ray=cluster.address, env_steps=4096,
        checkpoint_every=1, **SMALL,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sweep)
        while not any(n > 0 for path in (tmp_path / "sweep").glob("*/checkpoints") for n in saved_iterations(path)):
            time.sleep(0.02)
        cluster.kill(0)
        cluster.kill(1)
        running.result(timeout=170)
    assert policies(tmp_path / "sweep") == alone
    provenance = [path.read_text() for path in (tmp_path / "sweep").glob("*/provenance.json")]
    assert any('"resume"' in text for text in provenance)


@pytest.mark.slow
def test_a_stopped_sweep_is_resumed(cluster: TwoNodes, tmp_path):
    """Ctrl-C has the tasks save checkpoints; `resume` goes on from them."""
    steps = 2_000_000
    process = subprocess.Popen(
        in_a_process(tmp_path / "sweep", cluster.address, steps), stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while len(list((tmp_path / "sweep").glob("*/metrics.jsonl"))) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "go on with: klimb resume" in err
    begun = list((tmp_path / "sweep").glob("*/checkpoints"))
    assert begun
    assert all(saved_iterations(path)[0] > 0 for path in begun)


def test_a_task_without_the_directory(tmp_path):
    assert not train_part(str(tmp_path / "elsewhere"), "witness", ["a"], True).shared


def test_what_a_cluster_can_not_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = {"clip_eps": [0.1, 0.2]}
    with pytest.raises(ConfigError, match="give it a run_dir"):
        klimb.sweep("jax:CartPole-v1", RULE, one, ray="local", **SMALL)
    with pytest.raises(ConfigError, match="leave callback out"):
        klimb.sweep("jax:CartPole-v1", RULE, one, run_dir="a", ray="local", callback=print, **SMALL)
    with pytest.raises(ConfigError, match="--workers 1 or more"):
        klimb.sweep("gymnasium:CartPole-v1", RULE, one, run_dir="b", ray="local", **SMALL)
    with pytest.raises(ConfigError, match="give the environment by its name"):
        klimb.sweep(CartPole(gravity=1.62), RULE, one, run_dir="c", ray="local", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_failures_and_unshared_directories(cluster: TwoNodes, tmp_path, monkeypatch):
    over = {"clip_eps": [0.1, 0.2]}
    sweep = partial(klimb.sweep, "jax:CartPole-v1", RULE, over, ray=cluster.address, **SMALL)
    monkeypatch.setattr(sweep_on_ray, "train_part", lambda *_: sweep_on_ray.Outcome("of its own"))
    with pytest.raises(TrainingFailed, match=r"clip_eps=0.1, clip_eps=0.2: of its own"):
        sweep(run_dir=tmp_path / "a")
    monkeypatch.setattr(sweep_on_ray, "train_part", lambda *_: sweep_on_ray.Outcome(shared=False))
    with pytest.raises(RunError, match="give a --run-dir on a file system that all of them share"):
        sweep(run_dir=tmp_path / "b")


@pytest.mark.slow
def test_the_command(cluster: TwoNodes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    words = "sweep ppo jax:CartPole-v1 --over clip_eps 0.1 0.2 --env-steps 256 --num-envs 4 --num-steps 32 --hidden 8"
    assert main([*words.split(), "--critic-epochs", "1", "--eval-episodes", "1", "--ray", cluster.address]) == 0
    said = capsys.readouterr().out
    assert "trained      clip_eps=0.1, clip_eps=0.2" in said
    assert said.count("mean return") == 2
    assert os.path.exists("runs/sweep-ppo-jax-CartPole-v1/clip_eps=0.1/report.html")
