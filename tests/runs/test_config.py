"""Run configurations: checked when made, and the same again after a trip through a file."""

from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klimb import (
    PPO,
    TRPO,
    BehaviourCloning,
    ConfigError,
    KLPenalty,
    OffPolicyGradient,
    Reinforce,
    RunConfig,
    TrainOptions,
)
from klimb.fields import build
from klimb.runs.config import num_iterations

RULES = [TRPO(max_kl=0.02, kl_direction="new_old"), PPO(target_kl=None, learning_rate_schedule="linear"), Reinforce()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_toml_round_trip(rule):
    config = RunConfig("gymnasium:Pendulum-v1", rule, TrainOptions(hidden=(32, 16), gamma=0.97, seed=7))
    assert RunConfig.from_toml(config.to_toml()) == config


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_environment_name_survives_toml(name):
    config = RunConfig(name, TRPO(), TrainOptions())
    assert tomllib.loads(config.to_toml())["env"] == name
    assert RunConfig.from_toml(config.to_toml()) == config


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_number_survives_toml(number):
    config = RunConfig("CartPole-v1", TRPO(max_kl=number), TrainOptions())
    assert RunConfig.from_toml(config.to_toml()).rule.max_kl == number


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gama": 0.9}, "no option 'gama'; did you mean 'gamma'"),
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"gamma": "high"}, "gamma = 'high'"),
        ({"gae_lambda": -0.1}, "gae_lambda = -0.1"),
        ({"gamma": math.nan}, "gamma = nan"),
        ({"env_steps": 0}, "env_steps = 0"),
        ({"hidden": [64, 0]}, "hidden.1 = 0"),
        ({"advantage": "gaee"}, "advantage = 'gaee'"),
    ],
)
def test_wrong_options_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(TrainOptions, fields)


def test_batch_that_does_not_divide_says_numbers_and_remedy():
    with pytest.raises(ConfigError, match="129 is not divisible by num_minibatches = 4; choose num_steps = 128"):
        RunConfig(
            "CartPole-v1",
            PPO(num_minibatches=4),
            TrainOptions(num_envs=1, num_steps=129, critic_num_minibatches=1),
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env = ", "not valid TOML"),
        ("env = 1\n[rule]\nname = 'trpo'", "a run configuration has env"),
        ("env = 'x'\nextra = 1\n[rule]\nname = 'trpo'", "a run configuration has env"),
        ("env = 'x'\n[rule]\nname = 'trpo'\nmax_kl = -1", "max_kl = -1"),
        ("env = 'x'\n[rule]\nname = 'trpo'\nmax_kll = 1", "did you mean 'max_kl'"),
    ],
)
def test_wrong_files_are_explained(text, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        RunConfig.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rule_that_is_not_there_can_be_read_about_and_not_trained_with(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("env = 'x'\n[rule]\nname = 'trppo'\nmax_kl = 0.02")
    config = RunConfig.read(path)
    assert RunConfig.from_toml(config.to_toml()) == config
    assert config.to_dict()["rule"] == {"name": "trppo", "max_kl": 0.02}
    with pytest.raises(ConfigError, match="no rule 'trppo'; did you mean 'trpo'") as error:
        config.require_modules(path, trust=True)
    assert "\n" not in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        RunConfig.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        RunConfig.read(tmp_path / "binary.toml")


def test_last_iteration_reaches_env_steps():
    options = TrainOptions(env_steps=10_001, num_envs=10, num_steps=100)
    assert num_iterations(TRPO(), options) == 11
    assert num_iterations(BehaviourCloning(max_epochs=7), options) == 7


def test_demonstrations_and_rules_have_to_go_together():
    given = TrainOptions(demonstrations="runs/expert")
    for rule, options, line in (
        (BehaviourCloning(), TrainOptions(), "behaviour-cloning learns from demonstrations and there are none"),
        (TRPO(), given, r"trpo can't learn from demonstrations: clone them first .* --init-from"),
        (OffPolicyGradient(history=2, behaviour="mixture"), given, "behaviour = mixture needs the policy that made"),
    ):
        with pytest.raises(ConfigError, match=line):
            RunConfig("CartPole-v1", rule, options).check_demonstrations()
    for rule in (BehaviourCloning(), OffPolicyGradient(), OffPolicyGradient(history=2)):
        RunConfig("CartPole-v1", rule, given).check_demonstrations()


def test_critic_warms_up_only_in_runs_that_start_from_another():
    assert TrainOptions().warmup == 0
    assert TrainOptions(init_from="runs/clone").warmup == 20
    assert TrainOptions(init_from="runs/clone", critic_warmup=0).warmup == 0


def test_a_field_that_was_renamed_is_read_by_its_old_name():
    config = RunConfig("CartPole-v1", BehaviourCloning(holdout_patience=3), TrainOptions())
    old = config.to_toml().replace("holdout_patience", "patience")
    assert RunConfig.from_toml(old.replace('patience = "none"\n', "")) == config


@pytest.mark.parametrize("rule", [PPO, Reinforce, KLPenalty], ids=lambda rule: rule.__name__)
def test_annealing_of_older_files_is_read_as_a_linear_schedule(rule):
    for anneals, schedule in ((True, "linear"), (False, "constant")):
        config = RunConfig("CartPole-v1", rule(learning_rate_schedule=schedule), TrainOptions())
        now = f'learning_rate_schedule = "{schedule}"'
        lines = config.to_toml().splitlines()
        lines[lines.index(now)] = f"anneal_learning_rate = {str(anneals).lower()}"
        assert RunConfig.from_toml("\n".join(lines)) == config
    # Of neither kind: a value that it never had, or both names at once.
    at = lines.index("anneal_learning_rate = false")
    for wrong in ('anneal_learning_rate = "linear"', f"anneal_learning_rate = true\n{now}"):
        lines[at] = wrong
        with pytest.raises(ConfigError, match=r"no option 'anneal_learning_rate'; .* is learning_rate_schedule here"):
            RunConfig.from_toml("\n".join(lines))
