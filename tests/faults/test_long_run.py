"""Long runs: memory, open files and output stay bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 5_000_000


def resident(pid: int) -> float:
    """MiB of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "5 million steps of CartPole with checkpoints, metrics, TensorBoard and report",
    "memory and open files stay flat, a reader can follow the metrics at any moment, the report is under 5 MB",
)
def test_five_million_steps(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "klimb", "train", "trpo", "CartPole-v1", "--env-steps", str(STEPS)]
    words = [*command, "--run-dir", str(path), "--eval-episodes", "2", "--hidden", "32", "--critic-epochs", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    samples: list[tuple[int, float, int]] = []
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment) as child:
        seen = bytearray()
        while child.poll() is None:
            time.sleep(0.25)
            if not (path / "metrics.jsonl").exists():
                continue
            # A reader that follows: what it has read stays, and every whole line is a record.
            content = (path / "metrics.jsonl").read_bytes()
            assert content.startswith(bytes(seen))
            fresh = content[len(seen) : content.rfind(b"\n") + 1]
            records = [json.loads(line) for line in fresh.splitlines()]
            seen += fresh
            if records:
                files = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
                samples.append((records[-1]["env_steps"], resident(child.pid), files))
    assert child.returncode == 0
    assert samples[-1][0] >= 0.9 * STEPS
    # Not the last one, which may be of a process that is ending.
    training = [sample for sample in samples[:-1] if sample[0] > 0.1 * STEPS]
    memory, files = [sample[1] for sample in training], [sample[2] for sample in training]
    quarter = len(training) // 4
    first, last = max(memory[:quarter]), max(memory[-quarter:])
    print(f"{len(training)} samples: memory at most {first:.0f} MiB in the first quarter, {last:.0f} MiB in the last;")
    print(f"open files {min(files)} to {max(files)}")
    assert last < 1.03 * first
    assert max(files) - min(files) <= 2
    sizes = {name: (path / name).stat().st_size / 2**20 for name in ("report.html", "metrics.jsonl")}
    print({name: f"{size:.1f} MiB" for name, size in sizes.items()})
    assert sizes["report.html"] < 5
