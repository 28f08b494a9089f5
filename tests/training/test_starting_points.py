"""Runs that start from something: demonstrations to clone, or another run's policy to go on from."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, BehaviourCloning, DemonstrationError, NetworkPolicy, OffPolicyGradient, PolicyFileError
from klimb.policies.actions import Box, Discrete

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,)}


@pytest.fixture(scope="module")
def expert():
    """Not an untrained policy, and far from a good one."""
    policy = NetworkPolicy(4, Discrete(2), hidden=(8,), key=jax.random.key(7))
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, 600 * policy.network.weights[-1])


@pytest.fixture(scope="module")
def demonstrations(expert):
    return klimb.record(expert, "CartPole-v1", episodes=24, seed=1)


@pytest.fixture(scope="module")
def file(demonstrations, tmp_path_factory):
    return klimb.save_demonstrations(demonstrations, tmp_path_factory.mktemp("expert") / "demonstrations.safetensors")


def leaves(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


RULE = BehaviourCloning(max_epochs=12, minibatch_size=64, learning_rate=3e-3, holdout=0.2)


@pytest.mark.slow
def test_cloning_raises_the_likelihood_of_what_the_expert_does(expert, demonstrations, file):
    run = klimb.train("CartPole-v1", RULE, demonstrations=file, hidden=(8,), num_seeds=2)
    held = np.array([record["held_out_log_likelihood"] for record in run.history])
    assert (held[-1] > held[0] + 0.01).all()
    assert (held[-1] > np.log(0.5) + 0.2).all()
    entropy = -float(np.mean(demonstrations.log_prob))
    assert (held[-1] > -entropy - 0.25).all()
    assert all(record["env_steps"] == 0 and record["episode_return"] == [None, None] for record in run.history)
    # The normaliser has the statistics of the demonstrations before the first pass.
    np.testing.assert_allclose(run.policy.encoder.normalizer.mean, demonstrations.obs.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(run.policy.encoder.normalizer.variance, demonstrations.obs.var(0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow, id="gaussian"),
        pytest.param({"state_dependent_std": True}, marks=pytest.mark.slow, id="σ of the state"),
        pytest.param({"tanh_squash": True}, id="tanh"),
        pytest.param({"exploration": "gsde"}, marks=pytest.mark.slow, id="gsde"),
    ],
)
def test_every_continuous_distribution_clones(options):
    """A demonstrator of known mean and deviation inside the box: the clone finds both."""
    box = Box((-2.0,), (2.0,))
    expert = NetworkPolicy(3, box, hidden=(8,), initial_log_std=-1.5, tanh_squash=True, key=jax.random.key(3))
    expert = eqx.tree_at(lambda p: p.network.biases[-1], expert, jnp.array([0.4]))
    demonstrations = klimb.record(expert, "Pendulum-v1", episodes=8)
    rule = BehaviourCloning(max_epochs=40, learning_rate=1e-2, minibatch_size=128)
    run = klimb.train("Pendulum-v1", rule, demonstrations=demonstrations, hidden=(8,), **options)
    best = float(np.mean(demonstrations.log_prob))
    assert run.history[-1]["held_out_log_likelihood"] > best - 0.15
    assert run.history[0]["held_out_log_likelihood"] < best - 0.2
    distribution = run.policy(jnp.asarray(demonstrations.obs))
    modes = distribution.to_environment(distribution.mode())
    assert float(jnp.mean(modes)) == pytest.approx(2 * np.tanh(0.4), abs=0.1)


@pytest.mark.slow
def test_cloning_resumes_bit_for_bit_and_ends_early_for_good(file, tmp_path):
    whole = klimb.train("CartPole-v1", RULE, demonstrations=file, hidden=(8,), run_dir=tmp_path / "whole")

    class Enough(Exception):
        pass

    def stop(run):
        if run.iteration == 6:
            raise Enough

    with pytest.raises(Enough):
        klimb.train(
            "CartPole-v1", RULE, demonstrations=file, hidden=(8,), run_dir=tmp_path / "cut", checkpoint_every=2,
            callback=stop,
        )  # fmt: skip
    resumed = klimb.resume(tmp_path / "cut")
    assert leaves(resumed.policy) == leaves(whole.policy)
    keep = lambda record: {k: v for k, v in record.items() if k not in ("wall_time", "steps_per_second")}  # noqa: E731
    assert [keep(r) for r in resumed.history] == [keep(r) for r in whole.history]
    impatient = dataclasses.replace(RULE, holdout_patience=1, max_epochs=50, learning_rate=0.3)
    early = klimb.train("CartPole-v1", impatient, demonstrations=file, hidden=(8,), run_dir=tmp_path / "early")
    assert len(early.history) < 50
    assert early.history[-1]["waited"] == 1
    again = klimb.resume(tmp_path / "early")
    assert len(again.history) == len(early.history)
    assert leaves(again.policy) == leaves(early.policy)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["gymnasium:CartPole-v1", pytest.param("CartPole-v1", marks=pytest.mark.slow)])
def test_demonstrations_join_the_batches_of_off_policy_gradients(env, demonstrations):
    rule = OffPolicyGradient(weighting="per_decision", max_weight=5.0, gradient_steps=2)
    run = klimb.train(env, rule, demonstrations=demonstrations, env_steps=384, **SMALL)
    # Weighted for another policy than the one that collected them: not all weights are 1, from the first step on.
    assert run.history[0]["weight_ess"] < 0.98
    alone = klimb.train(env, rule, env_steps=384, **SMALL)
    assert alone.history[0]["weight_ess"] > 0.98
    assert leaves(run.policy) != leaves(alone.policy)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param("gymnasium:CartPole-v1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [TRPO(), pytest.param(PPO(), marks=pytest.mark.slow)], ids=["trpo", "ppo"])
def test_the_critic_warms_up_before_the_policy_moves(expert, rule, env, tmp_path):
    klimb.save_policy(expert, tmp_path / "expert")
    run = klimb.train(
        env,
        rule,
        init_from=str(tmp_path / "expert"),
        critic_warmup=3,
        env_steps=6 * 128,
        run_dir=tmp_path / "run",
        **SMALL,
    )
    status = [record["status"] for record in run.history]
    assert status[:3] == ["CRITIC_WARMUP"] * 3
    assert "CRITIC_WARMUP" not in status[3:]
    assert [record["kl_old_new"] for record in run.history[:3]] == [0, 0, 0]
    assert all(record["kl_old_new"] > 0 for record in run.history[3:] if record["status"] == "ACCEPTED")
    assert run.history[2]["value_loss"] < run.history[0]["value_loss"] * 1.5
    resumed = klimb.resume(tmp_path / "run")
    assert leaves(resumed.policy) == leaves(run.policy)


@pytest.mark.slow
def test_while_the_critic_warms_up_the_policy_is_the_one_given_bit_for_bit(expert, tmp_path):
    klimb.save_policy(expert, tmp_path)
    run = klimb.train("CartPole-v1", TRPO(), init_from=str(tmp_path), critic_warmup=5, env_steps=5 * 128, **SMALL)
    assert leaves(run.policy) == leaves(expert)
    assert run.state.critic.encoder.normalizer.count[0] == (5 + 1) * 128


@pytest.mark.slow
def test_several_seeds_start_from_one_policy_and_part(expert, tmp_path):
    klimb.save_policy(expert, tmp_path)
    run = klimb.train(
        "CartPole-v1", TRPO(), init_from=str(tmp_path), critic_warmup=1, env_steps=3 * 128, num_seeds=2, **SMALL
    )
    assert run.history[0]["status"] == ["CRITIC_WARMUP"] * 2
    assert leaves(run.policies[0]) != leaves(run.policies[1])


def test_what_does_not_fit_is_refused_before_anything_is_made(expert, demonstrations, file, tmp_path):
    klimb.save_policy(expert, tmp_path / "expert")
    target = tmp_path / "run"
    cases = [
        ("Pendulum-v1", TRPO(), {"init_from": str(tmp_path / "expert")}, PolicyFileError, r"shape \(4,\), .* \(3,\)"),
        ("CartPole-v1", TRPO(), {"init_from": str(tmp_path / "none")}, PolicyFileError, "there is no policy file"),
        ("Pendulum-v1", BehaviourCloning(), {"demonstrations": file}, DemonstrationError, r"\(4,\); .* \(3,\)"),
        ("CartPole-v1", TRPO(), {"demonstrations": file}, klimb.ConfigError, "can't learn from demonstrations"),
        ("CartPole-v1", BehaviourCloning(), {}, klimb.ConfigError, "there are none: record some"),
        (
            "CartPole-v1",
            OffPolicyGradient(),
            {"demonstrations": dataclasses.replace(demonstrations, log_prob=demonstrations.log_prob * np.nan)},
            DemonstrationError,
            "log-probs are missing",
        ),
    ]
    for env, rule, options, error, line in cases:
        with pytest.raises(error, match=line):
            klimb.train(env, rule, run_dir=target, env_steps=128, **SMALL, **options)
        assert not target.exists()
