"""From names to environments."""

from __future__ import annotations

import sys

import pytest

import klimb
from klimb.environments.registry import BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_a_prefix_the_compiled_one_is_taken(name):
    assert klimb.make(name).id == f"jax:{name}"
    assert type(klimb.make(f"jax:{name}")) is type(klimb.make(name))


def test_other_names_go_to_gymnasium():
    assert klimb.make("MountainCar-v0").id == "gymnasium:MountainCar-v0"
    assert klimb.make("gymnasium:CartPole-v1").id == "gymnasium:CartPole-v1"


def test_an_environment_is_its_own_name():
    environment = klimb.make("CartPole-v1")
    assert klimb.make(environment) is environment


@pytest.mark.slow
def test_a_module_registers_its_own_environments(tmp_path, monkeypatch):
    (tmp_path / "my_environments.py").write_text(
        "import gymnasium as gym\n"
        "class Still(gym.Env):\n"
        "    observation_space = gym.spaces.Discrete(3)\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return 0, {}\n"
        "    def step(self, action):\n"
        "        return 1, 0.5, False, False, {}\n"
        "gym.register('Still-v0', Still, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        environment = klimb.make("my_environments:Still-v0")
        # Discrete observations become one-hot rows.
        assert environment.observation_space.shape == (3,)
        run = klimb.train("my_environments:Still-v0", klimb.TRPO(), env_steps=64, num_envs=4, num_steps=16, hidden=(4,))
        assert run.history[0]["episode_length"] == 5
        assert run.history[0]["episode_return"] == 2.5
    finally:
        sys.modules.pop("my_environments", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("cartpole-v1", "did you mean 'CartPole-v1'"),
        ("jax:CartPole-v0", "did you mean 'CartPole-v1'"),
        ("gymnasium:HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("nowhere:Env-v0", "neither an importable module nor one of klimb's prefixes"),
    ],
)
def test_wrong_names_get_the_nearest_right_one(name, message):
    with pytest.raises(klimb.EnvironmentNotFound, match=message):
        klimb.make(name)


def test_other_objects_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"wrap a Gymnasium environment with klimb\.GymnasiumEnvironment"):
        klimb.make(3)
