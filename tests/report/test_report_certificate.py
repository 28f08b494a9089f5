"""The certificate's charts: the calibration of promises, the lower bound, and records that lack some of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import CERTIFICATE, Page, curve, layers, ppo_run, read, several_runs, trpo_run, write_run

from klimb.improve.rules.trpo import TRPO
from klimb.report.calibration import calibrate, share_within
from klimb.report.data import aligned_to_step, improvement_pairs, read_run
from klimb.report.page import write_report
from klimb.report.text import with_error
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.metrics import METRICS

NEW_CHARTS = {"Sampled lower bound and realised improvement", "Step excess"}


def titles(page: Page) -> list[str]:
    return [chart["title"] for chart in page.data["charts"]]


def line(chart: dict, label: str) -> dict:
    return next(layer for layer in layers(chart, "line") if layer["label"] == label)


def rewrite(run_dir: Path, change: Callable[[dict], dict]) -> Path:
    path = run_dir / "metrics.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(record)) + "\n" for record in records))
    return run_dir


@pytest.mark.parametrize("weighted", [True, False])
def test_calibration_equals_polyfit(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x, x_se, y_se = rng.normal(size=40), rng.uniform(0.1, 1, 40), rng.uniform(0.1, 2, 40)
    y = 0.3 + 0.8 * x + np.hypot(x_se, y_se) * rng.normal(size=40)
    weights = 1 / np.hypot(x_se, y_se) if weighted else np.ones(40)
    if not weighted:
        y_se = np.full(40, np.nan)
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=weights, cov=True)
    got = calibrate(x, x_se, y, y_se)
    assert got is not None
    np.testing.assert_allclose([got.slope, got.intercept], [slope, intercept], rtol=1e-9)
    np.testing.assert_allclose(got.slope_se, np.sqrt(covariance[0, 0]), rtol=1e-9)


def test_calibration_of_kept_promises_and_of_none() -> None:
    x, se = np.array([1e-4, 2e-3, 0.5]), np.array([1e-3, 2e-3, 0.01])
    kept = calibrate(x, se, x, se)
    assert kept is not None
    np.testing.assert_allclose([kept.slope, kept.intercept, kept.slope_se], [1, 0, 0], atol=1e-12)
    assert calibrate(x[:2], se[:2], x[:2], se[:2]) is None
    same = np.full(3, 0.1)
    assert calibrate(same, se, x, se) is None
    assert calibrate(np.zeros(3), se, x, se) is None
    assert calibrate(np.array([1e300, -1e300, 1]), se, x, se) is None


def test_a_pair_without_errors_weighs_like_a_typical_one() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 5))
    se = np.array([0.1, 0.2, 0.3, 0.0, np.nan])
    weights = np.array([1 / 0.1, 1 / 0.2, 1 / 0.3, 1 / 0.2, 1 / 0.2])
    got = calibrate(x, se, y, se)
    assert got is not None
    np.testing.assert_allclose([got.slope, got.intercept], np.polyfit(x, y, 1, w=weights), rtol=1e-9)


def test_share_within_two_errors_counts_pairs_that_have_errors() -> None:
    predicted, realised = np.zeros(5), np.array([0.0, 9.9, -9.9, 10.1, 0.0])
    se = np.array([3.0, 3.0, 3.0, 3.0, np.nan]), np.array([4.0, 4.0, 4.0, 4.0, 4.0])
    assert share_within(predicted, se[0], realised, se[1]) == 0.75
    assert share_within(predicted, np.full(5, np.nan), realised, se[1]) is None


def test_calibration_line_and_its_numbers_are_on_the_page(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 200)
    pairs = improvement_pairs(read_run(run_dir))
    weights = 1 / np.hypot(pairs["predicted_se"], pairs["realised_se"])
    (slope, intercept), covariance = np.polyfit(pairs["predicted"], pairs["realised"], 1, w=weights, cov=True)
    page = read(write_report(run_dir))
    fit = page.chart("Predicted and realised improvement")["fit"]
    np.testing.assert_allclose([fit["slope"], fit["intercept"]], [slope, intercept], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fit["span"], [pairs["predicted"].min(), pairs["predicted"].max()], rtol=1e-4)
    assert f"slope {with_error(slope, covariance[0, 0] ** 0.5)} realised per unit predicted" in page.text
    assert "within 2 standard errors" in page.text


def test_realised_improvement_stands_at_the_step_that_caused_it(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 40)
    path = run_dir / "metrics.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    del records[20]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    following = {record["iteration"] - 1: record["realised_improvement"] for record in records}
    expected = [following.get(record["iteration"]) if record["status"] == "ACCEPTED" else None for record in records]
    moved = aligned_to_step(read_run(run_dir), "realised_improvement")[:, 0]
    assert [value if np.isfinite(value) else None for value in moved.tolist()] == expected
    assert expected[19] is expected[-1] is None
    chart = read(write_report(run_dir)).chart("Sampled lower bound and realised improvement")
    drawn = line(chart, "realised")["values"]
    assert [value is None for value in drawn] == [value is None for value in expected]
    known = [value for value in expected if value is not None]
    np.testing.assert_allclose([value for value in drawn if value is not None], known, rtol=1e-4)


def test_bound_and_excess_are_of_accepted_steps(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 60)
    run = read_run(run_dir)
    page = read(write_report(run_dir))
    chart = page.chart("Sampled lower bound and realised improvement")
    assert [layer["label"] for layer in layers(chart, "line")] == ["realised", "predicted", "sampled lower bound"]
    assert chart["log"] == "always"
    predicted = np.abs(run.columns["predicted_improvement"])
    assert predicted.min() < chart["symlog"] < 10 * predicted.max()
    for name, drawn in (
        ("sampled_improvement_bound", line(chart, "sampled lower bound")),
        ("step_excess", line(page.chart("Step excess"), "step excess")),
    ):
        assert [value is None for value in drawn["values"]] == run.rejected[:, 0].tolist()
        kept = np.array([value for value in drawn["values"] if value is not None])
        np.testing.assert_allclose(kept, run.columns[name][run.accepted], rtol=1e-4)
    assert page.chart("Step excess")["levels"] == [{"value": 1, "label": "bound 0"}]
    assert f"bound not negative 0 of {run.accepted.sum()} steps" in page.text


def test_without_a_finite_bound_its_charts_are_left_out(tmp_path: Path) -> None:
    metrics = curve(12, 1, np.random.default_rng(4))
    metrics["sampled_improvement_bound"][:] = -np.inf
    metrics["step_excess"][:] = np.inf
    config = RunConfig("CartPole-v1", TRPO(), TrainOptions())
    shown = titles(read(write_report(write_run(tmp_path / "run", config, metrics))))
    assert not NEW_CHARTS & set(shown)
    assert "Predicted and realised improvement" in shown


def test_bounds_and_worst_states_as_recorded(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 50)
    run = read_run(run_dir)
    page = read(write_report(run_dir))
    variation, kl = page.chart("Total variation"), page.chart("KL divergence")
    for chart, label, name, hidden in (
        (variation, "bound, mean", "tv_bound", False),
        (variation, "bound, worst state", "tv_max_bound", False),
        (variation, "bound on the change of the state distribution", "state_mismatch_bound", True),
        (kl, "worst state, old‖new", "kl_old_new_max", True),
        (kl, "worst state, new‖old", "kl_new_old_max", True),
    ):
        drawn = [value for value in line(chart, label)["values"] if value is not None]
        np.testing.assert_allclose(drawn, run.columns[name][run.accepted], rtol=1e-4)
        assert line(chart, label).get("hidden", False) == hidden
    assert "standard error of the mean 5%" in page.text


def test_runs_of_older_versions(tmp_path: Path) -> None:
    old = rewrite(
        trpo_run(tmp_path / "run", 50),
        lambda record: {name: value for name, value in record.items() if name not in CERTIFICATE},
    )
    page = read(write_report(old))
    assert not NEW_CHARTS & set(titles(page))
    assert line(page.chart("KL divergence"), "worst state")["hidden"]
    assert line(page.chart("Total variation"), "bound, worst state")["dash"]
    assert "fit" in page.chart("Predicted and realised improvement")
    assert "standard error of the mean" not in page.text
    rest = ("surrogate_gain", "kl_old_new", "kl_new_old", "tv", "ess")
    none = ("realised_improvement", "predicted_improvement", "kl_max", "tv_max")
    bare = rewrite(
        several_runs(tmp_path / "bare"),
        lambda record: {
            name: value
            for name, value in record.items()
            if name in rest or not (name in CERTIFICATE or name.startswith(none))
        },
    )
    shown = titles(read(write_report(bare)))
    assert {"KL divergence", "Total variation", "Effective sample size"} <= set(shown)
    assert not {"Predicted and realised improvement", *NEW_CHARTS} & set(shown)


def test_a_record_without_a_bound_takes_the_one_its_kl_implies(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    before = read(write_report(run_dir)).chart("Total variation")
    rewrite(run_dir, lambda record: {**record, "tv_bound": record["tv_bound"] if record["iteration"] > 6 else None})
    after = read(write_report(run_dir)).chart("Total variation")
    np.testing.assert_allclose(line(after, "bound, mean")["values"], line(before, "bound, mean")["values"], rtol=1e-3)


def test_no_metric_is_drawn_twice(tmp_path: Path) -> None:
    for run_dir in (trpo_run(tmp_path / "trpo", 30), ppo_run(tmp_path / "ppo", 30)):
        path = write_report(run_dir)
        page = read(path)
        shown = titles(page)
        assert len(shown) == len(set(shown))
        for name in set(CERTIFICATE) - {"step_excess"}:
            assert METRICS[name].title not in shown
        assert path.stat().st_size < 1_000_000
