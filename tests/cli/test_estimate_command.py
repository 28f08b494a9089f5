"""klimb estimate: from two policies of a run and the episodes of one of them to the return of the other."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import klimb
from klimb.cli.main import main

SMALL = shlex.split("--num-envs 4 --num-steps 32 --hidden 8 --critic-epochs 2 --critic-num-minibatches 2")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of two seeds, with 80 episodes of the first."""
    folder = tmp_path_factory.mktemp("estimate") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLIMB_COMPILATION_CACHE", "off")
        words = ["train", "trpo", "CartPole-v1", *SMALL, "--env-steps", "256", "--num-seeds", "2", "--max-kl", "0.002"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([*words, "--eval-episodes", "0", "--run-dir", str(folder), "--quiet"]) == 0
            assert main(["record", str(folder), "--episodes", "80", "--seed", "5"]) == 0
    return folder


def test_the_other_seed_is_estimated_for_people_and_as_json(run_dir, capsys):
    words = ["estimate", str(run_dir), "--demonstrations", str(run_dir), "--policy-seed", "1", "--resamples", "50"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"data         {run_dir}/demonstrations.safetensors: 80 episodes of jax:CartPole-v1, " in said
    assert re.search(r"weights +effective sample size [\d.]+ of 80 episodes; the largest weight is [\d.]+% of", said)
    assert "gamma 1 (undiscounted), with 95% bootstrap intervals (50 resamples of the episodes)" in said
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    policy, recorded = klimb.load_policy(run_dir, seed=1), klimb.load_demonstrations(run_dir)
    made = klimb.estimate_return(policy, recorded, gamma=1.0, resamples=50)
    assert found["estimates"].keys() == made.estimates.keys()
    for name, interval in made.estimates.items():
        assert found["estimates"][name] == pytest.approx(vars(interval))
        line = next(line for line in said.splitlines() if line.startswith(f"  {name.replace('_', ' ')}  "))
        shown = [float(number) for number in re.findall(r"-?\d+\.\d+", line)]
        assert shown == pytest.approx([interval.value, interval.low, interval.high], abs=6e-4)
    assert (found["episodes"], found["gamma"], found["env"]) == (80, 1.0, "jax:CartPole-v1")
    assert len(found["ess_by_step"]) == recorded.lengths.max()
    # The true return is within the interval of an estimate that has nearly all episodes.
    truth = klimb.evaluate(policy, "CartPole-v1", episodes=400, deterministic=False)
    widened = 2 * truth.standard_error
    robust = made.estimates["doubly_robust"]
    assert robust.low - widened < truth.mean < robust.high + widened


def test_a_policy_directory_and_the_discount(run_dir, tmp_path, capsys):
    """Only the policy's two files: there is no run around them."""
    policy = tmp_path / "alone"
    klimb.save_policy(klimb.load_policy(run_dir, seed=0), policy)
    words = ["estimate", str(policy), "--demonstrations", f"{run_dir}/demonstrations.safetensors", "--resamples", "9"]
    assert main([*words, "--gamma", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "gamma 0.5, with" in said
    # The policy that made the episodes: 9 steps or more have returns from 1.996 to 2.
    assert "weights      effective sample size 80.0 of 80 episodes" in said
    assert re.search(r"per decision +(1\.99\d|2\.000)  \[", said)


def test_what_can_not_be_estimated_gets_one_line_and_status_2(run_dir, tmp_path, capsys):
    klimb.save_demonstrations(
        klimb.record(klimb.load_policy(run_dir, seed=0), "CartPole-v1", episodes=2, deterministic=True),
        tmp_path / "modes.safetensors",
    )
    shutil.copytree(run_dir, tmp_path / "trusting")
    config = tmp_path / "trusting" / "config.toml"
    config.write_text(config.read_text().replace('env = "CartPole-v1"', 'env = "not_there:Environment"'))
    own = ["--demonstrations", str(run_dir)]
    for words, line in {
        (str(run_dir), *own, "--min-ess", "81"): "of 80 episodes, below min_ess = 81: record more episodes",
        (str(run_dir), "--demonstrations", "modes.safetensors"): "behaviour log-probs are missing in",
        (str(run_dir), *own, "--gamma", "2"): "gamma = 2 is outside [0, 1]",
        (str(run_dir), *own, "--policy-seed", "7"): "the run has no seed 7, only 0 to 1",
        (str(run_dir),): "--demonstrations is missing: klimb estimate POLICY --demonstrations DATA [FLAGS]",
        ("nowhere", *own): "there is no policy file nowhere/policy.safetensors",
        ("zoo:trpo/HalfCheetah-v4", *own): "has observations of shape (4,); the policy reads (17,)",
        (str(run_dir), "--demonstrations", "nowhere"): "there are no demonstrations at nowhere",
    }.items():
        assert main(["estimate", *words]) == 2, words
        said = capsys.readouterr()
        assert line in said.err
        assert said.err.count("\n") == 1
        assert not said.out
    # The environment of the run is not needed, and its module is not imported.
    assert main(["estimate", "trusting", *own, "--resamples", "5"]) == 0
