"""How numbers and sizes of layers are typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klimb import TRPO, ConfigError, RunConfig, TrainOptions
from klimb.cli.commands import load
from klimb.cli.parser import whole_number
from klimb.fields import build


@given(st.integers(-(10**20), 10**20))
def test_every_integer_is_a_whole_number(number):
    assert whole_number(str(number)) == whole_number(f"{number:_}") == number


@pytest.mark.parametrize(
    ("word", "number"),
    [("1e6", 10**6), ("1E6", 10**6), ("2.5e3", 2500), ("1_000_000", 10**6), ("3.0", 3), ("-1", -1), ("1e0", 1)],
)
def test_whole_numbers_may_be_written_with_an_exponent(word, number):
    assert whole_number(word) == number
    assert type(whole_number(word)) is int


@pytest.mark.parametrize("word", ["1.5", "1e-3", "many", "", "nan", "inf", "1e", "0x10", "1,000"])
def test_other_numbers_are_none(word):
    with pytest.raises(ValueError, match=f"{word!r} is not a whole number"):
        whole_number(word)


@pytest.mark.parametrize("word", ["1e30", "1e999999999"])
def test_a_number_that_would_fill_the_memory_is_never_made(word):
    with pytest.raises(ValueError, match="is too large"):
        whole_number(word)


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        ("--hidden 64,32", (64, 32)), ("--hidden 64 32", (64, 32)), ("--hidden 64, 32", (64, 32)),
        ("--hidden 64", (64,)), ("--hidden=16,8", (16, 8)), ("--hidden", ()), ("", None),
    ],
)  # fmt: skip
def test_sizes_of_layers_are_typed_with_commas_or_spaces(words, hidden):
    train = load("train")
    arguments = train.parse(["trpo", "CartPole-v1", *words.split(), "--env-steps", "1e5"])
    assert (arguments.training.hidden, arguments.training.env_steps) == (hidden, 100_000)
    critic = train.parse(["trpo", "CartPole-v1", *words.replace("hidden", "critic-hidden").split()])
    assert critic.training.critic_hidden == (hidden if words else None)


def test_none_is_still_no_network_of_the_critics_own():
    arguments = load("train").parse(["trpo", "CartPole-v1", "--critic-hidden", "none", "--workers", "1e0"])
    assert arguments.training.critic_hidden is None
    assert arguments.training.workers == 1


def test_a_configuration_file_may_have_an_exponent_and_one_layer():
    text = RunConfig("CartPole-v1", TRPO(), TrainOptions(hidden=(64, 64))).to_toml()
    changed = text.replace("env_steps = 200000", "env_steps = 1e6").replace("\nhidden = [64, 64]", "\nhidden = 32")
    options = RunConfig.from_toml(changed).options
    assert (options.env_steps, options.hidden) == (10**6, (32,))
    assert type(options.env_steps) is int
    with pytest.raises(ConfigError, match=r"env_steps = 1\.5: "):
        build(TrainOptions, {"env_steps": 1.5})
