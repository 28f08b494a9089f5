"""Runs in W&B, offline: what its own files say of them."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import klimb
from klimb import PPO
from klimb.runs.series import tag
from klimb.runs.tracking_file import identifier_of
from klimb.tracking.sync import sync
from klimb.tracking.wandb_file import BLOCK, logged, records
from klimb.tracking.wandb_sink import in_files
from problems import Stopper

pytest.importorskip("wandb")

RULE = PPO(epochs=1, num_minibatches=2)
SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
LENGTH = {**SMALL, "env_steps": 8 * 32, "checkpoint_every": 2}


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def files(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def steps(run: Path) -> list[tuple[int, dict[str, float]]]:
    """What W&B's files of a run hold, in order."""
    found = []
    for path in files(run):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
                values = {name: json.loads(text) for name, text in items.items() if not name.startswith("_")}
                found.append((record.history.step.num, values))
    return found


def expected(history) -> list[tuple[int, dict[str, float]]]:
    return [
        (
            record["env_steps"],
            {
                tag(name): value
                for name, value in record.items()
                if name not in ("env_steps", "status") and value is not None
            },
        )
        for record in history
    ]


def without_status(points):
    return [(step, {name: value for name, value in values.items() if name != "step/status"}) for step, values in points]


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed_and_synced(offline):
    handlers, level = signal.getsignal(signal.SIGINT), logging.getLogger().level
    outputs, hooks = (sys.stdout, sys.stderr), (sys.exit, sys.excepthook)
    with pytest.raises(klimb.Interrupted):
        klimb.train("CartPole-v1", RULE, run_dir="run", log="wandb", callback=Stopper(after=3), **LENGTH)
    run = klimb.resume("run")
    assert (handlers, level) == (signal.getsignal(signal.SIGINT), logging.getLogger().level)
    assert (outputs, hooks) == ((sys.stdout, sys.stderr), (sys.exit, sys.excepthook))
    assert len(files(Path("run"))) == 2
    assert without_status(steps(Path("run"))) == expected(run.history)
    assert sync("run", "wandb") == (8, 0)
    assert len(files(Path("run"))) == 2
    klimb.resume("run", env_steps=12 * 32, log="none")
    assert sync("run", "wandb") == (12, 4)
    assert [step for step, _ in steps(Path("run"))] == [record["env_steps"] for record in run.history] + [
        run.history[-1]["env_steps"] + 32 * i for i in range(1, 5)
    ]
    # Nothing in the current directory, and nothing about the machine.
    assert {path.name for path in offline.iterdir()} <= {"run", "home"}
    (begun,) = [one.run for one in records(files(Path("run"))[0]) if one.WhichOneof("record_type") == "run"]
    assert (begun.host, begun.project, begun.display_name) == ("", "klimb", "run")
    assert begun.run_id == identifier_of(Path("run"))
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (config["rule"], config["num_envs"], config["hidden"]) == ("ppo", 2, [4])
    folder = files(Path("run"))[1].parent / "files"
    assert {path.name for path in folder.iterdir()} == {"config.toml", "policy.json", "policy.safetensors"}
    assert all(path.lstat().st_nlink == 1 for path in folder.iterdir())
    assert in_files(Path("run/wandb"), begun.run_id)[1]["ended"] == "complete"


@pytest.mark.slow
def test_no_process_of_its_own_is_left(offline):
    code = (
        "import klimb, subprocess, wandb\n"
        f"klimb.train('CartPole-v1', klimb.{RULE!r}, run_dir='run', log='wandb', **{LENGTH!r})\n"
        "klimb.sweep('CartPole-v1', klimb.TRPO(), {'max_kl': [0.01, 0.02]}, run_dir='sweep', log='wandb', "
        f"**{LENGTH!r})\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=170)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    groups = []
    for path in (Path("sweep/max_kl=0.01"), Path("sweep/max_kl=0.02")):
        assert len(steps(path)) == 8
        groups += [one.run.run_group for one in records(files(path)[0]) if one.WhichOneof("record_type") == "run"]
    assert groups == ["sweep", "sweep"]
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(offline) not in processes


@pytest.mark.slow
def test_a_link_in_the_place_of_its_folder_is_not_followed(offline, caplog):
    (offline / "elsewhere").mkdir()
    run = klimb.train("CartPole-v1", RULE, run_dir="run", **LENGTH)
    (run.directory / "wandb").symlink_to(offline / "elsewhere")
    with pytest.raises(klimb.RunError, match="there is a link"):
        sync("run", "wandb")
    assert not list((offline / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_file_that_was_not_written_to_its_end(offline):
    """Steps before the end count, also where a record lies over the border of two blocks."""
    run = klimb.train("CartPole-v1", RULE, run_dir="run", log="wandb", **{**LENGTH, "env_steps": 64 * 32})
    (path,) = files(run.directory)
    whole = path.read_bytes()
    assert len(whole) > 2 * BLOCK
    assert logged(path)[0] == run.history[-1]["env_steps"]
    path.write_bytes(whole[: len(whole) * 2 // 3])
    last = logged(path)[0]
    assert last is not None
    assert run.history[20]["env_steps"] < last < run.history[-1]["env_steps"]
    shutil.rmtree(run.directory / "wandb")
    assert in_files(run.directory / "wandb", "0" * 32) == (None, {})
