"""Names of other libraries lead to klimb's; a wrong name is never taken for one that it has little in common with."""

from __future__ import annotations

import dataclasses

import gymnasium
import pytest

from klimb.cli.evaluate import EvaluateArguments
from klimb.cli.flags import flags_of
from klimb.cli.train import RunFlags
from klimb.environments.registry import BUILT_IN
from klimb.errors import nearest
from klimb.improve.rules.ppo import PPO
from klimb.improve.rules.trpo import TRPO
from klimb.other_names import OTHER_NAMES, REMARKS, WITHOUT_COUNTERPART
from klimb.rules import RULES
from klimb.runs.config import TrainOptions

OPTIONS = [field.name for field in dataclasses.fields(TrainOptions)]
OWN = {name: [field.name for field in dataclasses.fields(rule)] for name, rule in RULES.items()}


def flags(rule: type) -> list[str]:
    """Every flag of a training by a rule."""
    return [name for part in (rule, TrainOptions, RunFlags) for flag in flags_of(part) for name in flag.names]


def test_every_name_of_klimbs_in_the_table_is_one():
    known = {*OPTIONS, *(name for names in OWN.values() for name in names), *(name.replace("-", "_") for name in RULES)}
    known |= {field.name for part in (RunFlags, EvaluateArguments) for field in dataclasses.fields(part)}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known
    assert REMARKS.keys() <= OTHER_NAMES.keys()
    assert not WITHOUT_COUNTERPART.keys() & OTHER_NAMES.keys()
    assert not WITHOUT_COUNTERPART.keys() & known


@pytest.mark.parametrize(
    ("other", "of_trpo", "of_ppo"),
    [
        ("total_timesteps", "env_steps", "env_steps"),
        ("timesteps", "env_steps", "env_steps"),
        ("total_steps", "env_steps", "env_steps"),
        ("n_steps", "num_steps", "num_steps"),
        ("rollout_fragment_length", "num_steps", "num_steps"),
        ("n_envs", "num_envs", "num_envs"),
        ("training_num", "num_envs", "num_envs"),
        ("lr", "critic_learning_rate", "learning_rate"),
        ("learning_rate", "critic_learning_rate", "learning_rate"),
        ("entropy_coeff", "ent_coef", "ent_coef"),
        ("accept_ratio", "min_gain_share", None),
        ("anneal_lr", None, "learning_rate_schedule"),
        ("anneal_learning_rate", None, "learning_rate_schedule"),
        ("clip_range", None, "clip_eps"),
        ("clip_param", None, "clip_eps"),
        ("clip_coef", None, "clip_eps"),
        ("n_epochs", "critic_epochs", "epochs"),
        ("update_epochs", "critic_epochs", "epochs"),
        ("target_kl", "max_kl", "target_kl"),
        ("lambda", "gae_lambda", "gae_lambda"),
        ("discount", "gamma", "gamma"),
        ("batch_size", "critic_num_minibatches", "num_minibatches"),
        ("net_arch", "hidden", "hidden"),
        ("fcnet_hiddens", "hidden", "hidden"),
        ("cg_damping", "damping", None),
        ("cg_max_steps", "cg_iterations", None),
        ("tensorboard_log", "run_dir", "run_dir"),
    ],
)
def test_another_librarys_name_leads_to_what_the_rule_has(other, of_trpo, of_ppo):
    for rule, name in ((TRPO, of_trpo), (PPO, of_ppo)):
        flag = f"--{other}".replace("_", "-")
        if name is not None and name != other:
            expected = f"--{name}".replace("_", "-")
            assert nearest(flag, flags(rule)).startswith(f"; {flag} is {expected} here")
            assert nearest(f"--{other}", flags(rule)).startswith(f"; --{other} is {expected} here")
        elif name is None:
            assert " is --" not in nearest(flag, flags(rule))


def test_what_there_is_not_is_said():
    assert "policy and critic share no parameters" in nearest("--vf-coef", flags(PPO))
    assert "no rule that learns Q" in nearest("sac", RULES)
    assert nearest("--batch-size", flags(PPO)).endswith("num-minibatches here, a number of minibatches, not of rows")


@pytest.mark.parametrize("name", ["--lr-foo", "--device", "--verbose", "--render", "--wandb", "--cuda", "--kl", "--xy"])
def test_a_flag_that_resembles_none_gets_no_suggestion(name):
    assert nearest(name, flags(PPO)) == ""


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "Pong-v5", "PongNoFrameskip-v4", "MyRobot-v0", "Breakout-v5", "X-v1"])
def test_an_environment_is_not_taken_for_one_that_shares_its_version(name):
    assert nearest(name, [*gymnasium.registry, *BUILT_IN]) == ""


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("CartPol-v1", "CartPole-v1"), ("cartpole-v1", "CartPole-v1"), ("CartPole", "CartPole-v1"),
        ("HalfCheetah-v9", "HalfCheetah-v5"), ("Hoper-v5", "Hopper-v5"), ("Walker-v5", "Walker2d-v5"),
    ],
)  # fmt: skip
def test_an_environment_is_found_without_its_version_and_gets_the_nearest(name, right):
    assert nearest(name, [*gymnasium.registry, *BUILT_IN]) == f"; did you mean {right!r}?"


@pytest.mark.parametrize(
    ("name", "right"),
    [("trppo", "trpo"), ("ppo2", "ppo"), ("REINFORCE", "reinforce"), ("naturalgradient", "natural-gradient")],
)
def test_a_rule_is_found(name, right):
    assert nearest(name, RULES) == f"; did you mean {right!r}?"


@pytest.mark.parametrize(
    ("name", "right"),
    [("npg", "natural-gradient"), ("bc", "behaviour-cloning"), ("behavior-cloning", "behaviour-cloning")],
)
def test_a_rule_is_found_by_another_name(name, right):
    assert nearest(name, RULES) == f"; {name} is {right} here"
