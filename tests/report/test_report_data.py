"""Reading a run for its report: numbers against independent ones, and files that are torn, odd or missing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from made_up_runs import BATCH, ppo_run, read, several_runs, trpo_run, write_evaluation

from klimb.errors import ConfigError, RunError
from klimb.improve.rules.ppo import PPO
from klimb.report.data import improvement_pairs, read_run
from klimb.report.page import write_report
from klimb.runs.config import RunConfig, TrainOptions


def test_improvement_is_paired_with_the_next_record(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 60)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (
            now["iteration"],
            now["predicted_improvement"],
            after["realised_improvement"],
            after["realised_improvement_se"],
        )
        for now, after in itertools.pairwise(records)
        if now["status"] == "ACCEPTED"
    ]
    pairs = improvement_pairs(read_run(run_dir))
    got = list(zip(*(pairs[x].tolist() for x in ("iteration", "predicted", "realised", "realised_se")), strict=True))
    assert got == expected
    points = read(write_report(run_dir)).chart("Predicted and realised improvement")["points"]
    assert points["iteration"] == [row[0] for row in expected]
    np.testing.assert_allclose(points["realised"], [row[2] for row in expected], rtol=1e-4)


def test_a_gap_between_records_is_not_paired_over(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join(lines[:5] + lines[7:]) + "\n")
    assert improvement_pairs(read_run(run_dir))["iteration"].tolist() == [1, 2, 3, 4, 8, 9, 10, 11]


def test_evaluation_is_drawn_and_summed_up(tmp_path: Path) -> None:
    run_dir = ppo_run(tmp_path / "run", 10)
    tree = json.loads((run_dir / "evaluation.json").read_text())
    means = [seed["mean"] for seed in tree["seeds"]]
    run = read_run(run_dir)
    assert run.evaluation is not None
    assert run.evaluation.mean == pytest.approx(np.mean(means))
    assert run.evaluation.standard_error == pytest.approx(scipy.stats.sem(means))
    page = read(write_report(run_dir))
    rows = page.chart("Final evaluation")["rows"]
    np.testing.assert_allclose(rows[2]["values"], sorted(tree["seeds"][2]["returns"]), rtol=1e-4)
    assert page.chart("Episode return")["levels"][0]["value"] == pytest.approx(np.mean(means), rel=1e-4)


def test_evaluation_of_a_solved_task_and_of_a_broken_policy(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    write_evaluation(run_dir, [np.full(20, 500.0)])
    page = read(write_report(run_dir))
    assert page.chart("Final evaluation")["counts"] == [20]
    assert "500 ± 0" in page.text
    seed = {"seed": 0, "mean": None, "standard_error": None, "returns": [None, None]}
    broken = {"episodes": 2, "deterministic": False, "seeds": [seed]}
    (run_dir / "evaluation.json").write_text(json.dumps(broken))
    assert "Final evaluation" not in [chart["title"] for chart in read(write_report(run_dir)).data["charts"]]
    (run_dir / "evaluation.json").write_text('{"seeds": 3}')
    with pytest.raises(RunError, match="not an evaluation"):
        write_report(run_dir)


def test_torn_last_line_and_repeated_iterations(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    again = json.dumps({**json.loads(lines[-1]), "entropy": 0.125})
    path.write_text("\n".join([*lines, again, '{"iteration": 13, "env_st']))
    run = read_run(run_dir)
    assert run.iteration.tolist() == list(range(1, 13))
    assert run.columns["entropy"][-1, 0] == 0.125
    write_report(run_dir)


@pytest.mark.parametrize(
    "value",
    [
        *("words", {"a": 1}, [1, 2, 3], [[1], [2]], True, None, [None], float("inf"), -1e30, -1e300),
        pytest.param(10**400, id="beyond float"),
    ],
)
def test_unknown_metrics_do_no_harm(tmp_path: Path, value: Any) -> None:
    page = read(write_report(several_runs(tmp_path / "run", surprise=value)))
    drawn = "Surprise" in [chart["title"] for chart in page.data["charts"]]
    assert drawn == (value is True or value == -1e30)


def test_run_without_an_episode_or_a_second_iteration(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run", episode_return=None)
    assert "No episode has ended" in read(write_report(run_dir)).text
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text(lines[0] + "\n")
    page = read(write_report(run_dir))
    assert page.data["steps"] == [BATCH]
    assert "Predicted and realised improvement" not in [chart["title"] for chart in page.data["charts"]]
    assert "No step was rejected." in page.text


def test_barest_records_are_enough(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    (run_dir / "metrics.jsonl").write_text('{"iteration": 1, "env_steps": 64}\n{"iteration": 2, "env_steps": 128}\n')
    page = read(write_report(run_dir))
    assert [chart["title"] for chart in page.data["charts"]] == ["Episode return"]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config"):
        write_report(tmp_path)
    config = RunConfig("CartPole-v1", PPO(), TrainOptions())
    (tmp_path / "config.toml").write_text(config.to_toml())
    with pytest.raises(RunError, match=r"cannot read .*metrics\.jsonl") as missing:
        write_report(tmp_path)
    assert "\n" not in str(missing.value)
    for text in ("", "\n", '{"iteration": 1', '{"other": 1}\n'):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(RunError, match="holds no iteration yet"):
            write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="holds no iteration yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
