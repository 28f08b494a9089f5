"""docs/reliability.md says what the tests try, no more and no less."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
MINIMUM = 170


def faults_of(path: Path) -> set[str]:
    """What the marks of a module's tests say is done."""
    functions = vars(importlib.import_module(path.stem)).values()
    marks = [mark for one in functions for mark in getattr(one, "pytestmark", [])]
    return {mark.args[0] for mark in (*marks, *marks_of_cases(marks)) if mark.name == "fault"}


def marks_of_cases(marks: list[pytest.Mark]) -> Iterator[Any]:
    """The marks of single cases of parametrized tests."""
    for mark in marks:
        for case in mark.args[1] if mark.name == "parametrize" else ():
            yield from getattr(case, "marks", ())


def test_the_table_is_that_of_the_tests():
    tried = set().union(*(faults_of(path) for path in HERE.glob("test_*.py") if path.stem != Path(__file__).stem))
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if re.search(r"\| \d+ of \d+ \|$", line)]
    told = {row[0].removeprefix("| ") for row in rows}
    assert told == tried, "make test-faults writes the table again"
    assert len(told) >= MINIMUM
    for row in rows:
        passed, count = row[-1].removesuffix(" |").split(" of ")
        assert passed == count, row
