"""Whether memory stays flat over ten million steps, and what 256 seeds take: `make bench-memory`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from results_file import write_results

LONG = """
import json, os, sys
import klimb
klimb.use_all_cores()
seen = []
def resident(run):
    steps = run.env_steps
    if steps >= len(seen) * 500_000:
        pages = int(open("/proc/self/statm").read().split()[1])
        seen.append([steps, pages * os.sysconf("SC_PAGE_SIZE") / 2**20])
klimb.train("CartPole-v1", klimb.TRPO(), env_steps=10_000_000, run_dir=sys.argv[1], callback=resident)
print(json.dumps(seen))
"""
MANY = """
import resource
import klimb
klimb.use_all_cores()
klimb.train("CartPole-v1", klimb.PPO(), env_steps=4096, num_envs=4, num_seeds=256, certificate=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def output(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory() as folder:
        seen = json.loads(output(LONG, str(Path(folder) / "run")))
    for steps, mebibytes in seen[:: max(1, len(seen) // 10)]:
        print(f"{steps:>12,} steps {mebibytes:8.0f} MiB")
    many = float(output(MANY))
    print(f"256 seeds: {many:,.0f} MiB at most")
    write_results("memory", resident=seen, seeds_256=many)


if __name__ == "__main__":
    main()
