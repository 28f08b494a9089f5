"""The place of a run among the returns that klimb has recorded: when it is given, and what it is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import BATCH, curve, read, write_evaluation, write_run

from klimb.report.data import read_run
from klimb.report.page import write_report
from klimb.report.recorded import percentile, recorded_results
from klimb.runs.config import RunConfig
from klimb.runs.zoo import ROOT, zoo

FOLDER = "trpo/Hopper-v4"
ENTRY = zoo()[FOLDER]


def run_like(directory: Path, returns: list[float], **options: Any) -> Path:
    """A run with the settings of the recorded ones, except some options, and a mean final return per seed."""
    config = RunConfig.read(ROOT / FOLDER / "config.toml")
    changes = {"num_seeds": len(returns), "seed": 0, **options}
    config = dataclasses.replace(config, options=dataclasses.replace(config.options, **changes))
    n = -(-config.options.env_steps // BATCH)
    run = write_run(directory, config, curve(n, len(returns), np.random.default_rng(0)))
    write_evaluation(run, [np.full(10, value) for value in returns])
    return run


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.5, 0.0),
        (1.0, 12.5),  # equal to one of four
        (1.5, 25.0),
        (2.0, 50.0),  # equal to two of four
        (2.0004, 50.0),  # to three decimals
        (2.0006, 75.0),
        (9.0, 100.0),
    ],
)
def test_percentile_with_ties(value: float, place: float) -> None:
    assert percentile(value, [1.0, 2.0, 2.0, 3.0]) == place


def test_one_seed_has_its_place_in_a_sentence(tmp_path: Path) -> None:
    """Of the ten recorded returns five are below 2,400."""
    assert sum(value < 2400 for value in ENTRY.seeds) == 5
    page = read(write_report(run_like(tmp_path / "run", [2400.0])))
    chart = page.chart("Compared with recorded seeds")
    assert "final return of 2,400 is at the 50th percentile of the 10 recorded seeds." in chart["about"]
    assert "lower return, plus half the share of those with the same one" in chart["about"]
    assert [row["label"] for row in chart["rows"]] == ["recorded", "this run"]
    assert chart["rows"][0]["values"] == pytest.approx(ENTRY.seeds, rel=1e-4)


def test_several_seeds_have_a_place_each(tmp_path: Path) -> None:
    text = read(write_report(run_like(tmp_path / "run", [10_000.0, 0.0, 2400.0]))).text
    assert "seed 0 10,000, 100th percentile" in text
    assert "seed 1 0, 0th percentile" in text
    assert "seed 2 2,400, 50th percentile" in text


def test_what_does_not_change_the_algorithm_may_differ(tmp_path: Path) -> None:
    run = run_like(tmp_path / "run", [2400.0], seed=7, workers=2, checkpoint_every=5)
    found = recorded_results(read_run(run))
    assert found is not None
    assert found.differences == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0.9}, "gamma is 0.9 instead of 0.99"),
        ({"env_steps": 500_000}, "env_steps is 500,000 instead of 1,000,000"),
    ],
)
def test_it_is_said_what_differs(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    page = read(write_report(run_like(tmp_path / "run", [2400.0], **options)))
    assert f"(zoo:{FOLDER}). They are not compared with this run, because it differs: {said}." in page.text
    assert not any(chart["title"] == "Compared with recorded seeds" for chart in page.data["charts"])


def test_a_run_that_is_not_finished_is_not_compared(tmp_path: Path) -> None:
    run = run_like(tmp_path / "run", [2400.0])
    (run / "evaluation.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:100]))
    text = read(write_report(run)).text
    assert "it has made 204,800 of 1,000,000 environment steps; it has no final evaluation." in text


def test_sampled_actions_are_not_compared(tmp_path: Path) -> None:
    run = run_like(tmp_path / "run", [2400.0])
    path = run / "evaluation.json"
    path.write_text(path.read_text().replace('"deterministic": true', '"deterministic": false'))
    assert "because it differs: its final evaluation samples actions." in read(write_report(run)).text


def test_the_policy_of_the_zoo_has_its_own_place(tmp_path: Path) -> None:
    run = run_like(tmp_path / "run", [ENTRY.mean])
    shutil.copy(ROOT / FOLDER / "config.toml", run / "config.toml")
    rank = sorted(ENTRY.seeds).index(ENTRY.mean)
    place = 100 * (rank + 0.5) / len(ENTRY.seeds)
    assert f"at the {place:g}th percentile" in read(write_report(run)).chart("Compared with recorded seeds")["about"]


def test_nothing_is_said_where_nothing_is_recorded(tmp_path: Path) -> None:
    config = RunConfig.read(ROOT / FOLDER / "config.toml")
    config = dataclasses.replace(config, env="gymnasium:Hopper-v5")
    run = write_run(tmp_path / "run", config, curve(5, 1, np.random.default_rng(0)))
    assert recorded_results(read_run(run)) is None
    assert "recorded" not in read(write_report(run)).text.split("Configuration")[0]
