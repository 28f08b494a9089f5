"""The benchmarks run by hand, so what they import from klimb is looked up here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import backward_passes

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.relative_to(BENCHMARKS).as_posix()
)
def test_what_benchmarks_import_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "klimb":
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [], node.module


@pytest.mark.slow
def test_four_ways_to_a_gradient_are_one_gradient_and_only_one_of_them_holds_all_rows():
    few, many = (backward_passes.measure(rows, turns=1) for rows in (16, 64))
    for result in (few, many):
        assert max(result["largest_difference"].values()) < 1e-5
        assert result["intermediate_bytes"]["all rows, vmap"] >= 4 * result["rows"] * result["parameters"]
        assert result["intermediate_bytes"][backward_passes.ONE_PASS] < 4 * result["rows"] * result["parameters"] / 4
    held = [result["intermediate_bytes"]["row by row, compiled"] for result in (few, many)]
    assert held[0] == held[1]
