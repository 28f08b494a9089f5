"""Sweeps: several values in one program are the runs that they would be alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO
from klimb.runs.provenance import read_provenance

SMALL = {
    "env_steps": 3 * 128, "num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2,
    "critic_num_minibatches": 2, "num_seeds": 2,
}  # fmt: skip
OVER = {"max_kl": [0.003, 0.03], "damping": [0.1, 0.2]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Four combinations, two seeds each, in directories."""
    folder = tmp_path_factory.mktemp("sweep") / "all"
    return klimb.sweep("jax:CartPole-v1", TRPO(), OVER, run_dir=folder, **SMALL)


def test_every_combination_is_a_run_of_its_own(swept):
    found = [(run.config.rule.max_kl, run.config.rule.damping) for run in swept]
    assert found == [(0.003, 0.1), (0.003, 0.2), (0.03, 0.1), (0.03, 0.2)]
    assert [run.directory.name for run in swept][1] == "max_kl=0.003,damping=0.2"
    for run in swept:
        assert len(run.history) == 3
        assert len(run.policies) == 2
        assert [entry.event for entry in read_provenance(run.directory)] == ["start"]
        kl = np.array([record["kl_old_new"] for record in run.history])
        assert kl.shape == (3, 2)
        limit = run.config.rule.max_kl
        assert ((kl > 0.5 * limit) & (kl <= limit)).all()


@pytest.mark.slow
def test_a_combination_is_what_it_would_be_alone(swept):
    run = swept[3]
    alone = klimb.train("jax:CartPole-v1", run.config.rule, **SMALL)
    for record, other in zip(run.history[:2], alone.history, strict=False):
        for name in ("surrogate_gain", "kl_old_new", "episode_return", "value_loss", "step_size"):
            np.testing.assert_allclose(record[name], other[name], rtol=2e-3, err_msg=name)
    elsewhere = swept[0].history[0]["surrogate_gain"]
    assert not np.allclose(run.history[0]["surrogate_gain"], elsewhere, rtol=0.1)


def test_each_directory_is_resumed_and_read_as_any_other(swept):
    run = swept[2]
    again = klimb.resume(run.directory)
    assert again.config == run.config
    assert again.history == run.history
    kept = klimb.load_policy(run.directory, seed=1)
    obs = jnp.ones(4)
    np.testing.assert_array_equal(kept(obs).logits, run.policies[1](obs).logits)


@pytest.mark.slow
def test_host_environments_are_swept_too():
    options = {**SMALL, "env_steps": 2 * 128, "num_seeds": 1, "workers": 0}
    runs = klimb.sweep("gymnasium:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options)
    assert [run.history[-1]["kl_old_new"] > 0.01 for run in runs] == [False, True]


@pytest.mark.slow
def test_a_combination_on_a_host_environment_is_what_it_would_be_alone():
    """Copies v·S + s of all values v play the episodes of seed s."""
    options = {**SMALL, "env_steps": 2 * 128, "workers": 0}
    run = klimb.sweep("gymnasium:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options)[1]
    alone = klimb.train("gymnasium:CartPole-v1", run.config.rule, **options)
    for name in ("episodes", "episode_length", "episode_return"):
        assert run.history[0][name] == alone.history[0][name]
    np.testing.assert_allclose(run.history[0]["kl_old_new"], alone.history[0]["kl_old_new"], rtol=2e-3)


@pytest.mark.parametrize(
    ("rule", "over", "words"),
    [
        (TRPO(), {"maxkl": [0.1]}, "can't sweep over 'maxkl': trpo has .* did you mean 'max_kl'"),
        (TRPO(), {"cg_iterations": [3.0, 4.0]}, "can't sweep over cg_iterations, which is 10 in trpo: only numbers"),
        (TRPO(), {"gamma": [0.9]}, r"can't sweep over 'gamma': .* \(it has max_kl, damping, cg_tolerance, "),
        (TRPO(), {"max_kl": [-1.0]}, "max_kl = -1.0: input should be greater than 0"),
        (TRPO(), {"max_kl": []}, "no values of max_kl"),
        (TRPO(), {"max_kl": [0.1, 0.2, 0.1]}, "are not all different"),
        (TRPO(), {"fisher_fraction": [0.5, 0.2]}, "trpo decides by fisher_fraction what it does"),
        (PPO(), {"ent_coef": [0.0, 0.1]}, "ppo decides by ent_coef what it does"),
    ],
)
def test_what_cannot_be_swept_is_said_and_leaves_nothing(rule, over, words, tmp_path):
    with pytest.raises(klimb.ConfigError, match=words):
        klimb.sweep("jax:CartPole-v1", rule, over, run_dir=tmp_path / "sweep", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_starts_from_the_policy_that_it_is_told(tmp_path):
    """As a training does; while the critic warms up no copy of it moves."""
    start = klimb.train("jax:CartPole-v1", TRPO(), run_dir=tmp_path / "start", **{**SMALL, "num_seeds": 1})
    options = {**SMALL, "num_seeds": 1, "env_steps": 2 * 128, "init_from": str(start.directory), "critic_warmup": 9}
    for run in klimb.sweep("jax:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options):
        np.testing.assert_array_equal(run.policy.network.weights[0], start.policy.network.weights[0])
        assert run.history[0]["status"] == "CRITIC_WARMUP"


def test_a_directory_that_is_there_is_refused_whole(tmp_path):
    (tmp_path / "sweep").mkdir()
    with pytest.raises(klimb.RunError, match="exists already"):
        klimb.sweep("jax:CartPole-v1", TRPO(), {"max_kl": [0.003]}, run_dir=tmp_path / "sweep", **SMALL)
    assert not list((tmp_path / "sweep").iterdir())
