"""Every Python block in the README and the docs runs, and every klimb command in them is one that exists."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
import sys
from pathlib import Path

import jax
import pytest

import klimb
from klimb import RunConfig, TrainOptions
from klimb.cli.commands import load
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import is_offline, traits_of
from klimb.policies.actions import Discrete
from klimb.rules import RULES
from klimb.runs.metrics import METRICS
from klimb.training.program import Program
from problems import slow_except

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for named, code in fenced if named == language]


MARKS = {"own-rule.md": [], "compiled-worlds.md": pytest.mark.suites}
"""Of pages whose examples are not among the slow tests."""
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{i}", marks=MARKS.get(page.name, pytest.mark.slow))
    for page in PAGES
    for i, code in enumerate(blocks(page, "python"))
]
IN_BLOCKS = [
    line.split("#")[0].strip()
    for page in PAGES
    for block in blocks(page, "")
    for line in block.splitlines()
    if line.startswith("klimb ")
]
IN_TEXT = [
    found
    for page in PAGES
    if page.name != "errors.md"  # its commands are wrong: tests/cli/test_errors_page.py
    for found in re.findall(r"`(klimb [a-z]+ [^`]+)`", page.read_text())
]
COMMANDS = sorted({*IN_BLOCKS, *IN_TEXT})
PLACEHOLDERS = {"RULE": "trpo", "FIELD": "max_kl", "V...": "0.1", "K": "1"}
"""Words that stand for others; those that may be anything, such as RUN and ENV, stand for themselves."""


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(code)
    runpy.run_path("example.py")


OWN_RULES = """
from dataclasses import dataclass

import klimb


@dataclass(frozen=True)
class NormalisedGradient(klimb.TRPO):
    epsilon: float = 1e-3


MyRule = NormalisedGradient
"""
"""The module `my_package` of the pages, as far as a command line needs it: a rule is imported for its flags."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    """Words and flags of every command are parsed for real; nothing is run."""
    (tmp_path / "my_package.py").write_text(OWN_RULES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    if "FILE" in command:
        pytest.skip("reads a configuration")
    name, *words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)[1:]]
    load(name).parse(words)


def test_there_are_examples_and_commands():
    assert len(EXAMPLES) >= 4
    assert len(IN_BLOCKS) >= 8
    assert len(IN_TEXT) >= 8


def program_of(rule, recorded, **options) -> Program:
    """A training of one iteration, to be traced and not run."""
    # Guided policy search is for continuous actions.
    env = "Pendulum-v1" if isinstance(rule, GuidedPolicySearch) else "CartPole-v1"
    config = RunConfig(env, rule, TrainOptions(num_envs=4, num_steps=16, hidden=(4,), **options))
    return Program(config, klimb.make(env), None, recorded)


# Every rule, and both methods of the one that has two.
WITH_METRICS = {
    **{name: rule() for name, rule in RULES.items()},
    "mirror-descent": GuidedPolicySearch("mirror_descent"),
}


@pytest.mark.parametrize("name", slow_except({"trpo"}, WITH_METRICS))
def test_every_metric_is_in_the_table(name):
    table = (ROOT / "docs" / "runs.md").read_text()
    rule = WITH_METRICS[name]
    if is_offline(rule):
        policy = klimb.NetworkPolicy(4, Discrete(2), hidden=(4,), key=jax.random.key(0))
        program = program_of(rule, klimb.record(policy, "CartPole-v1", episodes=2), demonstrations="the test")
    else:
        program = program_of(rule, None)
    metrics = program.source.metric_shapes(program.state_template())
    assert "kl_old_new" in metrics
    for metric in ("wall_time", "steps_per_second", *metrics):
        assert f"`{metric}`" in table, metric


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_relative_link_leads_somewhere():
    for page in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            if "://" not in target:
                file = page.parent / target if target else page
                assert file.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(file), f"{page.name}: {target}#{anchor}"


SOURCES = r"\b(lectures?|lecture notes|section notes|slides?|transcript|note on the natural gradient)\b"
OTHER_NAMES = r"source texts?|notes? on (the )?(natural policy|advanced)|slides on|\bCS ?285|\bCS ?224R|\bsection 5\b"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_the_sources_by_their_short_names_and_link_to_the_list(page):
    """Titles and courses stand once, in the list of sources; whoever is sent to a source is led to the list."""
    text = page.read_text()
    if page == ROOT / "docs" / "theory" / "index.md":
        assert "\n## Sources\n" in text
        text = text.split("\n## Sources\n")[0] + text.split("\n## Conventions\n")[1]
    elif re.search(SOURCES, text, flags=re.IGNORECASE):
        assert "theory/index.md#sources)" in text or "(index.md#sources)" in text
    assert not re.findall(OTHER_NAMES, text, flags=re.IGNORECASE)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_page_with_all_options_and_their_defaults(name):
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()
    for field in dataclasses.fields(RULES[name]):
        row = next(
            (line for line in page.splitlines() if line.startswith(f"| `--{field.name.replace('_', '-')}` |")), ""
        )
        assert row, f"{field.name} is not in the table of options"
        written = row.split("|")[2].strip().strip("`")
        default = field.default
        if default is None or isinstance(default, bool | str):
            assert written == {None: "none", True: "true", False: "false"}.get(default, default), field.name
        else:
            numbers = default if isinstance(default, tuple) else (default,)
            assert tuple(map(float, written.split())) == tuple(map(float, numbers)), field.name
    sections = ("Equation", "Pseudocode", "Where in the code", "Options", "Metrics", "Measured", "When not to use it")
    for section in (*sections, "References"):
        assert f"\n## {section}\n" in page
    assert f"figures/{name}.png" in page
    assert f"[{name}]({name}.md)" in (ROOT / "docs" / "algorithms" / "index.md").read_text()


def test_the_start_page_links_every_page_once():
    docs = ROOT / "docs"
    linked = re.findall(r"\]\(([^)#]+\.md)\)", (docs / "index.md").read_text())
    pages = [page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md"))]
    assert sorted(linked) == sorted(set(pages) - {"index.md"})


GLOSSARY = [
    re.split(r" (?<!\\)\| ", line.strip("| \n"))
    for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
    if line.startswith("| ")
][1:]


def test_the_glossary_is_in_alphabetical_order():
    terms = [row[0].removesuffix(" †").lower() for row in GLOSSARY]
    assert len(terms) > 50
    assert terms == sorted(set(terms))


def test_the_names_in_the_glossary_exist():
    """Public names, options and metrics of the last column; files and array names need no check."""
    options = {field.name for thing in (TrainOptions, *RULES.values()) for field in dataclasses.fields(thing)}
    options |= {"samples", "run_dir", "demonstrations", "no_certificate"}
    metrics = {*METRICS, *(name for rule in WITH_METRICS.values() for name in traits_of(rule).metrics)}
    checked = 0
    for row in GLOSSARY:
        for name in re.findall(r"`([^` ]+)[^`]*`", row[-1]):
            if name.startswith("--"):
                assert name[2:].replace("-", "_") in options, name
            elif name.startswith("klimb."):
                assert hasattr(klimb, name.removeprefix("klimb.")), name
            elif re.fullmatch(r"[a-z]+(_[a-z]+)+|tv|ess|entropy|multiplier|backtracks", name):
                assert name in metrics | {"log_prob", "value_target", "env_steps"}, name
            checked += 1
    assert checked > 60
