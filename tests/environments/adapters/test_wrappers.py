"""Wrappers behind an environment's name: in this process, in workers, in files, and what is wrong with one."""

from __future__ import annotations

import gymnasium
import jax
import numpy as np
import pytest

import klimb
from klimb.cli.main import main
from klimb.environments.adapters.wrappers import NamedWrapper, split_name
from klimb.environments.registry import canonical_name, imported_module, require_trust
from klimb.errors import ConfigError, EnvironmentFault, UntrustedEnvironment

LIMIT = "gymnasium.wrappers:TimeLimit(max_episode_steps=7)"
NAME = f"gymnasium:CartPole-v1+{LIMIT}"


def not_an_environment(env):
    return 7


def test_names_are_read():
    assert split_name(f"{NAME}+a.b:C") == ("gymnasium:CartPole-v1", (LIMIT, "a.b:C"))
    assert split_name("CartPole-v1") == ("CartPole-v1", ())
    read = NamedWrapper.read("a:B.C(x=1, y=(2.5, None), z='+c:d', w=True)")
    assert read == NamedWrapper("a:B.C", (("x", 1), ("y", (2.5, None)), ("z", "+c:d"), ("w", True)))
    assert canonical_name(f"CartPole-v1+{LIMIT}") == NAME
    assert imported_module(NAME) == "gymnasium.wrappers"
    assert imported_module("CartPole-v1") is None


@pytest.mark.parametrize(
    "text", ["a", "a:B(", "a:B(1)", "a:B(x=print())", "a:B(**{})", "a:B(x=1)+", "1a:B", "a:B(x=a)"]
)
def test_what_is_no_wrapper_is_told(text):
    with pytest.raises(ConfigError, match=r"write module:Wrapper, or module:Wrapper\(argument=value\)"):
        NamedWrapper.read(text)


def test_the_environment_is_wrapped():
    env = klimb.make(f"CartPole-v1+{LIMIT}")
    assert env.id == NAME
    assert env.max_episode_steps == 7
    policy = klimb.NetworkPolicy(4, env.actions, hidden=(4,), key=jax.random.key(0))
    assert klimb.evaluate(policy, env, episodes=5).lengths.max() == 7
    # The innermost wrapper comes first.
    both = klimb.make(f"CartPole-v1+gymnasium.wrappers:TimeLimit(max_episode_steps=3)+{LIMIT}")
    assert klimb.evaluate(policy, both, episodes=2).lengths.max() == 3


@pytest.mark.slow
def test_worker_processes_wrap_it_too(tmp_path):
    options = {"env_steps": 256, "num_envs": 2, "num_steps": 32, "hidden": (4,)}
    run = klimb.train(NAME, klimb.Reinforce(), workers=2, run_dir=tmp_path / "run", **options)
    assert run.history[-1]["episode_length"] == 7
    with pytest.raises(UntrustedEnvironment, match=r"names the wrapper 'gymnasium.wrappers:TimeLimit', which imports"):
        klimb.resume(tmp_path / "run", env_steps=512)
    again = klimb.resume(tmp_path / "run", env_steps=512, trust_environment=True)
    assert again.history[-1]["episode_length"] == 7


@pytest.mark.slow
def test_the_flag_and_the_name_are_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_wrappers.py").write_text(
        "import gymnasium\n\nclass Half(gymnasium.RewardWrapper):\n    def reward(self, reward):\n"
        "        return 0.5 * float(reward)\n"
    )
    words = [
        "train",
        "reinforce",
        "CartPole-v1",
        "--env-steps",
        "64",
        "--num-envs",
        "2",
        "--num-steps",
        "32",
        "--hidden",
        "4",
        "--eval-episodes",
        "2",
    ]
    assert main([*words, "--run-dir", "a", "--wrapper", LIMIT, "my_wrappers:Half"]) == 0
    said = capsys.readouterr().out
    assert "mean return 3.50 ± 0.00 over 2 episodes" in said
    assert (tmp_path / "a" / "config.toml").read_text().startswith(f'env = "CartPole-v1+{LIMIT}+my_wrappers:Half"')
    assert main(["evaluate", "a", "--episodes", "2"]) == 2
    assert "--trust-environment" in capsys.readouterr().err
    assert main(["evaluate", "a", "--episodes", "2", "--trust-environment"]) == 0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (f"jax:CartPole-v1+{LIMIT}", ConfigError, "wrappers are Gymnasium's, and are for its environments"),
        ("CartPole-v1+gymnasium.wrappers:TimeLimt()", ConfigError, r"has no 'TimeLimt'; did you mean 'TimeLimit'\?"),
        ("CartPole-v1+nowhere:W", ConfigError, "there is no module 'nowhere' to import"),
        ("CartPole-v1+gymnasium.wrappers:TimeLimit()", EnvironmentFault, "TimeLimit can't be made: TypeError"),
        (f"CartPole-v1+{__name__}:not_an_environment", ConfigError, "returned 7 .*, which is not a gymnasium.Env"),
        ("mixed_tasks:CompiledValves+a:B", ConfigError, "is no Gymnasium environment"),
    ],
)
def test_wrappers_that_can_not_be_are_told(name, error, message):
    with pytest.raises(error, match=message):
        klimb.make(name)


def test_files_need_trust_for_gymnasiums_own_wrappers_too():
    with pytest.raises(UntrustedEnvironment, match=r"names the wrapper 'gymnasium\.wrappers:RecordVideo'"):
        require_trust("CartPole-v1+gymnasium.wrappers:RecordVideo(video_folder='/')", "config.toml")
    require_trust("CartPole-v1", "config.toml")


def test_wrapped_observations_are_those_of_gymnasium():
    env = klimb.make("gymnasium:Pendulum-v1+gymnasium.wrappers:FrameStackObservation(stack_size=2)")
    expected = gymnasium.wrappers.FrameStackObservation(gymnasium.make("Pendulum-v1"), 2)
    np.testing.assert_array_equal(env.vector(1).reset(np.array([3]))[0], expected.reset(seed=3)[0].ravel())
    assert env.observations.shape == (6,)
