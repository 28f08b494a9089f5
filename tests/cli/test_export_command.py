"""`klimb export`: from a run, a policy's directory or the zoo to files of three formats."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import klimb
from klimb.cli.main import main

RUN = ["train", "ppo", "CartPole-v1", "--num-envs", "2", "--num-steps", "8", "--eval-episodes", "0", "--hidden", "4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of two seeds."""
    folder = tmp_path_factory.mktemp("exports") / "cart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLIMB_COMPILATION_CACHE", "off")
        assert main([*RUN, "--env-steps", "32", "--num-seeds", "2", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


def test_a_run_is_exported_as_python(run_dir: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "cart.py"
    words = ["export", str(run_dir), "--policy-seed", "1", "-o", str(path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"^exported     \S+cart\.py \([\d.]+ kB\): PPO on CartPole-v1$", said, re.MULTILINE), said
    assert "reads        obs [B, 4]\nreturns      action [B], logits [B, 2]\n" in said
    assert re.search(
        r"^compared     1,000 observations: largest difference .* [\d.]+e-(0[6-9]|1\d), from float32", said, re.M
    )
    file = runpy.run_path(str(path))
    checksum = hashlib.sha256((run_dir / "policy_seed1.safetensors").read_bytes()).hexdigest()
    assert f"policy.safetensors sha256: {checksum}" in file["__doc__"]
    obs = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(file["act"](obs), klimb.load_policy(run_dir, seed=1).act(obs))
    assert main(words) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--best"]) == 0
    best = runpy.run_path(str(path))
    np.testing.assert_array_equal(best["act"](obs), klimb.load_policy(run_dir / "best", seed=1).act(obs))


def test_directories_of_policies_and_names_of_the_zoo(run_dir: Path, tmp_path: Path, capsys) -> None:
    onnx = pytest.importorskip("onnx")
    alone = klimb.save_policy(klimb.load_policy(run_dir, seed=0), tmp_path / "alone")
    assert main(["export", str(alone), "-o", str(tmp_path / "cart.stablehlo")]) == 0
    assert "PPO" not in capsys.readouterr().out
    assert main(["export", "zoo:trpo/Hopper-v4", "-o", str(tmp_path / "hopper.onnx")]) == 0
    known = {x.key: x.value for x in onnx.load(tmp_path / "hopper.onnx").metadata_props}
    assert (known["env"], known["rule"]) == ("gymnasium:Hopper-v4", "TRPO")
    assert json.loads(known["actions"])["high"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the file to write with -o FILE; its ending is one of .onnx, .stablehlo, .py"),
        (["-o", "policy.pt"], "a policy is written as .onnx, .stablehlo or .py"),
        (["-o", "none/policy.py"], "there is no such directory"),
        (["-o", "policy.py", "--policy-seed", "7"], "the run has no seed 7, only 0 to 1"),
    ],
)
def test_what_can_not_be_exported(run_dir: Path, tmp_path: Path, capsys, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run_dir), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_policy_of_the_users_own_class_gets_the_spaces_of_the_environment(tmp_path: Path, capsys) -> None:
    run = tmp_path / "own"
    assert main([*RUN, "--env-steps", "16", "--policy", "own_code:network", "--run-dir", str(run)]) == 0
    words = ["export", str(run), "-o", str(tmp_path / "own.stablehlo")]
    assert main(words) == 2
    assert "--trust-environment" in capsys.readouterr().err
    assert main([*words, "--trust-environment"]) == 0
    assert "reads        obs [B, 4]\nreturns      action [B], logits [B, 2]\n" in capsys.readouterr().out
