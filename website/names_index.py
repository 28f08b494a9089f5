"""The index of the site: every public name, option, command, metric and term in alphabetical order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from command_reference import PLACE, options_of, options_of_rule, options_of_training
from klimb.cli.commands import COMMANDS
from klimb.improve.rule import traits_of
from klimb.rules import RULES
from klimb.runs.metrics import METRICS
from reference import targets


class Item(NamedTuple):
    """A line of the index. text: as Markdown. what: kind of thing. target: the page that explains it."""

    text: str
    what: str
    target: str


ROW = re.compile(r"^\| (?P<term>.+?) \| ")
HEADINGS = ("term", "---")


def page(glossary: str) -> str:
    """The page. glossary: the text of docs/glossary.md."""
    letters: defaultdict[str, list[Item]] = defaultdict(list)
    for item in sorted(items(glossary), key=lambda item: (_key(item), item.what, item.target)):
        first = _key(item)[:1].upper()
        letters[first if first.isalpha() and first.isascii() else "Symbols"].append(item)
    lines = ["# Index", "", "Every public name, option, command, metric and term, with the page that explains it.", ""]
    for letter, group in letters.items():
        lines += [f"## {letter}", "", '<div class="index" markdown>', ""]
        lines += [f"- [{item.text}]({item.target}) {item.what}" for item in group]
        lines += ["", "</div>", ""]
    return "\n".join(lines)


def _key(item: Item) -> str:
    text = item.text.strip("`").removeprefix("klimb.").removeprefix("klimb ")
    return text.lstrip("-_").lower() or text


def items(glossary: str) -> Iterator[Item]:
    """All lines. glossary: the text of docs/glossary.md."""
    for name, target in targets().items():
        yield Item(f"`{name}`", "", target)
    for command in COMMANDS:
        yield Item(f"`klimb {command}`", "command", f"{PLACE}#klimb-{command}")
        for one in options_of(command):
            if not one.flag.positional:
                yield Item(f"`{one.flag.names[0]}`", f"of {command}", f"{PLACE}#{one.anchor}")
    for one in options_of_training():
        yield Item(f"`{one.flag.names[0]}`", "of every training", f"{PLACE}#{one.anchor}")
    for rule in RULES:
        for name in options_of_rule(rule):
            yield Item(f"`{name}`", f"of {rule}", f"algorithms/{rule}.md#options")
        for metric in traits_of(RULES[rule]()).metrics:
            yield Item(f"`{metric}`", f"metric of {rule}", f"algorithms/{rule}.md#metrics")
    for metric in METRICS:
        yield Item(f"`{metric}`", "metric", "runs.md#metrics")
    for term in terms(glossary):
        yield Item(term, "term", f"glossary.md#{term_anchor(term)}")


def terms(glossary: str) -> Iterator[str]:
    """The terms of the glossary. glossary: its text."""
    for line in glossary.splitlines():
        row = ROW.match(line)
        if row and row["term"] not in HEADINGS:
            yield row["term"].removesuffix(" †")


def term_anchor(term: str) -> str:
    """Where the row of a term is. term: as the glossary has it."""
    return "term-" + re.sub(r"\W+", "-", term.lower()).strip("-")


def with_anchors(glossary: str) -> str:
    """The glossary with an anchor in the row of each term. glossary: its text."""
    lines = []
    for line in glossary.splitlines():
        row = ROW.match(line)
        if row and row["term"] not in HEADINGS:
            anchor = term_anchor(row["term"].removesuffix(" †"))
            line = f'| <span id="{anchor}"></span>{line[2:]}'
        lines.append(line)
    return "\n".join(lines) + "\n"
