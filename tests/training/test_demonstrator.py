"""Demonstrations without log-probs: their demonstrator is cloned, kept in the run, and weighted by."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import TRPO, BehaviourCloning, ConfigError, DemonstrationError, NetworkPolicy, OffPolicyGradient
from klimb.policies.actions import Discrete
from klimb.training import demonstrator
from klimb.training.demonstrator import clone
from klimb.training.offline import demonstration_batch
from problems import assert_same_bits, same_bits, without_timing

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,)}
CLONED = {**SMALL, "demonstrator": "cloned"}
MIXTURE = OffPolicyGradient(behaviour="mixture", history=2, min_ess=0.0, gradient_steps=2, learning_rate=0.01)


@pytest.fixture(scope="module")
def expert() -> NetworkPolicy:
    """Not an untrained policy, and far from a good one."""
    policy = NetworkPolicy(4, Discrete(2), hidden=(8,), key=jax.random.key(7))
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, 600 * policy.network.weights[-1])


@pytest.fixture(scope="module")
def known(expert) -> klimb.Demonstrations:
    return klimb.record(expert, "CartPole-v1", episodes=40, seed=1)


@pytest.fixture(scope="module")
def file(known, tmp_path_factory) -> Path:
    """The same without log-probs, as other people's recordings are."""
    unknown = dataclasses.replace(known, log_prob=known.log_prob * np.nan)
    return klimb.save_demonstrations(unknown, tmp_path_factory.mktemp("human") / "demonstrations.safetensors")


@pytest.fixture
def quick(monkeypatch) -> None:
    """A clone of few passes, where it does not matter how good it is."""
    monkeypatch.setattr(demonstrator, "CLONING", BehaviourCloning(max_epochs=3, minibatch_size=64))


def test_what_does_not_fit_is_refused_before_anything_is_made(known, file, tmp_path):
    cases = [
        (OffPolicyGradient(), {"demonstrations": file}, DemonstrationError, "--demonstrator cloned estimates them"),
        (MIXTURE, {"demonstrations": known}, ConfigError, "estimate it with demonstrator = cloned"),
        # A mixture of one policy and of an unknown one is not known either.
        (dataclasses.replace(MIXTURE, history=1), {"demonstrations": known}, ConfigError, "demonstrator = cloned"),
        (MIXTURE, {"demonstrator": "cloned"}, ConfigError, "there are none"),
        (TRPO(), {"demonstrator": "cloned"}, ConfigError, "there are none"),
        (BehaviourCloning(), {"demonstrations": file, "demonstrator": "cloned"}, ConfigError, "not use demonstrator"),
    ]
    for rule, options, error, line in cases:
        with pytest.raises(error, match=line):
            klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", env_steps=128, **SMALL, **options)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_clone_is_as_likely_as_the_demonstrator_on_episodes_held_out(expert, known, file):
    config = klimb.RunConfig("CartPole-v1", OffPolicyGradient(), klimb.TrainOptions(**CLONED))
    demonstrations = klimb.load_demonstrations(file)
    estimated = clone(config, klimb.make("CartPole-v1"), None, demonstrations)
    figures = estimated.figures
    assert figures["untrained_held_out_log_likelihood"] == pytest.approx(-np.log(2), abs=0.02)
    # Of the same rows the demonstrator's own: few episodes are held out, and theirs is not that of the whole file.
    own_held_out = demonstrator.CLONING.log_likelihoods(expert, demonstration_batch(expert, known.rollout()))[1]
    assert abs(figures["held_out_log_likelihood"] - float(own_held_out)) < 0.1
    # The mean over the rows of both parts is that of the clone itself over the file.
    obs = jnp.asarray(known.obs)
    own = estimated.policy(obs).log_prob(jnp.asarray(known.action))
    parts = sorted((figures["log_likelihood"], figures["held_out_log_likelihood"]))
    assert parts[0] <= float(own.mean()) <= parts[1]
    # And where the demonstrator was, it acts alike: KL(demonstrator‖clone) is small beside that of a fresh network.
    fresh = NetworkPolicy(4, Discrete(2), hidden=(8,), key=jax.random.key(0))
    kl = [float(klimb.kl_divergence(expert(obs), p(obs)).mean()) for p in (estimated.policy, fresh)]
    assert kl[0] < 0.25 * kl[1]
    again = clone(config, klimb.make("CartPole-v1"), None, demonstrations)
    assert_same_bits(again.policy, estimated.policy)
    assert again.figures == figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {}),
        ("gymnasium:CartPole-v1", {"workers": 0}),
        ("CartPole-v1", {"batch": "episodes", "num_steps": 200, "bootstrap": None, "advantage": "reward_to_go"}),
    ],
)
def test_runs_keep_the_clone_and_resume_to_the_bit(env, options, file, tmp_path, caplog, quick):
    options = {**CLONED, **options, "demonstrations": file, "env_steps": 800, "checkpoint_every": 2, "num_seeds": 2}
    with caplog.at_level(logging.INFO, "klimb"):
        whole = klimb.train(env, MIXTURE, run_dir=tmp_path / "whole", **options)
    (line,) = [record.getMessage() for record in caplog.records if "demonstrator" in record.getMessage()]
    figures = json.loads((whole.directory / "demonstrator" / "cloning.json").read_text())
    assert f"held-out log-likelihood {figures['held_out_log_likelihood']:.3f} nats" in line
    assert (figures["episodes"], figures["source"]) == (40, str(file))
    kept = klimb.load_policy(whole.directory / "demonstrator")
    for record in whole.history:
        for ess, status in zip(record["demonstration_ess"], record["status"], strict=True):
            assert status == "FINISHED" if ess is None else 0 < ess <= 1
    path = shutil.copytree(whole.directory, tmp_path / "run")
    for newer in sorted((path / "checkpoints").iterdir())[1:]:
        newer.unlink()
    # Cloned once: what the directory holds is used, though a new clone would be another.
    resumed = klimb.resume(path)
    assert without_timing(resumed.history) == without_timing(whole.history)
    assert_same_bits(resumed.state, whole.state)
    assert_same_bits(klimb.load_policy(path / "demonstrator"), kept)
    # In memory it is the same run.
    assert_same_bits(klimb.train(env, MIXTURE, **options).state, whole.state)


@pytest.mark.slow
def test_resuming_weights_by_the_clone_that_the_run_has_kept(expert, file, tmp_path, caplog, quick):
    options = {**CLONED, "demonstrations": file, "env_steps": 512, "checkpoint_every": 2}
    whole = klimb.train("CartPole-v1", MIXTURE, run_dir=tmp_path / "whole", **options)
    runs = [shutil.copytree(whole.directory, tmp_path / name) for name in ("other", "lost")]
    for run in runs:
        for newer in sorted((run / "checkpoints").iterdir())[1:]:
            newer.unlink()
    klimb.save_policy(expert, runs[0] / "demonstrator")
    assert not same_bits(klimb.resume(runs[0]).state, whole.state)
    # Where it is lost, it is made again, from the same seed, and a line says so.
    shutil.rmtree(runs[1] / "demonstrator")
    assert_same_bits(klimb.resume(runs[1]).state, whole.state)
    assert "cloned again" in caplog.text


@pytest.mark.slow
def test_a_sweep_clones_once_and_each_run_keeps_it(file, tmp_path, caplog, quick):
    options = {**CLONED, "demonstrations": str(file), "env_steps": 384, "num_seeds": 2}
    with caplog.at_level(logging.INFO, "klimb"):
        runs = klimb.sweep(
            "CartPole-v1", MIXTURE, {"learning_rate": [0.003, 0.01]}, run_dir=tmp_path / "sweep", **options
        )
    assert caplog.text.count("demonstrator cloned from") == 1
    clones = [klimb.load_policy(run.directory / "demonstrator") for run in runs]
    assert_same_bits(*clones)
    alone = klimb.train("CartPole-v1", MIXTURE, run_dir=tmp_path / "alone", **options)
    assert_same_bits(klimb.load_policy(alone.directory / "demonstrator"), clones[0])
    for one, other in zip(runs[1].history, alone.history, strict=True):
        np.testing.assert_allclose(one["demonstration_ess"], other["demonstration_ess"], rtol=1e-3)


@pytest.mark.slow
def test_log_probs_that_are_known_are_not_used_and_gaussians_are_cloned_too(quick):
    """Squashed actions have their density before squashing: clone and run have to mean the same numbers."""
    policy = NetworkPolicy(3, klimb.make("Pendulum-v1").actions, hidden=(8,), tanh_squash=True, key=jax.random.key(3))
    recorded = klimb.record(policy, "Pendulum-v1", episodes=4)
    options = {**CLONED, "tanh_squash": True, "env_steps": 256}
    rule = OffPolicyGradient(min_ess=0.0, gradient_steps=1, learning_rate=1e-9)
    histories = []
    for log_prob in (recorded.log_prob, recorded.log_prob * np.nan):
        given = dataclasses.replace(recorded, log_prob=log_prob)
        histories.append(without_timing(klimb.train("Pendulum-v1", rule, demonstrations=given, **options).history))
    assert histories[0] == histories[1]
    # Fresh clone and fresh policy are both near the fresh demonstrator: hardly any weight is far from 1.
    assert histories[0][0]["demonstration_ess"] > 0.8
