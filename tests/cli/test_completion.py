"""The completion scripts, run by the shells that there are."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from klimb.cli.commands import COMMANDS
from klimb.cli.completion import bash, fish, pages, zsh
from klimb.rules import RULES
from klimb.runs.config import TrainOptions
from klimb.theory.figures.registry import FIGURES

SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
HARNESS = """
source ./script
for line in "$@"; do
    COMP_WORDS=(); rest=$line
    while [[ $rest == *" "* ]]; do COMP_WORDS+=("${rest%% *}"); rest=${rest#* }; done
    COMP_WORDS+=("$rest"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _klimb 2>/dev/null
    (IFS=,; echo "${COMPREPLY[*]}")
done
complete -p klimb
"""


@pytest.fixture
def complete(tmp_path):
    """What bash offers for lines whose last word is being typed."""
    (tmp_path / "script").write_text(bash(pages()))
    (tmp_path / "harness").write_text(HARNESS)
    for folder in ("runs/trpo-CartPole-v1", "runs/with space"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("")

    def offered(*lines: str) -> list[list[str]]:
        command = ["bash", "--norc", "--noprofile", "harness", *lines]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert not done.stderr
        *answers, registered = done.stdout.splitlines()
        assert registered == "complete -F _klimb klimb"
        return [answer.split(",") if answer else [] for answer in answers]

    return offered


def test_bash_completes_words(complete):
    lines = {
        "klimb ": [*COMMANDS, "--help", "--version"],
        "klimb re": ["resume", "record", "report"],
        "klimb train ": list(RULES),
        "klimb sweep tr": ["trpo"],
        "klimb train trpo CartP": ["CartPole-v1", "CartPoleSwingUp-v0"],
        "klimb figure ": [*FIGURES, "all"],
        "klimb figure -o x.png b": ["bounds"],
        "klimb list m": ["metrics"],
        "klimb completion ": ["bash", "zsh", "fish"],
        "klimb evaluate runs/": ["runs/trpo-CartPole-v1", "runs/with space"],
        "klimb evaluate --json runs/t": ["runs/trpo-CartPole-v1"],
        "klimb compare runs/trpo-CartPole-v1 runs/w": ["runs/with space"],
        "klimb nonsense ": [],
    }
    for line, answer in zip(lines, complete(*lines), strict=True):
        assert sorted(answer) == sorted(lines[line]), line


def test_bash_completes_flags_and_their_values(complete):
    lines = {
        "klimb train trpo CartPole-v1 --max-k": ["--max-kl", "--max-kl-schedule"],
        "klimb train ppo CartPole-v1 --max-k": [],
        "klimb train ppo CartPole-v1 --clip": ["--clip-eps", "--clip-schedule"],
        "klimb train ppo CartPole-v1 --no-cert": ["--no-certificate"],
        "klimb sweep trpo CartPole-v1 --ov": ["--overlap", "--over"],
        "klimb sweep trpo CartPole-v1 --over max_k": ["max_kl", "max_kl_schedule"],
        "klimb sweep trpo CartPole-v1 --over hid": ["hidden"],
        "klimb resume runs/trpo-CartPole-v1 --env-s": ["--env-steps"],
        "klimb train trpo CartPole-v1 --advantage n": ["n_step"],
        "klimb train trpo CartPole-v1 --advantage = ga": ["gae"],
        "klimb train trpo CartPole-v1 --seed ": [],
        "klimb train trpo CartPole-v1 --init-from runs/n": ["runs/notes.txt"],
        "klimb evaluate --env Acr": ["Acrobot-v1"],
        "klimb report runs -": [
            *("--output", "-o", "--overwrite", "--no-overwrite", "--video", "--no-video", "--seed", "--help", "-h"),
            *("--trust-environment", "--no-trust-environment", "--live", "--no-live", "--port"),
        ],
        "klimb verify --mdp Tax": ["Taxi-v4"],
        "klimb train trpo gymnasium:Swimmer-v5 --preset swi": ["swimmer"],
        "klimb sweep trpo gymnasium:Swimmer-v5 --preset n": ["none"],
    }
    for line, answer in zip(lines, complete(*lines), strict=True):
        assert sorted(answer) == sorted(lines[line]), line


def test_bash_knows_every_flag_of_every_rule(complete):
    lines = [f"klimb train {rule} CartPole-v1 --" for rule in RULES]
    for (name, rule), answer in zip(RULES.items(), complete(*lines), strict=True):
        for field in (*dataclasses.fields(rule), *dataclasses.fields(TrainOptions)):
            assert "--" + field.name.replace("_", "-") in answer, name


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_valid(shell, tmp_path):
    script = SCRIPTS[shell](pages())
    for name in (*COMMANDS, *RULES, *FIGURES, "max-kl", "CartPole-v1"):
        assert name in script
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
def test_fish_completes(tmp_path):
    (tmp_path / "script").write_text(fish(pages()))
    for line, answer in {
        "klimb sw": "sweep",
        "klimb train tr": "trpo",
        "klimb train trpo Acr": "Acrobot-v1",
        "klimb train trpo Acrobot-v1 --max-k": "--max-kl",
        "klimb train trpo Acrobot-v1 --advantage ga": "gae",
        "klimb sweep trpo Acrobot-v1 --over max_k": "max_kl",
    }.items():
        command = ["fish", "--no-config", "-c", f"source ./script; complete -C '{line}'"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert [offer.split("\t")[0] for offer in done.stdout.splitlines()] == [answer]
