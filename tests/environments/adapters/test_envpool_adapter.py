"""EnvPool's late resets: the inserted rows are not valid, and everything else is what was there."""

from __future__ import annotations

import numpy as np
import pytest

import klimb
from problems import slow_except

pytest.importorskip("envpool")


def test_rows_after_an_end_only_carry_out_the_reset():
    environment = klimb.make("envpool:CartPole-v1")
    vector = environment.vector(3)
    obs = vector.reset(np.array([4, 5, 6]))
    after_end = np.zeros(3, bool)
    ends = 0
    for _ in range(60):
        step = vector.step(np.ones(3, np.int32))
        np.testing.assert_array_equal(step.valid, ~after_end)
        assert (step.reward[after_end] == 0).all()
        # A fresh start is inside the initial box; the end of an episode is outside the limits.
        assert (np.abs(step.next_obs[after_end]) <= 0.05).all()
        after_end = step.terminated | step.truncated
        assert (np.abs(step.next_obs[after_end][:, [0, 2]]) > [2.4, 0.2094]).any(axis=1).all()
        np.testing.assert_array_equal(step.obs, step.next_obs)
        ends += int(after_end.sum())
        obs = step.obs
    vector.close()
    assert obs.dtype == np.float32
    assert ends >= 9


def test_a_seed_repeats_and_another_differs():
    vector = klimb.make("envpool:CartPole-v1").vector(2)
    first, again, other = (vector.reset(np.array(seeds)) for seeds in ([1, 2], [1, 2], [1, 2**32 - 2]))
    vector.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], other[0])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("name", slow_except({"CartPole-v1"}, ["CartPole-v1", "Pendulum-v1"]))
def test_seeds_of_one_training_are_the_runs_they_would_be_alone(name):
    options = {"num_envs": 4, "num_steps": 256, "hidden": (8,), "env_steps": 1024, "critic_epochs": 1}
    together = klimb.train(f"envpool:{name}", klimb.TRPO(), **options, num_seeds=2).history[0]
    alone = klimb.train(f"envpool:{name}", klimb.TRPO(), **options, seed=1).history[0]
    for metric in ("episodes", "episode_length"):
        assert together[metric][1] == alone[metric]
    assert together["episode_return"][0] != together["episode_return"][1]
    np.testing.assert_allclose(together["episode_return"][1], alone["episode_return"], rtol=1e-4)
    np.testing.assert_allclose(together["kl_old_new"][1], alone["kl_old_new"], rtol=1e-2)


def test_training_counts_real_steps_only():
    run = klimb.train("envpool:CartPole-v1", klimb.TRPO(), env_steps=512, num_envs=4, num_steps=64, hidden=(8,))
    # With the rollout before the first iteration, whose steps are counted too.
    assert 512 * 0.9 < run.history[0]["env_steps"] < 512
    assert run.history[-1]["status"] == "ACCEPTED"


def test_unknown_names_get_the_nearest():
    with pytest.raises(klimb.EnvironmentNotFound, match="HalfCheetah-v5"):
        klimb.make("envpool:HalfCheeta-v5")
