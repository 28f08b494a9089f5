"""The table of commands, and what follows from it: help, lists, and rules of the user's own by name."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from klimb import NetworkPolicy, RunConfig, TrainOptions, save_policy
from klimb.cli.commands import COMMANDS, load, usage
from klimb.cli.flags import flags_of
from klimb.cli.main import main, overview
from klimb.environments.registry import BUILT_IN
from klimb.improve.rule import traits_of
from klimb.policies.actions import Discrete
from klimb.rules import RULES, UnknownRule
from klimb.runs.metrics import METRICS
from klimb.theory.figures.registry import FIGURES

SMALL = shlex.split("--num-envs 2 --num-steps 16 --hidden 4 --critic-epochs 1 --critic-num-minibatches 1")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """A current directory and a search path that other tests do not see."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_file_that_agrees_with_the_table(name):
    command = load(name)
    assert command.name == name
    assert command.summary == COMMANDS[name].summary
    for flag in flags_of(command.arguments):
        assert len(flag.help) > 5, flag
        if flag.positional:
            assert flag.names[0] in usage(name)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_has_every_command_with_its_usage(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {usage(name)}  " in out
        assert entry.summary in out


def test_the_examples_of_the_overview_are_understood(tmp_path):
    """Parsed whole; nothing is run."""
    (tmp_path / "my_package.py").write_text(OWN.format(base="Reinforce") + "MyRule = Mine")
    saved = tmp_path / "runs/trpo-CartPole-v1/config.toml"
    saved.parent.mkdir(parents=True)
    saved.write_text(RunConfig("CartPole-v1", RULES["trpo"](), TrainOptions()).to_toml())
    examples = [line.split()[1:] for line in overview().split("examples:")[1].splitlines() if line]
    assert len(examples) >= 8
    for name, *words in examples:
        assert load(name).parse(words) is not None
    sys.modules.pop("my_package", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_of_its_own(name, capsys):
    """With its usage, its summary, and every flag with its meaning; whichever way it is asked for."""
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: {usage(name)}\n\n")
    assert COMMANDS[name].summary[1:] in page
    for flag in flags_of(load(name).arguments):
        for spelling in flag.names:
            assert spelling in page
        assert flag.help.split()[0] in page
    for words in ([name, "-h"], ["help", name]):
        assert main(words) == 0
        assert capsys.readouterr().out == page


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_without_a_rule_there_are_the_rules_and_the_options_of_all(command, capsys):
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in RULES)
    assert "--gae-lambda FLOAT" in page
    assert "--max-kl" not in page


@pytest.mark.parametrize("words", [["trpo"], ["trpo", "CartPole-v1"], ["trpo", "CartPole-v1", "--max-kl", "0.5"]])
def test_with_a_rule_there_are_its_options_too(words, capsys):
    assert main(["train", *words, "--help"]) == 0
    page = capsys.readouterr().out
    assert "Trust region policy optimisation" in page
    assert "--max-kl FLOAT" in page
    assert "(default: 0.01)" in page
    assert "--gae-lambda FLOAT" in page
    assert "--clip-eps" not in page
    assert "  reinforce " not in page


def test_a_rule_without_a_name_gets_one_line(capsys):
    """`klimb train "" --help` raised an IndexError."""
    for words in (["train", "", "--help"], ["train", ""], ["sweep", "", ""]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("klimb: there is no rule ''")
        assert error.count("\n") == 1


def test_none_is_written_none(capsys):
    assert main(["train", "trpo", "--help"]) == 0
    assert "None" not in capsys.readouterr().out


def test_flags_may_stand_before_the_words_and_have_an_equals_sign(capsys):
    for words in (["evaluate", "--episodes", "3", "nowhere"], ["evaluate", "--episodes=3", "nowhere"]):
        assert main(words) == 2
        assert "nowhere is not a run" in capsys.readouterr().err


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys; from klimb.cli.main import main; main([]); main(['--help']); main(['--version']); main(['trian']);"
        "heavy = {'jax', 'numpy', 'equinox', 'gymnasium', 'matplotlib', 'tyro', 'pydantic', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def lines_of(words: list[str], capsys) -> dict[str, str]:
    """What is listed: the text beside each name."""
    assert main(words) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return {row[0]: row[1] for row in rows}


def test_lists_have_a_line_for_everything(capsys):
    everything = lines_of(["list"], capsys)
    for section, names in {"rules": RULES, "environments": BUILT_IN, "figures": FIGURES}.items():
        listed = lines_of(["list", section], capsys)
        assert set(names) <= set(listed)
        assert listed.items() <= everything.items()
        assert all(len(text) > 10 for text in listed.values())
    assert "limit on the KL" in everything["trpo"]
    assert everything["fields"] == FIGURES["fields"].title


def test_the_list_of_metrics_has_their_titles_and_meanings(capsys):
    listed = lines_of(["list", "metrics"], capsys)
    for metrics in (METRICS, *(traits_of(rule()).metrics for rule in RULES.values())):
        for name in metrics:
            assert name in listed
    assert listed["entropy"] == f"{METRICS['entropy'].title}: {METRICS['entropy'].meaning}"
    # Of the other method of guided policy search, which is not the default.
    assert "projection_kl" in listed


OWN = """
from pydantic.dataclasses import dataclass
from klimb import {base}
@dataclass(frozen=True)
class Mine({base}):
    extra: float = 0.25
    '''A number of my own.'''
@dataclass(frozen=True, kw_only=True)
class Demanding({base}):
    needed: float
    '''A number without a default.'''
class NoRule:
    pass
@dataclass(frozen=True)
class Clash({base}):
    gamma: float = 0.5
"""


@pytest.fixture
def own_rule(tmp_path):
    """A rule of the user's own, in a module of the current directory, which is not on Python's search path."""
    name = "own_rule_of_the_tests"
    (tmp_path / f"{name}.py").write_text(OWN.format(base="Reinforce"))
    yield f"{name}:Mine"
    sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_rule_of_ones_own_is_trained_resumed_and_swept(own_rule):
    words = ["train", own_rule, "CartPole-v1", *SMALL, "--env-steps", "64", "--extra", "0.5", "--eval-episodes", "1"]
    assert main(words) == 0
    run = Path("runs/own_rule_of_the_tests-Mine-CartPole-v1")
    assert "extra = 0.5" in (run / "config.toml").read_text()
    assert main(["resume", str(run), "--trust-environment"]) == 0
    again = ["train", "--config", str(run / "config.toml"), "--run-dir", "again", "--eval-episodes", "0"]
    assert main([*again, "--trust-environment", "--extra", "0.75"]) == 0
    assert "extra = 0.75" in Path("again/config.toml").read_text()
    swept = ["sweep", own_rule, "CartPole-v1", "--over", "learning_rate", "0.001", "0.002", *SMALL]
    assert main([*swept, "--env-steps", "64", "--eval-episodes", "0", "--run-dir", "swept"]) == 0
    assert len(list(Path("swept").glob("learning_rate=*"))) == 2


@pytest.fixture
def own_package(tmp_path):
    """A rule, an environment and networks of the user's own, in a module of the current directory."""
    source = (Path(__file__).parent.parent / "own_code.py").read_text()
    (tmp_path / "my_package.py").write_text(source.replace("own_code:", "my_package:"))
    yield "my_package"
    sys.modules.pop("my_package", None)


@pytest.mark.slow
def test_everything_of_ones_own_has_a_name(own_package, capsys):
    """And what a file names is imported only under the gate."""
    words = ["my_package:GradientStep", "my_package:Spot", "--policy", "my_package:picture_network"]
    words += ["--critic=my_package:picture_critic", *SMALL, "--env-steps", "64", "--run-dir", "run"]
    assert main(["train", *words, "--eval-episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "environment  my_package:Spot (compiled)" in out
    assert "klimb evaluate run --trust-environment" in out
    for command in (["resume", "run"], ["evaluate", "run", "--episodes", "1"], ["record", "run", "--episodes", "1"]):
        assert main(command) == 2
        assert "give --trust-environment" in capsys.readouterr().err
        assert main([*command, "--trust-environment"]) == 0
    gated = ["evaluate", "run", "--episodes", "1", "--env", "my_package:Spot"]
    assert main(gated) == 2
    assert "names the policy 'my_package:picture_network'" in capsys.readouterr().err
    assert main(["report", "run"]) == 0
    assert main(["compare", "run"]) == 0


def test_help_shows_the_options_of_a_rule_of_ones_own(own_rule, capsys):
    assert main(["train", own_rule, "--help"]) == 0
    page = capsys.readouterr().out
    assert "--extra FLOAT" in page
    assert "A number of my own." in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_rule_of_the_tests:Mien", "did you mean 'Mine'"),
        ("own_rule_of_the_tests:NoRule", "is not a rule: it has no init and no step"),
        ("own_rule_of_the_tests:Clash", "Clash has the field 'gamma', which is an option of every training too"),
        ("own_rule_of_the_tests:Demanding", "--needed is missing"),
    ],
)
def test_rules_of_ones_own_that_are_none_get_one_line(name, said, own_rule, capsys):
    assert main(["train", name, "CartPole-v1"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_current_directory_is_searched_only_when_a_module_is_named(own_rule):
    for words in (["evaluate", "nowhere"], ["train", "trppo", "jax:CartPole-v1"], ["train", "trppo", "gymnasium:A-v0"]):
        assert main(words) == 2
        assert os.getcwd() not in sys.path, words
    assert main(["train", "trppo", "gymnasium:own_rule_of_the_tests:X-v0"]) == 2
    assert sys.path[-1] == os.getcwd()


def strange_run(folder: Path) -> Path:
    """A run of a rule that can't be imported."""
    options = TrainOptions(env_steps=32, num_envs=2, num_steps=16, hidden=(4,), critic_num_minibatches=1)
    config = RunConfig("CartPole-v1", UnknownRule("no_such_module:Rule", {"beta": 0.5}), options)
    save_policy(NetworkPolicy(4, Discrete(2), hidden=(4,), key=jax.random.key(0)), folder)
    (folder / "config.toml").write_text(config.to_toml())
    record = {"iteration": 1, "env_steps": 32, "wall_time": 1.0, "steps_per_second": 32.0, "episode_return": 9.0}
    finished = {"episode_length": 9.0, "episodes": 3, "status": "ACCEPTED", "kl_old_new": 0.01}
    (folder / "metrics.jsonl").write_text(json.dumps(record | finished) + "\n")
    return folder


def test_a_run_of_a_rule_that_is_not_there_can_be_looked_at(tmp_path, capsys):
    run = str(strange_run(tmp_path / "strange"))
    assert main(["evaluate", run, "--episodes", "1"]) == 0
    assert main(["record", run, "--episodes", "1"]) == 0
    assert main(["report", run]) == 0
    assert main(["compare", run]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("words", [["resume", "strange"], ["train", "--config", "strange/config.toml"]])
def test_but_not_trained_with(words, tmp_path, capsys):
    strange_run(tmp_path / "strange")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "give --trust-environment" in error
    assert main([*words, "--trust-environment"]) == 2
    error = capsys.readouterr().err
    assert "there is no module 'no_such_module' to import" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_configuration_gives_what_is_not_typed(tmp_path, capsys):
    """The rule may be typed, and the environment come from the file: under its gate."""
    options = TrainOptions(
        env_steps=32, num_envs=2, num_steps=16, hidden=(4,), critic_num_minibatches=1, eval_episodes=0
    )
    Path("config.toml").write_text(RunConfig("CartPole-v1", RULES["ppo"](), options).to_toml())
    words = ["--config", "config.toml", "--run-dir", "run"]
    assert main(["train", *words, "--num-envs", "1", "reinforce"]) == 2
    assert "the rule comes before the flags: reinforce --config config.toml" in capsys.readouterr().err
    assert main(["train", *words, "reinforce"]) == 0
    assert 'name = "reinforce"' in Path("run/config.toml").read_text()
    Path("config.toml").write_text(RunConfig("no_such_module:X-v0", RULES["ppo"](), options).to_toml())
    assert main(["train", "reinforce", *words]) == 2
    assert "give --trust-environment" in capsys.readouterr().err
