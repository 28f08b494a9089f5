"""The API reference as Markdown: one page for each topic of klimb's public names."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable

from docstrings import ERROR
from surface import ROOT, UNTITLED, Argument, Entry, Member, entry, topics

CODE = re.compile(r"(`[^`]+`)")


def pages() -> dict[str, str]:
    """The pages by their place in the site."""
    made = {}
    for topic, names in topics().items():
        if topic != UNTITLED:
            made[place(topic)] = page(title(topic), [entry(name) for name in names])
    made["api/index.md"] = overview()
    return made


def title(topic: str) -> str:
    """A topic as a heading. topic: one of `surface.topics`."""
    return topic[0].upper() + topic[1:]


def place(topic: str) -> str:
    """Where the page of a topic stands. topic: one of `surface.topics`."""
    return f"api/{topic.replace(' ', '-').replace(chr(39), '')}.md"


@functools.cache
def targets() -> dict[str, str]:
    """Where each public name, and each of its methods, is described: `klimb.NAME` → page#anchor."""
    found = {}
    for topic, names in topics().items():
        for name in names:
            at = "api/index.md" if topic == UNTITLED else place(topic)
            for member in (entry(name).head, *entry(name).members):
                found[f"klimb.{member.name}"] = f"{at}#{anchor(member.name)}"
    return found


def anchor(name: str) -> str:
    """The anchor of a public name, in which `__` would be emphasis. name: with that of its class before a dot."""
    return f"klimb.{name.replace('__', '')}"


def overview() -> str:
    """The first page: every public name of every topic with its summary."""
    lines = ["# API", "", "Everything that `import klimb` offers, by topic.", ""]
    for topic, names in topics().items():
        if topic == UNTITLED:
            lines += [section for name in names for section in _entry(entry(name))]
            continue
        lines += [f"## [{title(topic)}]({place(topic).removeprefix('api/')})", ""]
        for name in names:
            lines += [f"`klimb.{name}`", f":   {prose(_first_sentence(entry(name).head.doc.summary))}", ""]
    return "\n".join(lines)


def page(heading: str, entries: Iterable[Entry]) -> str:
    """A page. heading: its title. entries: what it describes."""
    lines = [f"# {heading}", ""]
    for one in entries:
        lines += _entry(one)
    return "\n".join(lines)


def _entry(one: Entry) -> list[str]:
    source = f"[source](../../{one.file.relative_to(ROOT).as_posix()}#L{one.line})"
    head = one.head
    lines = [f"## {_heading(one.name)} {{#{anchor(one.name)}}}", "", f"*{one.kind}* · {source}{{.source}}", ""]
    if one.kind not in ("constant", "enumeration"):
        lines += _code(f"klimb.{head.signature}")
    if one.bases and one.kind != "error":
        lines += [f"Extends {', '.join(prose(f'`klimb.{base}`') for base in one.bases)}.", ""]
    lines += _body(head)
    if one.fields and not head.arguments:
        lines += _arguments("Members" if one.kind == "enumeration" else "Fields", one.fields)
    for member in one.members:
        lines += [f"### {_heading(member.name.partition('.')[2])} {{#{anchor(member.name)}}}", ""]
        lines += _code(member.signature) if member.signature else _of_property(member)
        lines += _body(member)
    return lines


def _heading(name: str) -> str:
    return name.replace("__", r"\_\_")


def _of_property(member: Member) -> list[str]:
    return [f"*property*{f', `{member.result}`' if member.result else ''}", ""]


def _body(member: Member) -> list[str]:
    """Everything that a docstring says, in one order."""
    doc = member.doc
    lines = [part for paragraph in doc.prose for part in (_paragraph(paragraph), "")]
    if member.arguments:
        lines += _arguments("Parameters", member.arguments)
    if doc.returns:
        lines += [f"**Returns** {prose(' '.join(doc.returns).removeprefix('Returns ').removeprefix('Gives '))}", ""]
    if doc.raises:
        lines += ["**Raises**", "", *(f"- {prose(clause)}" for clause in doc.raises), ""]
    return lines


def _arguments(heading: str, arguments: Iterable[Argument]) -> list[str]:
    """A list of arguments, in which those that are described together stand together."""
    lines = [f"**{heading}**", ""]
    for meaning, group in itertools.groupby(arguments, key=lambda one: one.meaning or one.name):
        together = list(group)
        lines += [_argument(one) for one in together]
        lines += [f":   {prose(meaning) if together[0].meaning else '–'}", ""]
    return lines


def _argument(one: Argument) -> str:
    default = "" if one.default is None else f", default `{one.default}`"
    return f"`{one.name}`{f' `{one.type}`' if one.type else ''}{default}"


def _code(text: str) -> list[str]:
    return ["```python", text, "```", ""]


def _paragraph(text: str) -> str:
    """A paragraph, which may end with a list."""
    if re.search(r"^\S+ {3,}\S", text, re.MULTILINE):  # in columns
        return f"```text\n{text}\n```"
    before, dash, items = text.partition("- ") if text.startswith("- ") else text.partition("\n- ")
    listed = "\n".join(f"- {prose(item)}" for item in items.split("\n- ")) if dash else ""
    return f"{prose(before)}\n\n{listed}" if before else listed


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.]\.)\s+(?=[A-Z`])", text)[0]


def prose(text: str) -> str:
    """Text of a docstring as Markdown on one line: errors are marked as code, and nothing is taken for HTML.

    text: of a docstring.
    """
    parts = CODE.split(" ".join(text.split()))
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    text = re.sub(r"\b_(?=\w)|(?<=\w)_\b", r"\\_", text.replace("<", "&lt;"))
    return re.sub(ERROR, lambda match: f"`{match[0]}`", text)


def linked(text: str, page: str, relative: Callable[[str, str], str]) -> str:
    """Markdown in which public names that stand in backticks lead to their descriptions.

    text: of a page. page: its place. relative: makes a link from a place to a page's target.
    """
    known = targets()
    return outside_fences(text, lambda line: _linked_line(line, page, known, relative))


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """A page whose lines are changed, other than those of code blocks.

    text: of the page. change: of one line.
    """
    lines, fence = [], ""
    for line in text.split("\n"):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
            lines.append(line)
        else:
            lines.append(line if fence else change(line))
    return "\n".join(lines)


# Code that is the text of a link already has a bracket before it, and in headings a link would be another link.
NAMED = re.compile(r"(?<!\[)`((?:klimb\.)?[A-Za-z_]\w*(?:\.\w+)?)((?:\([^`]*\))?)`(?![\]{])")


def _linked_line(line: str, page: str, known: dict[str, str], relative: Callable[[str, str], str]) -> str:
    if line.startswith("#"):
        return line

    # Names without `klimb.` are those of the reference, and not those of arguments, with which a line begins.
    short = page.startswith("api/")

    def link(match: re.Match[str]) -> str:
        name = match[1]
        if not name.startswith("klimb."):
            name = f"klimb.{name}" if short and (name[0].isupper() or not line.startswith("`")) else ""
        return f"[{match[0]}]({relative(page, known[name])})" if name in known else match[0]

    return NAMED.sub(link, line)
