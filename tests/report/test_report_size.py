"""The report is one file that can be sent: under 5 MB, whatever the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_runs import curve, trpo_metrics, write_evaluation, write_run

from klimb.filming.card import LARGEST_SIDE, MOST_PICTURES, MOST_STEPS
from klimb.filming.clip import Clip
from klimb.improve.rules.trpo import TRPO
from klimb.report.page import write_report
from klimb.runs.config import RunConfig, TrainOptions

LARGEST = 5_000_000
"""Bytes."""


def noisy_film() -> Clip:
    """An episode as long as any, whose pictures nothing compresses."""
    rng, steps = np.random.default_rng(0), 10 * MOST_STEPS
    small = rng.integers(0, 256, (MOST_PICTURES, 90, 90, 3), np.uint8)
    return Clip(
        pictures=small.repeat(LARGEST_SIDE // 90, axis=1).repeat(LARGEST_SIDE // 90, axis=2),
        shown=np.linspace(0, steps, MOST_PICTURES).astype(int),
        reward=rng.normal(size=steps).astype(np.float32),
        action=rng.normal(size=(steps, 17)).astype(np.float32),
        action_title="action, the first 8 of 17 components",
        pictures_per_second=20.0,
        environment="noise",
        seed=0,
        deterministic=True,
        whole=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "seeds"), [(10_000, 1), (600, 64), (10_000, 64)])
def test_a_long_run_with_many_seeds_and_a_film(tmp_path: Path, iterations: int, seeds: int) -> None:
    size = report_size(tmp_path / "run", iterations, seeds)
    print(f"{iterations} iterations, {seeds} seeds, with a film: {size / 1e6:.2f} MB")
    assert size < LARGEST


def report_size(run: Path, iterations: int, seeds: int) -> int:
    """Bytes of the report of a run a third of whose steps are rejected."""
    rng = np.random.default_rng(0)
    metrics = {**curve(iterations, seeds, rng), **trpo_metrics(iterations, seeds, rng)}
    status = np.full((iterations, seeds), "ACCEPTED", dtype=object)
    for name in ("KL_TOO_LARGE", "NO_IMPROVEMENT", "NONFINITE"):
        status[rng.random(status.shape) < 0.1] = name
    options = TrainOptions(env_steps=2048 * iterations, num_seeds=seeds)
    write_run(run, RunConfig("CartPole-v1", TRPO(), options), metrics, status)
    write_evaluation(run, [rng.normal(size=100) for _ in range(seeds)])
    return write_report(run, clip=noisy_film()).stat().st_size
