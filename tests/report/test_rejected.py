"""Rejected steps in the report: the reasons, the numbers that decided, and long lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import read, several_runs, trpo_run

from klimb.report.data import RunData, read_run
from klimb.report.page import write_report
from klimb.report.rejected import FIRST, MAX_FOLDED, MEANINGS, MORE, deciding_numbers, rejected_html
from klimb.types import Status


def changed(run: Path, *records: dict[str, Any], **config: str) -> RunData:
    """A run whose records from the third on are changed, one after the other, and whose settings are too."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, record in zip(lines[2:], records, strict=False):
        line.update(record)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = (run / "config.toml").read_text()
    for name, value in config.items():
        before = next(line for line in text.splitlines() if line.startswith(f"{name} ="))
        text = text.replace(before, f"{name} = {value}")
    (run / "config.toml").write_text(text)
    return read_run(run)


def decided(run: RunData) -> str:
    """Of the third record."""
    return deciding_numbers(run, str(run.status[2, 0]), 2, 0)


TRIED = {"tried_kl": 0.0123, "tried_gain": -0.004, "backtracks": 10}


def test_the_kl_stands_against_its_limit(tmp_path: Path) -> None:
    run = trpo_run(tmp_path / "run", 12)
    assert decided(changed(run, {**TRIED, "status": "KL_TOO_LARGE"})) == (
        "KL 0.0123 nats, limit 0.01 nats, after 11 tries"
    )
    # With a schedule the limit is that of the iteration.
    assert "limit 0.004 nats" in decided(changed(run, {"max_kl": 0.004}))


def test_the_gain_stands_against_what_was_needed(tmp_path: Path) -> None:
    run = trpo_run(tmp_path / "run", 12)
    assert decided(changed(run, {**TRIED, "status": "NO_IMPROVEMENT", "backtracks": 0})) == (
        "surrogate gain −0.004, needed: more than 0, at the first try"
    )
    assert "more than 0 and 10% of the predicted gain" in decided(changed(run, min_gain_share="0.1"))


def test_records_of_older_versions_have_no_numbers_of_the_try(tmp_path: Path) -> None:
    run = trpo_run(tmp_path / "run", 12)
    kl = changed(run, {"status": "KL_TOO_LARGE", "tried_kl": None, "backtracks": 10})
    assert decided(kl) == "limit 0.01 nats, after 11 tries"
    assert decided(changed(several_runs(tmp_path / "other"), {"status": "NO_IMPROVEMENT"})) == "not recorded"


def test_what_was_not_finite_is_named(tmp_path: Path) -> None:
    run = changed(
        trpo_run(tmp_path / "run", 12),
        {"status": "NONFINITE", "surrogate_gain": None, "value_loss": None, "episode_return": None},
    )
    assert decided(run) == "not finite: Surrogate gain, Value loss"


def test_conjugate_gradient_says_how_far_it_came(tmp_path: Path) -> None:
    run = changed(trpo_run(tmp_path / "run", 12), {"status": "CG_BREAKDOWN", "cg_iterations": 3, "cg_residual": 0.25})
    assert decided(run) == "after 3 steps of conjugate gradient, residual 0.25, damping 0.05"


def test_every_reason_is_explained() -> None:
    assert set(MEANINGS) == {status.name for status in Status if status.rejected}


@pytest.mark.parametrize("name", MEANINGS)
def test_meaning_cause_and_remedy_are_on_the_page(tmp_path: Path, name: str) -> None:
    run = trpo_run(tmp_path / "run", 12)
    changed(run, {"status": name})
    text = read(write_report(run)).text
    assert MEANINGS[name] in text
    remedy = Status[name].message.partition(": ")[2]
    assert f"Cause and remedy: {remedy}." in text


def test_a_long_list_is_folded_and_cut(tmp_path: Path) -> None:
    count = 3 * MORE
    run = changed(trpo_run(tmp_path / "run", count + 10), *[{"status": "KL_TOO_LARGE"}] * count)
    html = rejected_html(run)
    shown, folded = html.split("<details", 1)
    assert shown.count("<td>3</td>") == 1
    assert shown.count("<tr><td>") == FIRST
    assert folded.split("</details>")[0].count("<tr><td>") == MORE
    assert f"<summary>the next {MORE} of {int((run.status == 'KL_TOO_LARGE').sum()) - FIRST:,}</summary>" in html


def test_many_reasons_have_few_rows_each(tmp_path: Path) -> None:
    """As in a damaged file: the page stays small."""
    records = [{"status": f"REASON_{k % 30}"} for k in range(3000)]
    html = rejected_html(changed(trpo_run(tmp_path / "run", 3010), *records))
    reasons = html.count("<li ")
    assert reasons > 20
    assert html.count("<tr><td>") <= MAX_FOLDED + FIRST * reasons
    assert html.split("<li ")[-1].count("<tr><td>") == FIRST
