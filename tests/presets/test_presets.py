"""Presets: the files that come with klimb, files of one's own, and what the command line makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest
from rich.console import Console

import klimb
from klimb import PPO, TRPO, RunConfig, TrainOptions
from klimb.cli.commands import load
from klimb.cli.main import main
from klimb.cli.session import announce_preset
from klimb.cli.train import configuration
from klimb.environments.control.cartpole import CartPole
from klimb.environments.registry import BUILT_IN, canonical_name
from klimb.presets import shipped
from klimb.presets.preset import read_preset
from klimb.presets.shipped import FOLDER, all_presets
from klimb.report.configuration import command
from klimb.rules import RULES, rule_name
from klimb.runs.directory import RunDirectory
from klimb.runs.sweep_file import Sweep

ROOT = Path(__file__).parent.parent.parent
SHIPPED = {one.title: one for one in all_presets()}
PAIRS = [pytest.param(one, env, id=f"{one.title}-{env}") for one in SHIPPED.values() for env in one.environments]

MINE = """
environments = ["jax:CartPole-v1"]
[rule]
max_kl = 0.02
[options]
gamma = 0.9
num_steps = 64
hidden = [8, 8]
critic_hidden = "none"
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    Path("mine.toml").write_text(MINE)


@pytest.fixture
def cart(tmp_path, monkeypatch) -> Path:
    """The file of a preset for CartPole-v1 which is the only one that klimb has."""
    (tmp_path / "trpo").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    file = tmp_path / "trpo" / "cart.toml"
    file.write_text(MINE)
    return file


def configured(words: str) -> RunConfig:
    """The configuration that a command line asks for."""
    name, *rest = shlex.split(words)
    return configuration(load(name).parse(rest))[0]


def announced(words: str) -> str:
    """What is printed about the preset of a command line."""
    name, *rest = shlex.split(words)
    arguments = load(name).parse(rest)
    said = io.StringIO()
    announce_preset(arguments.applied, configuration(arguments)[0], Console(file=said, width=80))
    return said.getvalue()


# The files that come with klimb


def test_there_is_a_file_for_every_preset():
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.toml")}
    assert files == set(SHIPPED)
    assert {"trpo/mujoco", "trpo/swimmer", "natural-gradient/mujoco", "ppo/swimmer"} <= files


@pytest.mark.parametrize(("preset", "env"), PAIRS)
def test_a_training_can_be_made_of_every_preset(preset, env):
    config = RunConfig(env, preset.rule(), TrainOptions(**preset.options))
    assert rule_name(config.rule) == preset.rule_name
    for name, value in preset.rule_options.items():
        assert getattr(config.rule, name) == value
    for name, value in preset.options.items():
        assert getattr(config.options, name) == value
    assert klimb.preset(preset.rule_name, env) == preset
    prefix, _, identifier = env.partition(":")
    if prefix == "gymnasium":
        assert klimb.preset(preset.rule_name, identifier) == preset
        assert identifier in gym.registry
    elif prefix == "envpool":
        assert identifier in pytest.importorskip("envpool").list_all_envs()
    else:
        assert identifier in BUILT_IN


@pytest.mark.parametrize("preset", SHIPPED.values(), ids=SHIPPED)
def test_every_setting_of_a_preset_differs_from_its_default(preset):
    assert preset.environments
    assert list(preset.settings()) == [*preset.rule_options, *preset.options]


@pytest.mark.parametrize("rule", RULES)
def test_an_environment_has_one_preset_per_rule(rule):
    environments = [env for one in SHIPPED.values() if one.rule_name == rule for env in one.environments]
    assert len(environments) == len(set(environments))


@pytest.mark.parametrize("preset", SHIPPED.values(), ids=SHIPPED)
def test_the_evidence_is_of_a_training_with_these_settings(preset):
    evidence = preset.evidence
    assert evidence is not None
    klimb_, *words = shlex.split(evidence.command)
    assert klimb_ == "klimb"
    # Settings have to be in the command itself, or the command has to name the preset.
    config = configured(shlex.join(words if "--preset" in words else [*words, "--preset", "none"]))
    assert canonical_name(config.env) in preset.environments
    assert evidence.seeds == tuple(range(config.options.seed, config.options.seed + config.options.num_seeds))
    if rule_name(config.rule) == preset.rule_name:
        assert preset.in_effect(config.rule, config.options).keys() == preset.settings().keys()
    else:
        assert evidence.note is not None


def test_the_files_are_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "src" / "klimb"
    patterns = project["tool"]["setuptools"]["package-data"]["klimb"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    assert set((package / "presets").rglob("*.toml")) <= installed


# How one is found


@pytest.mark.parametrize("name", ["CartPole-v1", "jax:CartPole-v1", "gymnasium:CartPole-v1", "MountainCar-v0"])
def test_the_canonical_name_is_that_of_the_environment(name):
    assert canonical_name(name) == klimb.make(name).id


def test_a_preset_is_found_by_rule_and_environment(cart):
    assert klimb.preset("trpo", "CartPole-v1").title == "trpo/cart"
    assert klimb.preset("trpo", CartPole()).title == "trpo/cart"
    assert klimb.preset("trpo", CartPole(gravity=1.0)) is None
    assert klimb.preset("trpo", "gymnasium:CartPole-v1") is None
    assert klimb.preset("ppo", "CartPole-v1") is None
    assert klimb.preset("no_such_module:Rule", "CartPole-v1") is None
    with pytest.raises(klimb.ConfigError, match="did you mean 'trpo'"):
        klimb.preset("trppo", "CartPole-v1")


@pytest.mark.parametrize("name", ["cart", "trpo/cart", "mine.toml", Path("mine.toml")])
def test_a_preset_has_a_rule_and_options(name, cart):
    preset = klimb.load_preset("trpo", name)
    assert preset.rule() == TRPO(max_kl=0.02)
    assert preset.rule(max_kl=0.005, damping=0.2) == TRPO(max_kl=0.005, damping=0.2)
    assert TrainOptions(**preset.options | {"gamma": 0.5}) == TrainOptions(gamma=0.5, num_steps=64, hidden=(8, 8))
    assert preset.settings() == {
        "max_kl": (0.02, 0.01), "gamma": (0.9, 0.99), "num_steps": (64, 128), "hidden": ((8, 8), None),
    }  # fmt: skip
    with pytest.raises(klimb.ConfigError, match="maxkl"):
        preset.rule(maxkl=1)


@pytest.mark.parametrize(
    ("rule", "name", "message"),
    [
        ("trpo", "cartt", "there is no preset 'cartt' of trpo; did you mean 'cart'? (see klimb list presets)"),
        ("trpo", "zzz", "there is no preset 'zzz' of trpo (presets of trpo: cart; FILE.toml for one of your own)"),
        ("ppo", "cart", "there is no preset 'cart' of ppo (ppo has no presets; FILE.toml for one of your own)"),
        ("trpo", "none.toml", "cannot read none.toml: No such file or directory"),
    ],
)
def test_a_preset_that_there_is_not(rule, name, message, cart):
    with pytest.raises(klimb.ConfigError) as error:
        klimb.load_preset(rule, name)
    assert str(error.value) == message


WRONG = {
    "gama = 1": "a preset has no 'gama' (it has environments, rule, options, evidence)",
    "option = {}": "a preset has no 'option'; did you mean 'options'?",
    "rule = 3": "rule of a preset is a section, [rule], and not 3",
    "[rule]\nmax_kll = 1": "TRPO has no option 'max_kll'; did you mean 'max_kl'?",
    "[rule]\nmax_kl = -1": "max_kl = -1: input should be greater than 0",
    "[rule]\ngamma = 0.9": "gamma is a training option: write it in [options], not in [rule]",
    "[options]\ngama = 0.9": "TrainOptions has no option 'gama'; did you mean 'gamma'?",
    "[options]\ngamma = nan": "gamma = nan: input should be a finite number",
    "[options]\nmax_kl = 0.1": "max_kl is a field of the rule trpo: write it in [rule], not in [options]",
    "[options]\npolicy = 'os:system'": (
        "policy can't be part of a preset, because it belongs to one training: give it as a flag"
    ),
    "environments = 'jax:CartPole-v1'": "environments = 'jax:CartPole-v1': a list of names of environments is needed",
    "environments = ['CartPole-v1']": "environments: 'CartPole-v1' has no prefix; write 'jax:CartPole-v1'",
    "[evidence]\nreturn = 3": "[evidence] has no 'return' (it has command, seeds, mean_return, commit, date, note)",
    "[evidence]\ncommand = 'x'\ndate = 2026-01-01": "[evidence] needs seeds, mean_return, commit too",
    "[evidence]\ncommand = 'x'\nseeds = []\nmean_return = 1\ncommit = 'a'\ndate = 2026-01-01": "seeds = []: ",
    "a =": "the configuration is not valid TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_a_file_gets_one_line_with_its_name(text):
    Path("wrong.toml").write_text(text)
    with pytest.raises(klimb.ConfigError) as error:
        read_preset(Path("wrong.toml"), "trpo")
    assert str(error.value).startswith(f"wrong.toml: {WRONG[text]}")
    assert "\n" not in str(error.value)


def test_the_example_in_the_docs_is_a_preset():
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs/presets.md").read_text(), re.DOTALL | re.MULTILINE)
    Path("example.toml").write_text(text)
    preset = klimb.load_preset("trpo", "example.toml")
    assert preset.environments
    assert preset.rule_options
    assert preset.options


# On the command line


def test_flags_override_a_preset_which_overrides_defaults(cart):
    plain = configured("train trpo CartPole-v1 --preset none")
    assert plain == RunConfig("CartPole-v1", TRPO(), TrainOptions())
    found = configured("train trpo CartPole-v1")
    assert found == RunConfig("CartPole-v1", TRPO(max_kl=0.02), TrainOptions(gamma=0.9, num_steps=64, hidden=(8, 8)))
    flags = configured("train trpo CartPole-v1 --max-kl 0.01 --gamma 0.8 --hidden 4")
    assert flags == RunConfig("CartPole-v1", TRPO(), TrainOptions(gamma=0.8, num_steps=64, hidden=(4,)))
    assert configured("train trpo Pendulum-v1") == RunConfig("Pendulum-v1", TRPO(), TrainOptions())
    assert configured("train ppo CartPole-v1") == RunConfig("CartPole-v1", PPO(), TrainOptions())
    assert configured("sweep trpo CartPole-v1 --over damping 0.1 0.2") == found


@pytest.mark.parametrize(
    "words",
    [
        "train trpo --gamma 0.9 CartPole-v1",
        "train trpo --run-dir x jax:CartPole-v1",
        "train trpo Pendulum-v1 --preset cart",
        "train --preset=trpo/cart trpo Pendulum-v1",
        "sweep trpo --over damping 0.1 --preset mine.toml Acrobot-v1",
    ],
)
def test_a_preset_is_found_wherever_the_environment_stands_and_by_its_name(words, cart):
    assert configured(words).rule == TRPO(max_kl=0.02)
    assert configured(words).options.num_steps == 64


def test_a_configuration_file_switches_presets_off_unless_one_is_named(cart):
    Path("part.toml").write_text('env = "CartPole-v1"\n[rule]\nname = "trpo"\ndamping = 0.3\n[options]\ngamma = 0.7\n')
    part = RunConfig.read(Path("part.toml"))
    assert configured("train --config part.toml") == part
    named = configured("train --config part.toml --preset cart --damping 0.4")
    options = TrainOptions(gamma=0.7, num_steps=64, hidden=(8, 8))
    assert named == RunConfig("CartPole-v1", TRPO(max_kl=0.02, damping=0.4), options)
    # The file of a run sets everything.
    whole = RunConfig("CartPole-v1", TRPO(), TrainOptions())
    Path("whole.toml").write_text(whole.to_toml())
    assert configured("train --config whole.toml --preset cart") == whole
    assert "changes nothing, because all of its settings are given" in announced(
        "train --config whole.toml --preset cart"
    )
    # Of a file for another rule its options are used.
    Path("ppo.toml").write_text('env = "CartPole-v1"\n[rule]\nname = "ppo"\nepochs = 3\n[options]\ngamma = 0.7\n')
    assert configured("train trpo --config ppo.toml --preset cart") == RunConfig(
        "CartPole-v1", TRPO(max_kl=0.02), options
    )


def test_one_line_says_what_a_preset_changes(cart):
    line = "preset       trpo/cart: {} (flags override it; --preset none trains without it)\n"
    assert announced("train trpo CartPole-v1") == line.format("max_kl 0.02, gamma 0.9, num_steps 64, hidden 8 8")
    assert announced("train trpo CartPole-v1 --gamma 0.8 --max-kl 0.01") == line.format("num_steps 64, hidden 8 8")
    assert announced("train trpo Pendulum-v1 --preset mine.toml").startswith("preset       mine.toml: max_kl 0.02, ")
    assert announced("train trpo CartPole-v1 --preset none") == announced("train ppo CartPole-v1") == ""


def test_errors_about_settings_of_a_preset_name_it(cart, capsys):
    hint = "(with the preset trpo/cart; --preset none trains without it)"
    assert main(shlex.split("train trpo CartPole-v1 --num-envs 1 --critic-num-minibatches 3")) == 2
    assert capsys.readouterr().err.endswith(f"{hint}\n")
    assert main(shlex.split("sweep trpo CartPole-v1 --num-envs 1 --over critic_num_minibatches 3")) == 2
    assert capsys.readouterr().err.endswith(f"{hint}\n")
    assert main(shlex.split("train trpo CartPole-v1 --eval-every 1 --eval-episodes 0")) == 2
    assert hint not in capsys.readouterr().err


def test_help_shows_the_settings_of_the_preset_as_defaults(cart, capsys):
    for words, default in {"CartPole-v1": "0.9", "Pendulum-v1": "0.99", "": "0.99"}.items():
        assert main(["train", "trpo", *words.split(), "--help"]) == 0
        page = " ".join(capsys.readouterr().out.replace("│", "").split())
        assert f"Discount of rewards, per step. (default: {default})" in page


def test_the_list_has_everything_that_the_files_say(capsys):
    assert main(["list", "presets"]) == 0
    said = capsys.readouterr().out
    sections = dict(zip(SHIPPED, re.split(r"^\S+/\S+:$", said, flags=re.MULTILINE)[1:], strict=True))
    for title, preset in SHIPPED.items():
        section = sections[title]
        for env in preset.environments:
            assert env.partition(":")[2] in section
        for name, (value, default) in preset.settings().items():
            if isinstance(value, float):
                assert f"{name} {value} (default {default})" in section
        assert preset.evidence.command in section
        assert f"{preset.evidence.mean_return:g}" in section


# In a run


SMALL = shlex.split("--num-envs 2 --critic-epochs 1 --critic-num-minibatches 1 --eval-episodes 0 --no-certificate")


@pytest.mark.slow
def test_a_run_records_its_preset_and_is_resumed_without(cart):
    words = [*SMALL, "--env-steps", "128", "--run-dir", "run"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["train", "trpo", "CartPole-v1", *words]) == 0
    assert said.getvalue().count("\npreset       trpo/cart: max_kl 0.02, ") == 1
    run = RunDirectory.open("run")
    assert run.config.rule == TRPO(max_kl=0.02)
    assert run.config.options.gamma == 0.9
    assert [entry.preset for entry in run.provenance()] == ["trpo/cart"]
    assert re.search(r"<summary>[^<]* · preset trpo/cart · ", Path("run/report.html").read_text())
    cart.write_text(MINE.replace("0.02", "0.04").replace("0.9", "0.8"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["resume", "run", "--env-steps", "256"]) == 0
    assert "preset" not in said.getvalue()
    again = RunDirectory.open("run")
    assert again.config.rule == run.config.rule
    assert again.config.options == dataclasses.replace(run.config.options, env_steps=256)
    assert [entry.preset for entry in again.provenance()] == ["trpo/cart", None]
    # A file has everything, and the preset of now is not used.
    assert configured("train --config run/config.toml") == again.config


@pytest.mark.slow
def test_a_sweep_uses_the_preset_also_where_it_goes_on(cart):
    words = [*SMALL, "--env-steps", "128", "--run-dir", "parent", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["sweep", "trpo", "CartPole-v1", *words, "--over", "gamma", "0.5", "0.6"]) == 0
    assert "preset" not in said.getvalue()
    for gamma in (0.5, 0.6):
        run = RunDirectory.open(f"parent/gamma={gamma}")
        assert (run.config.rule, run.config.options.gamma) == (TRPO(max_kl=0.02), gamma)
        assert [entry.preset for entry in run.provenance()] == ["trpo/cart"]
    assert Sweep.read(Path("parent")).preset == "trpo/cart"
    file = Path("parent/gamma=0.6/provenance.json")
    shutil.rmtree("parent/gamma=0.6")
    cart.unlink()
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["resume", "parent"]) == 0
    assert [entry["preset"] for entry in json.loads(file.read_text())] == ["trpo/cart"]
    assert RunDirectory.open("parent/gamma=0.6").config.rule == TRPO(max_kl=0.02)


@pytest.mark.parametrize("preset", [None, "trpo/cart"])
def test_the_file_of_a_sweep_names_its_preset(preset):
    sweep = Sweep(RunConfig("CartPole-v1", TRPO(), TrainOptions()), {"max_kl": [0.01, 0.02]}, preset)
    sweep.write(Path("sweep"))
    assert Sweep.read(Path("sweep")) == sweep
    file = Path("sweep/sweep.toml")
    assert ("preset" in file.read_text()) == (preset is not None)
    for wrong in ("3", '"' + 300 * "x" + '"'):
        file.write_text(f"preset = {wrong}\n" + file.read_text().removeprefix('preset = "trpo/cart"\n'))
        with pytest.raises(klimb.ConfigError, match="preset is the name of one"):
            Sweep.read(Path("sweep"))
        file.write_text(file.read_text().partition("\n")[2])


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_command_in_a_report_repeats_a_run_with_or_without_a_preset(env, cart):
    options = TrainOptions(env_steps=1000, num_steps=64)
    for config in (RunConfig(env, TRPO(), options), RunConfig(env, TRPO(max_kl=0.02), options)):
        words = " ".join(command(config.to_dict()))
        assert ("--preset none" in words) == (env == "CartPole-v1")
        assert configured(words.removeprefix("klimb ")) == config
