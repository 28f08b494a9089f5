"""klimb's docstrings, taken apart: prose, arguments, what is returned and what is raised.

Their style is plain text. `name: meaning` describes an argument, or `name, other: meaning` several; a sentence that
begins with `Returns`, `Gives` or `Raises`, or with the name of an error, says what its first word says.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass

import klimb

PUBLIC = {name: getattr(klimb, name) for name in dir(klimb) if name[0].isupper()}
EXCEPTIONS = [name for name, thing in PUBLIC.items() if isinstance(thing, type) and issubclass(thing, BaseException)]
ERROR = rf"\b(?:[A-Z]\w*Error|{'|'.join(EXCEPTIONS)})\b"
"""The name of an exception: one that says so, or one of klimb's own."""
# After the beginning, a sentence or a line; an error that begins a sentence is raised when, if or for something.
RETURNS = re.compile(r"(?:(?<=^)|(?<=[.;:] )|(?<=\n))(?=(?:[Rr]eturns|Gives) )")
WHEN = r"(?:when|if|for|after|where|unless)\b"
RAISES = re.compile(rf"(?:(?<=^)|(?<=[.;:] )|(?<=\n))(?=Raises\s|{ERROR}(?:, [^.]*?)? {WHEN})")
NEXT_ERROR = re.compile(rf"; (?=(?:and )?`?(?:klimb\.)?{ERROR})|(?<=\.)\s+(?=[A-Z])")


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts. prose: its paragraphs, of which the first is the summary.

    arguments: what is said about each of the names asked for. returns: the sentences about what is returned. raises:
    those about errors, one text for each.
    """

    prose: tuple[str, ...]
    arguments: dict[str, str]
    returns: tuple[str, ...]
    raises: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first paragraph; empty where there is none."""
        return self.prose[0] if self.prose else ""


def parse(text: str | None, names: Collection[str]) -> Docstring:
    """The parts of a docstring.

    text: the docstring; None where there is none. names: of the arguments, or of the fields of a class.
    """
    prose: list[str] = []
    arguments: dict[str, str] = {}
    returns: list[str] = []
    raises: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        paragraph, *errors = _cut(RAISES, paragraph)
        paragraph, *results = _cut(RETURNS, paragraph)
        before, described = _arguments(paragraph, names)
        prose += [before] if before else []
        arguments |= described
        returns += results
        raises += [clause for error in errors for clause in _clauses(error)]
    return Docstring(tuple(prose), arguments, tuple(returns), tuple(raises))


def _cut(pattern: re.Pattern[str], text: str) -> list[str]:
    """A text before the first match, and from each match to the next one."""
    starts = [match.start() for match in pattern.finditer(text)]
    pieces = [text[a:b].strip() for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    return [re.sub(r";$", ".", piece) for piece in pieces]


def _clauses(text: str) -> list[str]:
    """What is said about each error of a sentence."""
    return [clause.rstrip(".") for clause in NEXT_ERROR.split(text.removeprefix("Raises").lstrip())]


def _arguments(paragraph: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """What stands before the first argument of a paragraph, and what each of its arguments means."""
    if not names:
        return paragraph.strip(), {}
    # Longest first: `obs` also begins `observations`.
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    begin = re.compile(rf"(?:(?<=^)|(?<=[.;:] )|(?<=\n))`?((?:{name})`?(?:,\s+`?(?:{name})`?)*):\s+", re.MULTILINE)
    matches = list(begin.finditer(paragraph))
    if not matches:
        return paragraph.strip(), {}
    ends = [*(match.start() for match in matches[1:]), len(paragraph)]
    described: dict[str, str] = {}
    for match, end in zip(matches, ends, strict=True):
        meaning = inspect.cleandoc(paragraph[match.end() : end]).strip().rstrip(";")
        described |= dict.fromkeys(re.split(r",\s+", match[1].replace("`", "")), meaning)
    return paragraph[: matches[0].start()].strip(), described
