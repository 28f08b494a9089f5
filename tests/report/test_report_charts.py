"""The report's charts: what each line, band, level and mark shows, and how few points are enough for that."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_up_runs import BATCH, curve, layers, ppo_run, read, trpo_run, write_run

from klimb.improve.rules.reinforce import Reinforce
from klimb.improve.rules.trpo import TRPO
from klimb.report.certificate_charts import MAX_DOTS, tv_bound
from klimb.report.data import read_run
from klimb.report.page import write_report
from klimb.report.rejected import FIRST, MORE
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.ending import Ending, write_ending
from klimb.types import Status


def test_lines_over_seeds_are_interquartile_means(tmp_path: Path) -> None:
    run_dir = ppo_run(tmp_path / "run", 40)
    rows = [json.loads(line)["episode_return"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    present = [[x for x in row if x is not None] for row in rows]
    chart = read(write_report(run_dir)).chart("Episode return")
    outer, inner = layers(chart, "band")
    *each, line = layers(chart, "line")
    means = [scipy.stats.trim_mean(np.repeat(x, 4), 0.25) for x in present]
    np.testing.assert_allclose(line["values"], means, rtol=6e-5)
    np.testing.assert_allclose(inner["low"], [np.quantile(x, 0.25) for x in present], rtol=6e-5)
    np.testing.assert_allclose(inner["high"], [np.quantile(x, 0.75) for x in present], rtol=6e-5)
    np.testing.assert_allclose(outer["low"], [min(x) for x in present], rtol=6e-5)
    np.testing.assert_allclose(outer["high"], [max(x) for x in present], rtol=6e-5)
    assert [layer["name"] for layer in each] == [f"seed {seed}" for seed in range(3, 8)]
    for seed, layer in enumerate(each):
        assert [x is None for x in layer["values"]] == [row[seed] is None for row in rows]


def test_kl_follows_the_direction_that_is_constrained(tmp_path: Path) -> None:
    metrics = curve(20, 1, np.random.default_rng(3))
    for direction, name in (("old_new", "KL(old‖new)"), ("new_old", "KL(new‖old)")):
        config = RunConfig("CartPole-v1", TRPO(kl_direction=direction), TrainOptions())  # type: ignore[arg-type]
        chart = read(write_report(write_run(tmp_path / direction, config, metrics))).chart("KL divergence")
        main = next(layer for layer in layers(chart, "line") if layer["color"] == 1)
        assert main["label"] == name
        np.testing.assert_allclose(main["values"], metrics[f"kl_{direction}"][:, 0], rtol=1e-4)
        assert chart["levels"] == [{"value": 0.01, "label": "limit, enforced: 0.01"}]


def test_kl_has_a_target_or_no_level(tmp_path: Path) -> None:
    chart = read(write_report(ppo_run(tmp_path / "target", 10, 2))).chart("KL divergence")
    assert chart["levels"] == [{"value": 0.015, "label": "target: 0.015"}]
    run = write_run(
        tmp_path / "none", RunConfig("CartPole-v1", Reinforce(), TrainOptions()), curve(10, 1, np.random.default_rng(0))
    )
    assert read(write_report(run)).chart("KL divergence")["levels"] == []


def test_total_variation_lies_under_its_bound(tmp_path: Path) -> None:
    run = read_run(trpo_run(tmp_path / "run", 50))
    kl = np.fmin(run.columns["kl_old_new"], run.columns["kl_new_old"])
    bound = np.where(run.rejected, np.nan, np.minimum(np.sqrt(kl / 2), np.sqrt(1 - np.exp(-kl))))
    np.testing.assert_allclose(tv_bound(run, "kl_old_new", "kl_new_old"), bound, rtol=1e-4)


@pytest.mark.slow
def test_long_run_is_small_quick_and_keeps_every_rejected_step(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 20_000)
    start = time.process_time()
    path = write_report(run_dir)
    assert time.process_time() - start < 5
    assert path.stat().st_size < 1_000_000
    page = read(path)
    assert len(page.data["steps"]) == 600
    run = read_run(run_dir)
    for mark in layers(page.chart("KL divergence"), "marks"):
        iterations = run.iteration[(run.status == mark["status"])[:, 0]]
        first, last = np.array(page.data["first"]), np.array(page.data["last"])
        expected = {i: int(((iterations >= first[i]) & (iterations <= last[i])).sum()) for i in range(600)}
        assert dict(mark["points"]) == {i: count for i, count in expected.items() if count}
        assert sum(count for _, count in mark["points"]) == len(iterations) > 300
    entropy = layers(page.chart("Entropy"), "line")[0]["values"]
    chunk = run.columns["entropy"][page.data["first"][7] - 1 : page.data["last"][7], 0]
    assert entropy[7] == pytest.approx(chunk.mean(), rel=1e-4)
    assert len(page.chart("Predicted and realised improvement")["points"]["predicted"]) == MAX_DOTS
    assert f"the next {MORE} of" in page.text
    # Besides the rejections there is a row per setting, and hardly another.
    settings = len(dataclasses.fields(TrainOptions)) + len(dataclasses.fields(TRPO))
    assert sum(tag == "tr" for tag, _ in page.elements) < 2 * (FIRST + MORE) + settings + 10


@pytest.mark.slow
def test_many_seeds_and_many_rejections_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    n, seeds = 700, 30
    metrics = {**curve(n, seeds, rng), **{f"extra_{i}": rng.standard_normal((n, seeds)) for i in range(30)}}
    status = rng.choice([s.name for s in Status], (n, seeds)).astype(object)
    config = RunConfig("CartPole-v1", TRPO(), TrainOptions(num_seeds=seeds))
    path = write_report(write_run(tmp_path / "run", config, metrics, status, [rng.standard_normal(200)] * seeds))
    assert path.stat().st_size < 1_000_000
    marks = layers(read(path).chart("KL divergence"), "marks")
    assert (
        sum(count for mark in marks for _, count in mark["points"])
        == np.isin(status, [s.name for s in Status if s.rejected]).sum()
    )


def evaluated_run(directory: Path, seeds: int) -> Path:
    """Forty iterations, every fourth evaluated, with the first evaluation of one seed failed."""
    rng = np.random.default_rng(0)
    options = TrainOptions(num_seeds=seeds, eval_every=4 * BATCH, eval_episodes=7, until_return=450.0)
    metrics = curve(40, seeds, rng)
    for name in ("eval_return", "eval_sampled_return"):
        metrics[name] = np.where(np.arange(40)[:, None] % 4 == 3, metrics["episode_return"] + 5, np.nan)
        metrics[f"{name}_se"] = np.where(np.isfinite(metrics[name]), rng.uniform(1, 9, (40, seeds)), np.nan)
        metrics[f"{name}_max"] = metrics[name] + 40
    return write_run(directory, RunConfig("CartPole-v1", TRPO(), options), metrics)


@pytest.mark.parametrize("seeds", [1, 3])
def test_evaluations_during_the_training_have_a_chart(tmp_path: Path, seeds: int) -> None:
    run_dir = evaluated_run(tmp_path / "run", seeds)
    page = read(write_report(run_dir))
    chart = page.chart("Evaluations during the training")
    run = read_run(run_dir)
    assert "7 whole episodes" in chart["about"]
    assert chart["levels"] == [{"value": 450, "label": "until_return"}]
    assert chart["connect"]
    lines = {line["label"]: line for line in layers(chart, "line")}
    assert list(lines) == ["sampled actions", "deterministic actions"]
    for name, label in (("eval_sampled_return", "sampled actions"), ("eval_return", "deterministic actions")):
        values = run.columns[name]
        assert [x is None for x in lines[label]["values"]] == [i % 4 != 3 for i in range(40)]
        if seeds == 1:
            band = next(band for band in layers(chart, "band") if band["color"] == lines[label]["color"])
            error = run.columns[f"{name}_se"]
            present = np.isfinite(values[:, 0])
            high = [x for x in band["high"] if x is not None]
            np.testing.assert_allclose(high, (values + error)[present, 0], rtol=6e-5)
            np.testing.assert_allclose(
                [x for x in lines[label]["values"] if x is not None], values[present, 0], rtol=6e-5
            )
    titles = [chart["title"] for chart in page.data["charts"]]
    assert not [title for title in titles if "lowest" in title or title.startswith("Evaluation return")]
    best = np.nanmax(np.mean(run.columns["eval_return"], axis=1))
    shown = re.search(r"Best evaluation ([\d.]+)", page.text)
    assert float(shown[1]) == pytest.approx(best, rel=2e-3)


def test_a_page_says_what_ended_the_training_early(tmp_path: Path) -> None:
    run_dir = evaluated_run(tmp_path / "run", 1)
    assert "ended early" not in read(write_report(run_dir)).text
    write_ending(run_dir, Ending("complete", 40, 40 * BATCH, "all environment steps were made"))
    assert "ended early" not in read(write_report(run_dir)).text
    write_ending(run_dir, Ending("callback", 40, 40 * BATCH, "a <callback> stopped the training"))
    expected = "The training ended early, after iteration 40: a <callback> stopped the training."
    assert expected in read(write_report(run_dir)).text
