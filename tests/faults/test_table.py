"""docs/reliability.md says what the tests try, no more and no less."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
MINIMUM = 40


def faults_of(path: Path) -> set[str]:
    """What the marks of a module say is done."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == "fault"]
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}


def test_the_table_is_that_of_the_tests():
    tried = set().union(*(faults_of(path) for path in HERE.glob("test_*.py")))
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if re.search(r"\| \d+ of \d+ \|$", line)]
    told = {row[0].removeprefix("| ") for row in rows}
    assert told == tried, "make test-faults writes the table again"
    assert len(told) >= MINIMUM
    for row in rows:
        passed, count = row[-1].removesuffix(" |").split(" of ")
        assert passed == count, row
