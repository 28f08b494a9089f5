"""Runs whose numbers are made up, for the tests of the report, and a reader of its page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from klimb.improve.rules.ppo import PPO
from klimb.improve.rules.trpo import TRPO
from klimb.runs.config import RunConfig, TrainOptions

BATCH = 2048
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&$data ' \u2028 \u2029"


def curve(n: int, seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Metrics `[n, seeds]` that look like those of a run."""
    t = np.linspace(0, 1, n)[:, None] * np.ones((1, seeds))
    pace = 6 + 4 * rng.random((1, seeds))
    kl = 0.0097 * (1 - 0.2 * rng.random((n, seeds)) ** 4)
    predicted = 0.02 * np.exp(-2 * t) * (1 + 0.3 * rng.standard_normal((n, seeds)))
    realised = np.vstack([np.full((1, seeds), np.nan), 0.7 * predicted[:-1]]) + 0.01 * rng.standard_normal((n, seeds))
    kl_new_old = kl * (1 + 0.05 * rng.standard_normal((n, seeds)))
    tv_bound, tv_max_bound = np.sqrt(np.minimum(kl, kl_new_old) / 2), 0.95 * np.sqrt(kl * 3)
    worst = kl * (6 + 4 * rng.random((n, seeds)))
    return {
        "episode_return": 20 + 480 / (1 + np.exp(-pace * (t - 0.35))) + 12 * rng.standard_normal((n, seeds)),
        "episode_length": 20 + 480 / (1 + np.exp(-pace * (t - 0.35))),
        "episodes": rng.integers(4, 90, (n, seeds)),
        "surrogate_gain": 0.06 * np.exp(-2 * t) * (1 + 0.3 * rng.standard_normal((n, seeds))),
        "kl_old_new": kl,
        "kl_old_new_se": 0.05 * kl,
        "kl_old_new_max": worst,
        "kl_new_old": kl_new_old,
        "kl_new_old_se": 0.05 * kl,
        "kl_new_old_max": 0.9 * worst,
        "kl_max": worst,
        "tv": 0.85 * tv_bound,
        "tv_se": 0.02 * tv_bound,
        "tv_max": 0.9 * tv_max_bound,
        "tv_bound": tv_bound,
        "tv_max_bound": tv_max_bound,
        "state_mismatch_bound": 100 * tv_max_bound / (1 + 100 * tv_max_bound),
        "sampled_improvement_bound": -3 * np.exp(-t + 0.3 * rng.standard_normal((n, seeds))),
        "step_excess": np.exp(6 + 3 * t + 0.3 * rng.standard_normal((n, seeds))),
        "entropy": 0.69 * np.exp(-1.2 * t) + 0.01 * rng.standard_normal((n, seeds)),
        "ess": 1 - 2 * kl * (1 + 0.2 * rng.random((n, seeds))),
        "predicted_improvement": predicted,
        "predicted_improvement_se": 0.002 * (1 + rng.random((n, seeds))),
        "realised_improvement": realised,
        "realised_improvement_se": 0.008 * (1 + rng.random((n, seeds))),
        "explained_variance": 1 - np.exp(-9 * t) * (0.4 + 4 * rng.random((n, seeds)) ** 3),
        "value_loss": 0.9 * np.exp(-4 * t) * np.exp(0.2 * rng.standard_normal((n, seeds))) + 0.004,
    }


CERTIFICATE = (
    *("kl_old_new_se", "kl_old_new_max", "kl_new_old_se", "kl_new_old_max", "tv_se", "tv_bound", "tv_max_bound"),
    *("state_mismatch_bound", "sampled_improvement_bound", "step_excess"),
)
"""The metrics of `curve` that runs of older versions lack."""


def trpo_metrics(n: int, seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "tried_kl": 0.011 + 0.003 * rng.random((n, seeds)),
        "tried_gain": -0.002 * rng.random((n, seeds)),
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
    metrics["episode_return"][1:][rng.random((n - 1, 1)) < 0.1] = np.nan
    status = np.full((n, 1), "ACCEPTED", dtype=object)
    status[rng.choice(n, n // 30, replace=False)] = "KL_TOO_LARGE"
    status[rng.choice(n, n // 60, replace=False)] = "NO_IMPROVEMENT"
    still = ("kl_old_new", "kl_new_old", "kl_max", "tv", "tv_max", "surrogate_gain", "predicted_improvement")
    for name in (*still, *CERTIFICATE):
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
