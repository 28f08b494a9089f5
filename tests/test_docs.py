"""Every Python block in the README and the docs runs, and every klimb command in them is one that exists."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from klimb import commands

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{i}") for page in PAGES for i, code in enumerate(blocks(page, "python"))
]
COMMANDS = [
    line.split("#")[0].strip()
    for page in PAGES
    for block in blocks(page, "")
    for line in block.splitlines()
    if line.startswith("klimb ")
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(code)
    runpy.run_path("example.py")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    """Words and flags are parsed for real; nothing is trained."""
    words = shlex.split(command)[1:]
    assert words[0] in commands.COMMANDS
    if words[0] == "train":
        base, flags = commands._named_run(words[1:])
        commands._parse_flags(base, flags)


def test_there_are_examples_and_commands():
    assert len(EXAMPLES) >= 4
    assert len(COMMANDS) >= 8


def test_every_metric_is_in_the_table():
    import klimb

    small = {"env_steps": 64, "num_envs": 4, "num_steps": 16, "hidden": (4,), "critic_num_minibatches": 1}
    table = (ROOT / "docs" / "runs.md").read_text()
    for rule in (klimb.TRPO(), klimb.PPO(epochs=1), klimb.Reinforce()):
        record = klimb.train("CartPole-v1", rule, **small).history[0]
        for name in record:
            written = name if not name.endswith("_se") else name.removesuffix("_se")
            assert f"`{written}`" in table, name


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
