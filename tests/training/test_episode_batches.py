"""Trainings on batches of whole episodes, on compiled and on host environments, with and without a critic."""

from __future__ import annotations

import itertools
import logging
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import TRPO, ConfigError, OffPolicyGradient, Reinforce, RunConfig, TrainOptions
from klimb.training.program import Program
from problems import assert_same_bits, slow_except, without_timing

SMALL = {"num_envs": 4, "num_steps": 24, "hidden": (4,), "batch": "episodes"}
WITHOUT_CRITIC = {**SMALL, "bootstrap": None, "advantage": "time_baseline"}
HOST = "gymnasium:CartPole-v1"
PLACES = [("CartPole-v1", {}), (HOST, {"workers": 0}), (HOST, {"workers": 2})]


def rollouts(env, options, count=2):
    """Consecutive rollouts `[T, N]` of a training, as the rule gets them."""
    seen = []
    config = RunConfig(env, OffPolicyGradient(gradient_steps=1), TrainOptions(**{**WITHOUT_CRITIC, **options}))
    program = Program(config, klimb.make(env))
    replay = program.iteration.replay

    class Spy:
        def __getattr__(self, name):
            return getattr(replay, name)

        def training_batch(self, state, critic, batch, *others):
            jax.debug.callback(lambda x: seen.append(jax.tree.map(np.array, x)), batch.trajectory.rollout)
            return replay.training_batch(state, critic, batch, *others)

    object.__setattr__(program.iteration, "replay", Spy())
    try:
        program.start(iteration=0)
        state = program.initial_state()
        for _ in range(count):
            state, _ = program.advance(state, 1)
        jax.effects_barrier()
    finally:
        program.close()
    return seen


@pytest.fixture(scope="module")
def collected():
    return cache(lambda place: rollouts(*PLACES[place]))


@pytest.mark.parametrize("place", slow_except({0}, range(len(PLACES))))
def test_every_column_is_one_episode_and_padding(collected, place):
    for rollout in collected(place):
        assert rollout.whole_episodes
        lengths = rollout.valid.sum(0)
        assert len(set(lengths)) > 1
        for n, length in enumerate(lengths):
            np.testing.assert_array_equal(rollout.valid[:, n], np.arange(24) < length)
            np.testing.assert_array_equal(rollout.time[:length, n], np.arange(length))
            np.testing.assert_array_equal(rollout.obs[1:length, n], rollout.next_obs[: length - 1, n])
            ended = (rollout.terminated | rollout.truncated)[:length, n]
            np.testing.assert_array_equal(ended, np.arange(length) == length - 1)
            assert rollout.truncated[length - 1, n] == (length == 24 and not rollout.terminated[-1, n])
        # CartPole begins near the middle, and ends beyond 2.4 or 0.21.
        assert np.abs(rollout.obs[0]).max() <= 0.05
    # On compiled environments the rollout of the first statistics is seen too, and what is learned from it dropped.
    *_, first, second = collected(place)
    assert not (first.obs[0] == second.obs[0]).any()


@pytest.mark.slow
def test_worker_processes_collect_what_one_process_collects(collected):
    for here, there in zip(collected(1), collected(2), strict=True):
        rows = here.valid
        for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs", "valid", "log_prob"):
            np.testing.assert_array_equal(getattr(here, name)[rows], getattr(there, name)[rows])


@pytest.mark.parametrize(("env", "options"), [pytest.param(*place, marks=pytest.mark.slow) for place in PLACES[:2]])
def test_goes_on_until_the_steps_are_made_and_resumes_to_the_bit(env, options, tmp_path):
    options = {**WITHOUT_CRITIC, **options, "env_steps": 500, "checkpoint_every": 3, "num_seeds": 2}
    whole = klimb.train(env, Reinforce(learning_rate_schedule="linear"), run_dir=tmp_path / "whole", **options)
    steps = [record["env_steps"] for record in whole.history]
    assert steps[-1] >= 500
    assert np.asarray(whole.state.env_steps).min() >= 500
    assert steps[-2] < 500 + 4 * 24
    assert all(0 < b - a <= 4 * 24 for a, b in itertools.pairwise(steps))
    path = shutil.copytree(whole.directory, tmp_path / "run")
    checkpoints = sorted((path / "checkpoints").iterdir())
    for newer in checkpoints[1:]:
        newer.unlink()
    resumed = klimb.resume(path)
    assert without_timing(resumed.history) == without_timing(whole.history)
    assert_same_bits(resumed.state, whole.state)
    again = klimb.train(env, Reinforce(learning_rate_schedule="linear"), **{**options, "checkpoint_every": 1})
    assert_same_bits(again.state, whole.state)


@pytest.mark.slow
@pytest.mark.parametrize(("env", "options"), PLACES[:2])
def test_a_seed_that_has_made_its_steps_waits_and_is_the_run_it_would_be_alone(env, options):
    options = {**WITHOUT_CRITIC, **options, "env_steps": 3000, "num_steps": 200, "hidden": ()}
    together = klimb.train(env, Reinforce(), num_seeds=3, **options)
    last, waited = len(together.history), 0
    for k in (1, 2):
        alone = klimb.train(env, Reinforce(), seed=k, **options)
        count = len(alone.history)
        status = [record["status"][k] for record in together.history]
        assert status == ["ACCEPTED"] * count + ["FINISHED"] * (last - count)
        assert int(together.state.env_steps[k]) == int(alone.state.env_steps[0])
        for own, single in zip(jax.tree.leaves(together.policies[k]), jax.tree.leaves(alone.policy), strict=True):
            if hasattr(own, "shape"):
                np.testing.assert_allclose(own, single, rtol=1e-3, atol=1e-5)
        assert [record["episode_return"][k] for record in together.history][count:] == [None] * (last - count)
        waited += last - count
    assert waited > 0


def test_without_values_no_critic_is_fitted():
    config = RunConfig("CartPole-v1", Reinforce(), TrainOptions(**WITHOUT_CRITIC))
    program = Program(config, klimb.make("CartPole-v1"))
    state = program.initial_state()
    before = jax.tree.map(np.array, (state.critic, state.critic_state))
    state, metrics = program.advance(state, 2)
    assert_same_bits((state.critic, state.critic_state), before)
    for name in ("value_loss", "explained_variance", "realised_improvement"):
        assert np.isnan(metrics[name]).all()
    assert np.isfinite(metrics["surrogate_gain"]).all()
    # With bootstrapping, or a baseline of values, there is one.
    for more in ({"bootstrap": "value"}, {"advantage": "gae"}):
        options = TrainOptions(**{**WITHOUT_CRITIC, **more})
        assert Program(
            RunConfig("CartPole-v1", Reinforce(), options), klimb.make("CartPole-v1")
        ).iteration.estimator.uses_critic


def test_nothing_stands_for_rewards_that_are_not_seen():
    estimator = klimb.Estimator(gamma=0.5, advantage="reward_to_go", bootstrap=None, normalize_advantage=False)
    ones, flags = jnp.ones((3, 1)), jnp.zeros((3, 1), bool)
    rollout = klimb.Rollout(ones, flags.astype(int), ones, ones, flags, flags.at[0].set(True), ones, ~flags)
    batch = estimator.estimate(rollout, 9 * ones, 9 * ones, fraction_done=0.0)
    np.testing.assert_allclose(batch.advantage, [1, 1.5, 1])


def test_episodes_that_are_cut_off_are_told_of(caplog):
    with caplog.at_level(logging.WARNING, "klimb"):
        for env, steps in (("CartPole-v1", 500), (HOST, 500), ("Pendulum-v1", 200)):
            for num_steps in (steps, steps - 1):
                options = TrainOptions(**{**SMALL, "num_steps": num_steps, "workers": 0, "critic_num_minibatches": 1})
                Program(RunConfig(env, TRPO(), options), klimb.make(env)).close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "up to 500 steps and are truncated after num_steps = 499: --num-steps 500" in said[0]


@pytest.mark.slow
def test_what_needs_whole_episodes_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"time_baseline .*: it needs batch = episodes"):
        klimb.train("CartPole-v1", Reinforce(), advantage="time_baseline")
    policy = klimb.NetworkPolicy(4, klimb.make("CartPole-v1").actions, hidden=(4,), key=jax.random.key(0))
    recorded = klimb.record(policy, "CartPole-v1", episodes=3)
    options = {**WITHOUT_CRITIC, "env_steps": 1, "demonstrations": recorded}
    with pytest.raises(ConfigError, match=r"episodes of up to \d+ steps, and batch = episodes needs whole episodes"):
        klimb.train("CartPole-v1", OffPolicyGradient(), **{**options, "num_steps": 8})
    longest = int(recorded.lengths.max())
    run = klimb.train("CartPole-v1", OffPolicyGradient("trajectory"), **{**options, "num_steps": longest})
    assert run.history[-1]["status"] == "ACCEPTED"


@pytest.mark.slow
def test_reinforce_learns_without_a_critic():
    options = {**WITHOUT_CRITIC, "num_envs": 16, "num_steps": 500, "hidden": (64, 64)}
    run = klimb.train("CartPole-v1", Reinforce(), env_steps=100_000, **options)
    returns = klimb.evaluate(run.policy, "CartPole-v1", episodes=20).returns
    assert run.history[0]["episode_return"] < 40
    assert returns.mean() > 400
