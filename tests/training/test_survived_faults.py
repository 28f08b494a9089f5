"""Which run, seed and environment a survived fault is written of."""

from __future__ import annotations

import klimb
from klimb.environments.host import Fault
from klimb.runs.directory import RunDirectory
from klimb.training.run_writer import RunWriter


def test_a_fault_is_written_into_its_own_run_of_a_sweep(tmp_path):
    """Copies are counted over values, then seeds, then environments."""
    options = klimb.TrainOptions(seed=5, num_seeds=2, num_envs=3)
    config = klimb.RunConfig("gymnasium:CartPole-v1", klimb.TRPO(), options)
    paths = [tmp_path / "first", tmp_path / "second"]
    for path, part in zip(paths, (slice(0, 2), slice(2, 4)), strict=True):
        path.mkdir()
        writer = RunWriter(config, part, RunDirectory(path, config))
        writer.add_faults([Fault(copy, f"fell {copy}") for copy in range(12)], 7, 3)
    for run, path in enumerate(paths):
        lines = [line.partition("UTC  ")[2] for line in (path / "faults.log").read_text().splitlines()]
        assert lines == [
            f"iteration 7, environment {number} of seed {5 + k}: fell {6 * run + 3 * k + number}; it is restarted"
            for k in range(2)
            for number in range(3)
        ]
