"""The table of faults in docs/reliability.md, written from what the tests have seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

BEGIN, END = "<!-- faults: written by make test-faults -->\n", "<!-- end of faults -->\n"
Row = tuple[str, str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", type=Path, help="the page whose table of faults is written again")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--faults-table"):
        config.pluginmanager.register(Table(config.getoption("--faults-table")), "faults-table")


class Table:
    """What became of every fault, by the module that tries it."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._seen: dict[str, dict[Row, list[bool]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        report = yield
        if report.when == "call" or report.failed:
            title = (item.module.__doc__ or "").strip().rstrip(".")  # type: ignore[attr-defined]
            for mark in item.iter_markers("fault"):
                self._seen.setdefault(title, {}).setdefault(mark.args, []).append(report.passed)
        return report

    def pytest_sessionfinish(self) -> None:
        lines, number, survived = [], 0, 0
        for title, faults in self._seen.items():
            lines += [f"### {title}", "", "| what is done | what happens | tests passed |", "|---|---|---|"]
            for (what, outcome), passed in faults.items():
                number += 1
                survived += all(passed)
                lines.append(f"| {what} | {outcome} | {sum(passed)} of {len(passed)} |")
            lines.append("")
        lines = [f"{survived} of {number} faults had the outcome in these tables.", "", *lines]
        text = self._page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        self._page.write_text(before + BEGIN + "\n" + "\n".join(lines) + END + rest.split(END)[1], encoding="utf-8")
