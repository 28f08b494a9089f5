"""The report: its numbers against independent ones, hostile text, size, and how a browser takes it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from klimb.errors import ConfigError, RunError
from klimb.improve.ppo import PPO
from klimb.improve.reinforce import Reinforce
from klimb.improve.trpo import TRPO
from klimb.runs import report
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.report import embed, improvement_pairs, interquartile_mean, read_run, write_report
from klimb.types import Status

BATCH = 2048
CHROMIUM = shutil.which("chromium")


def curve(n: int, seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Metrics `[n, seeds]` that look like those of a run."""
    t = np.linspace(0, 1, n)[:, None] * np.ones((1, seeds))
    pace = 6 + 4 * rng.random((1, seeds))
    kl = 0.0097 * (1 - 0.2 * rng.random((n, seeds)) ** 4)
    predicted = 0.02 * np.exp(-2 * t) * (1 + 0.3 * rng.standard_normal((n, seeds)))
    realised = np.vstack([np.full((1, seeds), np.nan), 0.7 * predicted[:-1]]) + 0.01 * rng.standard_normal((n, seeds))
    return {
        "episode_return": 20 + 480 / (1 + np.exp(-pace * (t - 0.35))) + 12 * rng.standard_normal((n, seeds)),
        "episode_length": 20 + 480 / (1 + np.exp(-pace * (t - 0.35))),
        "episodes": rng.integers(4, 90, (n, seeds)),
        "surrogate_gain": 0.06 * np.exp(-2 * t) * (1 + 0.3 * rng.standard_normal((n, seeds))),
        "kl_old_new": kl,
        "kl_new_old": kl * (1 + 0.05 * rng.standard_normal((n, seeds))),
        "kl_max": kl * (6 + 4 * rng.random((n, seeds))),
        "tv": 0.85 * np.sqrt(kl / 2),
        "tv_max": 0.9 * np.sqrt(kl * 3),
        "entropy": 0.69 * np.exp(-1.2 * t) + 0.01 * rng.standard_normal((n, seeds)),
        "ess": 1 - 2 * kl * (1 + 0.2 * rng.random((n, seeds))),
        "predicted_improvement": predicted,
        "predicted_improvement_se": 0.002 * (1 + rng.random((n, seeds))),
        "realised_improvement": realised,
        "realised_improvement_se": 0.008 * (1 + rng.random((n, seeds))),
        "explained_variance": 1 - np.exp(-9 * t) * (0.4 + 4 * rng.random((n, seeds)) ** 3),
        "value_loss": 0.9 * np.exp(-4 * t) * np.exp(0.2 * rng.standard_normal((n, seeds))) + 0.004,
    }


def trpo_metrics(n: int, seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "backtracks": rng.poisson(0.4, (n, seeds)),
        "cg_iterations": np.full((n, seeds), 10),
        "cg_residual": 10 ** rng.normal(-3, 0.6, (n, seeds)),
        "step_size": 0.3 + 0.1 * rng.random((n, seeds)),
    }


def ppo_metrics(n: int, seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "clip_fraction": 0.1 + 0.05 * rng.random((n, seeds)),
        "epochs_done": rng.integers(3, 11, (n, seeds)),
        "grad_norm": np.exp(rng.normal(0, 0.5, (n, seeds))),
    }


def write_run(
    directory: Path,
    config: RunConfig,
    metrics: dict[str, np.ndarray],
    status: np.ndarray | None = None,
    evaluation: list[np.ndarray] | None = None,
) -> Path:
    """A run directory as `klimb.train` leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    n, seeds = metrics["kl_old_new"].shape
    if status is None:
        status = np.full((n, seeds), "ACCEPTED", dtype=object)
    lines = []
    for i in range(n):
        record: dict[str, Any] = {
            "iteration": i + 1,
            "env_steps": (i + 1) * BATCH,
            "wall_time": round(3.1 + 0.04 * i, 4),
            "steps_per_second": round(48_000 * (0.2 if i < 2 else 1) * (1 + 0.05 * np.sin(i)), 1),
        }
        for name, values in {**metrics, "status": status}.items():
            cells = [cell if isinstance(cell, str) else number(cell) for cell in values[i].tolist()]
            record[name] = cells[0] if seeds == 1 else cells
        lines.append(json.dumps(record))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if evaluation is not None:
        write_evaluation(directory, evaluation)
    return directory


def number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def write_evaluation(directory: Path, returns: list[np.ndarray]) -> None:
    seeds = [
        {
            "seed": seed,
            "mean": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / np.sqrt(len(values))),
            "returns": values.tolist(),
        }
        for seed, values in enumerate(returns)
    ]
    tree = {"episodes": len(returns[0]), "deterministic": True, "seeds": seeds}
    (directory / "evaluation.json").write_text(json.dumps(tree), encoding="utf-8")


def trpo_run(directory: Path, n: int = 244, *, env: str = "CartPole-v1", evaluate: bool = True) -> Path:
    """One seed, some rejected steps of two kinds, some iterations without an episode."""
    rng = np.random.default_rng(0)
    metrics = {**curve(n, 1, rng), **trpo_metrics(n, 1, rng)}
    metrics["episode_return"][rng.random((n, 1)) < 0.1] = np.nan
    status = np.full((n, 1), "ACCEPTED", dtype=object)
    status[rng.choice(n, n // 30, replace=False)] = "KL_TOO_LARGE"
    status[rng.choice(n, n // 60, replace=False)] = "NO_IMPROVEMENT"
    for name in ("kl_old_new", "kl_new_old", "kl_max", "tv", "tv_max", "surrogate_gain", "predicted_improvement"):
        metrics[name][status != "ACCEPTED"] = 0
    config = RunConfig(env, TRPO(damping=0.05), TrainOptions(env_steps=n * BATCH))
    returns = [np.minimum(500, rng.normal(490, 18, 100)).round()] if evaluate else None
    return write_run(directory, config, metrics, status, returns)


def ppo_run(directory: Path, n: int = 120, seeds: int = 5) -> Path:
    """Several seeds, a target for the KL, nothing rejected."""
    rng = np.random.default_rng(1)
    metrics = {**curve(n, seeds, rng), **ppo_metrics(n, seeds, rng)}
    metrics["kl_old_new"] = 0.012 * np.exp(rng.normal(0, 0.3, (n, seeds)))
    metrics["episode_return"][rng.random((n, seeds)) < 0.1] = np.nan
    options = TrainOptions(env_steps=n * BATCH, num_seeds=seeds, seed=3, hidden=(128, 128))
    config = RunConfig("Hopper-v5", PPO(target_kl=0.015, max_grad_norm=None), options)
    returns = [rng.normal(480 + 5 * i, 15, 40) for i in range(seeds)]
    return write_run(directory, config, metrics, None, returns)


def several_runs(directory: Path, **changes: Any) -> Path:
    """A short PPO run of one seed whose records are changed by hand."""
    run = write_run(directory, RunConfig("CartPole-v1", PPO(), TrainOptions()), curve(12, 1, np.random.default_rng(2)))
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**record, **changes}) + "\n" for record in records))
    return run


class Page(HTMLParser):
    """What a browser would make of the text: elements with their attributes, and the data block."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script application/json":
            self.data = json.loads(data)
        elif not self.inside.startswith(("script", "style")):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def chart(self, title: str) -> dict[str, Any]:
        return next(chart for chart in self.data["charts"] if chart["title"] == title)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def layers(chart: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [layer for layer in chart["layers"] if layer["type"] == kind]


def test_report_is_written_beside_the_run_or_where_asked(tmp_path: Path) -> None:
    run = trpo_run(tmp_path / "run", 30)
    assert write_report(run) == run / "report.html"
    elsewhere = write_report(run, tmp_path / "other.html")
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(RunError, match="cannot write"):
        write_report(run, tmp_path / "missing" / "report.html")


def test_page_says_what_the_run_was(tmp_path: Path) -> None:
    page = read(write_report(trpo_run(tmp_path / "run", 120)))
    assert "TRPO on CartPole-v1" in page.text
    for word in ("Final evaluation", "Best mean return", "Wall time", "Steps per second", "Rejected steps"):
        assert word in page.text
    assert "klimb train trpo CartPole-v1 --env-steps 245760 --damping 0.05" in page.text
    titles = [chart["title"] for chart in page.data["charts"]]
    assert titles[:6] == [
        *("Episode return", "Final evaluation", "KL divergence", "Promised and kept"),
        *("Total variation", "Effective sample size"),
    ]
    assert {"Entropy", "Explained variance", "Value loss", "Speed", "Backtracks", "Step size"} <= set(titles)


def test_nothing_is_fetched_and_no_other_script_may_run(tmp_path: Path) -> None:
    text = write_report(trpo_run(tmp_path / "run", 30)).read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:").startswith("data:")
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "innerHTML" not in text
    assert "@import" not in text


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
    points = read(write_report(run_dir)).chart("Promised and kept")["points"]
    assert points["iteration"] == [row[0] for row in expected]
    np.testing.assert_allclose(points["realised"], [row[2] for row in expected], rtol=1e-4)


def test_a_gap_between_records_is_not_paired_over(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join(lines[:5] + lines[7:]) + "\n")
    assert improvement_pairs(read_run(run_dir))["iteration"].tolist() == [1, 2, 3, 4, 8, 9, 10, 11]


def test_lines_over_seeds_are_interquartile_means(tmp_path: Path) -> None:
    run_dir = ppo_run(tmp_path / "run", 40)
    rows = [json.loads(line)["episode_return"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    present = [[x for x in row if x is not None] for row in rows]
    chart = read(write_report(run_dir)).chart("Episode return")
    outer, inner = layers(chart, "band")
    *each, line = layers(chart, "line")
    np.testing.assert_allclose(line["values"], [scipy.stats.trim_mean(x, 0.25) for x in present], rtol=6e-5)
    np.testing.assert_allclose(inner["low"], [np.quantile(x, 0.25) for x in present], rtol=6e-5)
    np.testing.assert_allclose(inner["high"], [np.quantile(x, 0.75) for x in present], rtol=6e-5)
    np.testing.assert_allclose(outer["low"], [min(x) for x in present], rtol=6e-5)
    np.testing.assert_allclose(outer["high"], [max(x) for x in present], rtol=6e-5)
    assert [layer["name"] for layer in each] == [f"seed {seed}" for seed in range(3, 8)]
    for seed, layer in enumerate(each):
        assert [x is None for x in layer["values"]] == [row[seed] is None for row in rows]


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 7, 8, 13])
def test_interquartile_mean_equals_scipy(seeds: int) -> None:
    values = np.random.default_rng(seeds).standard_normal((9, seeds))
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=1))
    assert np.isnan(interquartile_mean(np.full((2, seeds), np.nan))).all()


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
    np.testing.assert_allclose(report.tv_bound(run, "kl_old_new", "kl_new_old"), bound, rtol=1e-4)


def test_long_run_is_small_quick_and_keeps_every_rejected_step(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / "run", 20_000)
    start = time.perf_counter()
    path = write_report(run_dir)
    assert time.perf_counter() - start < 5
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
    assert len(page.chart("Promised and kept")["points"]["predicted"]) == report.MAX_DOTS
    assert "The first 200 of" in page.text
    assert sum(tag == "tr" for tag, _ in page.elements) < 200 + 60


def test_many_seeds_and_many_rejections_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    n, seeds = 700, 30
    metrics = {**curve(n, seeds, rng), **{f"extra_{i}": rng.standard_normal((n, seeds)) for i in range(30)}}
    status = rng.choice([s.name for s in Status], (n, seeds)).astype(object)
    config = RunConfig("CartPole-v1", TRPO(), TrainOptions(num_seeds=seeds))
    path = write_report(write_run(tmp_path / "run", config, metrics, status, [rng.standard_normal(200)] * seeds))
    assert path.stat().st_size < 1_000_000
    marks = layers(read(path).chart("KL divergence"), "marks")
    assert sum(count for mark in marks for _, count in mark["points"]) == (status != "ACCEPTED").sum()


HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&$data ' \u2028 \u2029"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / HOSTILE.replace("/", "∕"), 30, env=HOSTILE)
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["status"] = f"NO_{HOSTILE}"
    path.write_text("".join(json.dumps({**record, HOSTILE: 1.5}) + "\n" for record in records))
    page = read(write_report(run_dir))
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert all(tag != "img" and "onerror" not in attributes for tag, attributes in page.elements)
    assert HOSTILE.split("&")[0] in page.text
    assert HOSTILE.strip() in [chart["title"] for chart in page.data["charts"]]


def test_embedded_json_is_inert_and_reads_back() -> None:
    tree = {"a": [HOSTILE, 1.5, None], "<!--": "<script>"}
    text = embed(tree)
    assert text.isascii()
    assert not re.search(r"[<>&]", text)
    assert json.loads(text) == tree
    with pytest.raises(ValueError, match="JSON"):
        embed({"a": float("nan")})


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
        *("words", {"a": 1}, [1, 2, 3], [[1], [2]], True, None, [None], float("inf"), -1e300),
        pytest.param(10**400, id="beyond float"),
    ],
)
def test_unknown_metrics_do_no_harm(tmp_path: Path, value: Any) -> None:
    page = read(write_report(several_runs(tmp_path / "run", surprise=value)))
    drawn = "Surprise" in [chart["title"] for chart in page.data["charts"]]
    assert drawn == (value is True or value == -1e300)


def test_run_without_an_episode_or_a_second_iteration(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run", episode_return=None)
    assert "No episode has ended" in read(write_report(run_dir)).text
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text(lines[0] + "\n")
    page = read(write_report(run_dir))
    assert page.data["steps"] == [BATCH]
    assert "Promised and kept" not in [chart["title"] for chart in page.data["charts"]]
    assert "No step was rejected." in page.text


def test_barest_records_are_enough(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run")
    (run_dir / "metrics.jsonl").write_text('{"iteration": 1, "env_steps": 64}\n{"iteration": 2, "env_steps": 128}\n')
    page = read(write_report(run_dir))
    assert [chart["title"] for chart in page.data["charts"]] == ["Episode return"]


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run", my_measure=0.5)
    text = 'env = "CartPole-v1"\n\n[rule]\nname = "MyRule"\nmax_kl = 0.02\nother = "none"\n\n[options]\nseed = 4\n'
    (run_dir / "config.toml").write_text(text)
    page = read(write_report(run_dir))
    assert "MyRule on CartPole-v1" in page.text
    assert page.chart("KL divergence")["levels"][0]["value"] == 0.02
    assert page.chart("My measure")["layers"][0]["values"][0] == 0.5
    assert "repeat this run from Python" in page.text


def test_command_repeats_the_run() -> None:
    options = TrainOptions(env_steps=50_000, hidden=(32, 32, 32), normalize_advantage=False, discount_states=True)
    rule = PPO(max_grad_norm=None, target_kl=0.02, learning_rate=1e-5)
    words = " ".join(report.command(RunConfig("pkg:My Env-v0", rule, options).to_dict()))
    assert words == (
        "klimb train ppo 'pkg:My Env-v0' --env-steps 50000 --discount-states --no-normalize-advantage "
        "--hidden 32 32 32 --learning-rate 1e-05 --max-grad-norm None --target-kl 0.02"
    )
    bare = RunConfig("CartPole-v1", PPO(), TrainOptions()).to_dict()
    assert " ".join(report.command(bare)) == "klimb train ppo CartPole-v1 --env-steps 200000"


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
    with pytest.raises(RunError, match="not a file of metrics"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (488.13, "488.1"), (-0.5, "−0.5"), (0.00973, "0.00973"), (2.5e-7, "2.50e−7")],
)
def test_figures_for_people(value: float, text: str) -> None:
    assert report._figure(value) == text


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The page's elements after its script has run, and what the browser's console said."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=4000"),
        *("--window-size=1400,2600", "--dump-dom", page.resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", ["trpo", "ppo", "long", "hostile", "shortest"])
def test_browser_draws_every_chart(tmp_path: Path, kind: str) -> None:
    make = {
        "trpo": lambda: trpo_run(tmp_path / "run"),
        "ppo": lambda: ppo_run(tmp_path / "run"),
        "long": lambda: trpo_run(tmp_path / "run", 3000, evaluate=False),
        "hostile": lambda: trpo_run(tmp_path / "run", 40, env=HOSTILE),
        "shortest": lambda: trpo_run(tmp_path / "run", 1),
    }
    path = write_report(make[kind]())
    document, console = browse(path, tmp_path / "profile")
    assert not re.search(r"CONSOLE.*(error|refused)|Uncaught", console, re.IGNORECASE), console
    assert 'data-rendered="true"' in document
    assert "<title>taken" not in document
    cards = document.split("data-chart=")[1:]
    assert len(cards) == len(read(path).data["charts"])
    for card in cards:
        figure = card.split("</figure>")[0]
        assert "<svg viewBox" in figure
        assert re.search(r'<path [^>]*d="M[^"]+"[^>]*data-layer|<path [^>]*data-layer[^>]*d="M', figure), figure[:400]
        assert "NaN" not in figure
        assert "Infinity" not in figure


# Presses every button twice, points at every chart in several places, and walks along it with the keyboard.
PLAY = """
for (const press of [0, 1]) for (const button of document.querySelectorAll(".legend button, .scale")) button.click();
let told = 0;
for (const card of document.querySelectorAll("[data-chart]")) {
  const chart = card.querySelector(".plot > svg"), box = chart.getBoundingClientRect();
  for (let i = 0; i < 40; i++) {
    const [x, y] = [(i + 0.5) / 40, ((i * 7) % 40) / 40];
    const where = { clientX: box.left + box.width * x, clientY: box.top + box.height * y };
    chart.dispatchEvent(new PointerEvent("pointermove", where));
    if (card.querySelector(".tooltip.shown b")) { told += 1; break; }
  }
  for (const key of ["ArrowLeft", "ArrowRight", "Escape"]) chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
  chart.dispatchEvent(new PointerEvent("pointerleave"));
}
document.documentElement.dataset.told = told;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("make", [trpo_run, ppo_run])
def test_charts_answer_pointer_keyboard_and_legend(tmp_path: Path, make: Any) -> None:
    path = write_report(make(tmp_path / "run", 50))
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    path.write_text(text.replace("</body>", f"<script>{PLAY}</script></body>"), encoding="utf-8")
    document, console = browse(path, tmp_path / "profile")
    assert not re.search(r"CONSOLE|Uncaught", console), console
    charts = len(read(path).data["charts"])
    assert f'data-told="{charts}"' in document
    assert 'class="tooltip shown"' not in document
    assert "NaN" not in document.split("</style>")[1].split('<script type="application/json"')[0]
