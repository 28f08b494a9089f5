"""Action masks from every source: what the policy sees, what the environment gets, and what is wrong with a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.environments.adapters.action_masks import mask_of
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment
from klimb.environments.returns import InvalidReturn
from klimb.errors import ConfigError, PolicyFileError, UnsupportedSpace
from mixed_tasks import STEPS, VALVES, CompiledValves, Valves, valves
from problems import without_timing

SOURCES = ("info", "method", "observation")


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_observations(source):
    """Flat observations with the mask at their end: those of an environment without one, and three flags."""
    env, plain = valves(source), valves()
    assert env.masked
    assert not plain.masked
    assert env.observations.encoded.shape == plain.observations.shape == (VALVES + 1,)
    vector, other = env.vector(2), plain.vector(2)
    obs, expected = vector.reset(np.arange(2)), other.reset(np.arange(2))
    for step in range(2 * STEPS):
        np.testing.assert_array_equal(obs[:, :-VALVES], expected)
        masks = env.observations.mask(obs)
        assert (masks.sum(1) == VALVES - 1).all()
        rows = np.stack([[0.5, mask.argmax()] for mask in masks]).astype(np.float32)
        obs, expected = vector.step(rows).obs, other.step(rows).obs
        assert obs.dtype == np.float32, step


@pytest.mark.parametrize("source", ["info", *(pytest.param(x, marks=pytest.mark.slow) for x in SOURCES[1:])])
def test_training_and_evaluation_take_no_forbidden_action(source):
    """The environment raises at the first."""
    env = valves(source)
    run = klimb.train(env, klimb.TRPO(), env_steps=512, num_envs=4, num_steps=64, hidden=(8,))
    assert run.history[-1]["status"] == "ACCEPTED"
    for deterministic in (True, False):
        evaluation = klimb.evaluate(run.policy, env, episodes=20, deterministic=deterministic)
        assert evaluation.mean > 0
    recorded = klimb.record(run.policy, env, episodes=3)
    assert recorded.obs.shape[1:] == env.observations.shape
    with pytest.raises(PolicyFileError, match=r"reads observations of shape \(7,\), valves gives \(4,\)"):
        klimb.evaluate(run.policy, valves(), episodes=1)


@pytest.mark.slow
def test_a_registered_environment_has_its_mask_in_worker_processes_too():
    """Gymnasium's Taxi: the mask is where the action changes the state."""
    env = klimb.make("gymnasium:Taxi-v4")
    assert env.masked
    assert env.observations.to_json() == {"kind": "masked", "observed": {"kind": "one_hot", "n": 500}, "choices": 6}
    options = {"env_steps": 128, "num_envs": 2, "num_steps": 32, "hidden": (4,)}
    here, there = (klimb.train(env, klimb.Reinforce(), workers=n, **options) for n in (0, 2))
    assert without_timing(here.history) == without_timing(there.history)


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_its_masks(tmp_path):
    """Taxi's episodes, which are longer than a rollout, go on where they were."""
    env = "gymnasium:Taxi-v4"
    options = {"num_envs": 4, "num_steps": 16, "hidden": (8,), "checkpoint_every": 1}
    whole = klimb.train(env, klimb.PPO(), env_steps=256, **options)
    klimb.train(env, klimb.PPO(), env_steps=128, run_dir=tmp_path / "run", **options)
    resumed = klimb.resume(tmp_path / "run", env=env, env_steps=256)
    np.testing.assert_array_equal(*(jax.flatten_util.ravel_pytree(run.policy)[0] for run in (whole, resumed)))


def test_act_takes_the_mask_that_the_environment_gave():
    env = valves("info")
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    obs, rng = np.zeros(VALVES + 1, np.float32), np.random.default_rng(0)
    taken = {policy.act(obs, action_mask=[0, 1, 0], deterministic=False, rng=rng)["valve"] for _ in range(20)}
    assert taken == {2}
    several = policy.act(np.zeros((5, VALVES + 1)), action_mask=np.eye(3)[[0, 1, 2, 1, 0]])
    np.testing.assert_array_equal(several["valve"], [1, 2, 3, 2, 1])
    # With the mask at the end of the observation, as klimb's own collectors have it.
    assert policy.act(np.append(obs, [0, 0, 1]))["valve"] == 3
    with pytest.raises(ConfigError, match=r"trained with an action mask, and needs it: give action_mask="):
        policy.act(obs)
    with pytest.raises(ConfigError, match=r"the action mask has the shape \(2,\), and \(3,\) is expected"):
        policy.act(obs, action_mask=[1, 0])
    with pytest.raises(ConfigError, match="the action mask allows no choice at all: it needs a 1 for at least one"):
        policy.act(obs, action_mask=[0, 0, 0])
    plain = klimb.NetworkPolicy(4, env.actions, hidden=(4,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match="trained without an action mask: leave action_mask out"):
        plain.act(obs, action_mask=[1, 1, 1])


def test_a_policy_file_keeps_the_mask(tmp_path):
    env = CompiledValves()
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    klimb.save_policy(policy, tmp_path)
    again = klimb.load_policy(tmp_path)
    assert again.observations == policy.observations
    obs = jnp.array([1.0, 0, 0, 0.5, 0, 1, 0])
    assert again.act(obs)["valve"] == policy.act(obs)["valve"] == 2
    assert klimb.check_env(env).trainable


def test_statistics_and_critic_leave_the_mask_out():
    env = CompiledValves()
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    critic = klimb.Critic(env.observations, hidden=(4,), key=jax.random.key(1))
    first, second = jnp.array([[1.0, 0, 0, 0.5, 0, 1, 0], [1.0, 0, 0, 0.5, 1, 1, 1]])
    assert critic(first) == critic(second)
    assert policy.encoder.normalizer.mean.shape == critic.encoder.normalizer.mean.shape == (4,)
    np.testing.assert_array_equal(np.isfinite(policy(first).parts[1].logits), [False, True, False])


def test_masks_of_several_parts_may_be_given_apart():
    actions = klimb.action_spec(spaces.MultiDiscrete([2, 3]))
    apart = mask_of((np.array([1, 0]), [True, False, True]), actions, "step", required=True)
    np.testing.assert_array_equal(apart, [1, 0, 1, 0, 1])
    with pytest.raises(InvalidReturn, match="allows nothing for number 1 of the action"):
        mask_of(np.array([1, 0, 0, 0, 0]), actions, "step", required=True)


def test_a_mask_of_another_size_in_the_space_is_refused():
    class Wrong(Valves):
        def __init__(self):
            super().__init__("observation")
            self.observation_space["action_mask"] = spaces.MultiBinary(4)

    with pytest.raises(UnsupportedSpace, match="the part action_mask of the observations has 4 flags, and the actions"):
        GymnasiumEnvironment.from_maker("wrong", Wrong)


@pytest.mark.parametrize("mask", ["observation", "info", "method"])
def test_observations_are_checked_under_allowed_actions(mask):
    """This environment raises on forbidden ones, which would hide what observations are."""
    check = klimb.check_env(valves(mask), steps=30)
    (finding,) = [finding for finding in check.findings if finding.name == "observation space"]
    assert finding.status == "ok"
    assert "contains all" in finding.text
