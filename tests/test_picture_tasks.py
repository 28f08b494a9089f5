"""Pictures in collection, training, files of runs and demonstrations; and rules learn from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, BehaviourCloning, OffPolicyGradient
from klimb.collect.compiled import CompiledCollector
from picture_tasks import BEST, RANDOM, CompiledDots, Dots
from problems import assert_same_bits, without_timing

NAME, PARTS = "picture_tasks:Dots-v0", "picture_tasks:DotsAndSpeed-v0"
SMALL = {"num_envs": 4, "num_steps": 16, "hidden": (8,), "critic_epochs": 1, "critic_num_minibatches": 2}
LEARNING = {"env_steps": 20_000, "num_envs": 16, "num_steps": 64, "hidden": (32,), "gamma": 0.5, "critic_epochs": 2}
LEARNED = 0.8 * BEST


def test_bytes_stay_bytes():
    """In the rollouts of compiled environments and of others, with whole episodes and successors."""
    env = CompiledDots()
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(8,), key=jax.random.key(0))
    collector = CompiledCollector(env, 3, 12)
    _, rollout, episodes = jax.jit(collector.collect)(jax.random.key(1), policy, collector.init(jax.random.key(2)))
    assert rollout.obs.dtype == rollout.next_obs.dtype == jnp.uint8
    assert rollout.obs.shape == (12, 3, 8, 8, 1)
    assert jnp.issubdtype(rollout.reward.dtype, jnp.floating)
    assert 0 <= episodes.mean_return <= BEST
    np.testing.assert_array_equal(rollout.obs.sum(axis=(2, 3, 4)), 255)
    check = klimb.check_env(env, steps=25)
    assert not check.failures


def test_workers_decide_as_this_process(tmp_path):
    """By the policy's own program; pictures cross in bytes. What is learned is the same to rounding."""
    runs = [klimb.train(NAME, TRPO(), env_steps=128, workers=workers, **SMALL) for workers in (0, 2)]
    one, other = ([record["episode_return"] for record in run.history] for run in runs)
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, PARTS])
def test_an_interrupted_run_resumes_to_the_same_bytes(name, tmp_path):
    """Its policy is read back, acts on what the environment gives, and is evaluated by name.

    Episodes begin with a rollout, because where this environment stands can't be saved.
    """
    options = {**SMALL, "num_steps": 10, "batch": "episodes", "workers": 0, "env_steps": 160}
    whole = klimb.train(name, PPO(), run_dir=tmp_path / "whole", **options)
    klimb.train(
        name,
        PPO(),
        run_dir=tmp_path / "cut",
        callback=lambda run: run.stop() if run.iteration == 2 else None,
        **options,
    )
    resumed = klimb.resume(tmp_path / "cut", trust_environment=True)
    assert_same_bits(resumed.policy, whole.policy)
    assert without_timing(resumed.history) == without_timing(whole.history)
    loaded = klimb.load_policy(tmp_path / "cut")
    assert_same_bits(loaded, whole.policy)
    obs, _ = klimb.make(name).make().reset(seed=0)
    assert loaded.act(obs) in (0, 1)
    assert 0 <= klimb.evaluate(loaded, klimb.make(name), episodes=2).mean <= BEST


def test_old_pictures_are_learned_from_again():
    """A history of rollouts, which keeps all successors, and importance weights."""
    run = klimb.train(NAME, OffPolicyGradient(history=2), env_steps=256, workers=0, **SMALL)
    assert np.isfinite([record["kl_old_new"] for record in run.history]).all()


def test_demonstrations_of_pictures_are_bytes_in_files(tmp_path):
    env = CompiledDots()
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(8,), key=jax.random.key(0))
    recorded = klimb.record(policy, env, episodes=3)
    assert recorded.obs.dtype == np.uint8
    path = klimb.save_demonstrations(recorded, tmp_path / "demonstrations.safetensors")
    read = klimb.load_demonstrations(path)
    assert_same_bits((read.obs, read.next_obs), (recorded.obs, recorded.next_obs))
    clone = klimb.train(env, BehaviourCloning(max_epochs=2), demonstrations=read, hidden=(8,))
    assert klimb.evaluate(clone.policy, env, episodes=2).mean <= BEST


def untrained_return(env):
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(32,), key=jax.random.key(0))
    return klimb.evaluate(policy, env, episodes=50).mean


@pytest.mark.slow
@pytest.mark.parametrize("rule", [TRPO(), PPO()], ids=lambda rule: type(rule).__name__)
def test_dots_are_told_apart(rule):
    env = CompiledDots()
    assert untrained_return(env) < 1.3 * RANDOM
    run = klimb.train(env, rule, **LEARNING)
    assert klimb.evaluate(run.policy, env, episodes=50).mean > LEARNED


@pytest.mark.slow
def test_a_picture_is_a_part_of_an_observation():
    env = klimb.GymnasiumEnvironment.from_maker("dots", lambda: Dots(parts=True))
    assert untrained_return(env) < 1.3 * RANDOM
    run = klimb.train(env, TRPO(), **LEARNING)
    assert klimb.evaluate(run.policy, env, episodes=50).mean > LEARNED
