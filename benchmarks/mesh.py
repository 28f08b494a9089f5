"""One seed on one device, on two, and in two processes: what an iteration takes, by the size of networks and batches.

Writes the table of docs/scaling.md. Every row is measured in turns, and each column as a ratio to one device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_file import HERE, Line, write_results

PAGE = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- mesh: written by make bench-mesh -->\n", "<!-- end of mesh -->\n"
ENV = "jax:Pendulum-v1"
SIZES = [(64, 128), (64, 1024), (256, 1024)]
"""Units of each of two hidden layers, and steps per environment."""
NUM_ENVS = 16
ITERATIONS = 8
ONE = "one device"
WAYS = {
    ONE: (1, ["--cores", "1"]),
    "policy and critic on a device each": (1, []),
    "learn_on = 2, environments": (1, ["--learn-on", "2", "--spread", "environments"]),
    "learn_on = 2, rows": (1, ["--learn-on", "2", "--spread", "rows"]),
    "two processes, environments": (2, ["--spread", "environments"]),
    "two processes, rows": (2, ["--spread", "rows"]),
}


def iteration_time(way: str, hidden: int, num_steps: int) -> float:
    """Seconds per iteration, the median of those after the first two."""
    count, flags = WAYS[way]
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        words = ["train", "trpo", ENV, "--hidden", str(hidden), str(hidden), "--num-envs", str(NUM_ENVS)]
        words += ["--num-steps", str(num_steps), "--env-steps", str(ITERATIONS * NUM_ENVS * num_steps)]
        words += [
            "--eval-episodes",
            "0",
            "--critic-epochs",
            "2",
            "--quiet",
            "--preset",
            "none",
            "--run-dir",
            str(run),
            *flags,
        ]
        # One iteration per call, so that each has its own time.
        words += ["--checkpoint-every", "1", "--keep-checkpoints", "1"]
        start(words, count)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [record["wall_time"] for record in records]
    return statistics.median(after - before for before, after in itertools.pairwise(times[2:]))


def start(words: list[str], count: int) -> None:
    """`klimb WORDS`, in one process or in several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, "-m", "klimb", *words, *["--distributed"] * (count > 1)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **together, "JAX_PROCESS_ID": str(i)})
        for i in range(count)
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise SystemExit("a training has failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1, help="measurements of every cell, in turns")
    turns = parser.parse_args().turns
    cells = []
    for hidden, num_steps in SIZES:
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(turns):
            for way in WAYS:
                times[way].append(iteration_time(way, hidden, num_steps))
        cells.append({"hidden": hidden, "rows": NUM_ENVS * num_steps, "seconds": Line(times)})
        print(table(cells)[-1], flush=True)
    write_results("mesh", cells=cells)
    text = PAGE.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:begin] + "\n" + "\n".join(table(cells)) + "\n" + text[end:])


def table(cells: list[dict[str, Any]]) -> list[str]:
    """The lines of a table: how long an iteration takes on one device, and the others as ratios to it."""
    others = [way for way in WAYS if way != ONE]
    lines = [
        "| hidden units | rows of a batch | iteration on one device | " + " | ".join(others) + " |",
        "|---" * (3 + len(others)) + "|",
    ]
    for cell in cells:
        medians = {way: statistics.median(times) for way, times in cell["seconds"].items()}
        ratios = " | ".join(f"{medians[way] / medians[ONE]:.2f}" for way in others)
        name = f"{cell['hidden']}, {cell['hidden']}"
        lines.append(f"| {name} | {cell['rows']:,} | {1000 * medians[ONE]:.0f} ms | {ratios} |")
    return lines


if __name__ == "__main__":
    main()
