"""Metric records: shapes by number of seeds, null for what is not there, and a torn last line."""

from __future__ import annotations

import json

import numpy as np

from klimb.runs.metrics import MetricsLog, read_metrics, to_records


def arrays(num_seeds: int) -> dict[str, np.ndarray]:
    rows = np.arange(2 * num_seeds, dtype=float).reshape(2, num_seeds)
    return {
        "iteration": np.repeat([[4], [5]], num_seeds, axis=1),
        "env_steps": np.repeat([[400], [500]], num_seeds, axis=1),
        "episode_return": np.where(rows == 0, np.nan, rows),
        "status": np.repeat([[0], [3]], num_seeds, axis=1),
        "episodes": rows.astype(np.int32),
    }


def test_one_seed_gives_numbers_and_several_give_lists():
    (first, second) = to_records(arrays(1), wall_time=[1.0, 2.0], steps_per_second=100.04)
    assert list(first)[:4] == ["iteration", "env_steps", "wall_time", "steps_per_second"]
    assert first["episode_return"] is None
    assert first["status"] == "ACCEPTED"
    assert second == {
        "iteration": 5, "env_steps": 500, "wall_time": 2.0, "steps_per_second": 100.0,
        "episode_return": 1.0, "episodes": 1, "status": "NONFINITE",
    }  # fmt: skip
    (first, _) = to_records(arrays(2), wall_time=[1.0, 2.0], steps_per_second=100.0)
    assert first["episode_return"] == [None, 1.0]
    assert first["iteration"] == 4
    json.dumps(first, allow_nan=False)


def test_log_is_readable_at_every_moment_and_can_be_cut_back(tmp_path):
    log = MetricsLog(tmp_path)
    for i in range(3):
        later = {name: values + (2 * i if name == "iteration" else 0) for name, values in arrays(2).items()}
        log.append(to_records(later, wall_time=[float(i), float(i)], steps_per_second=1.0))
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2 * (i + 1)
    log.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
    MetricsLog(tmp_path, keep_until=6).close()
    assert [record["iteration"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [4, 5, 6]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration":1}\n{"iteration":2}\n{"itera')
    assert [record["iteration"] for record in read_metrics(path)] == [1, 2]
