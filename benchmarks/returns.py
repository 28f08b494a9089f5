"""How well does every rule do on the tasks of the published tables? `make bench-returns`.

Trains what `returns_tasks.py` lists, two runs at a time at low priority, each on one core. It can be stopped at any
moment and goes on where it stopped: a run from its newest checkpoint. What is finished stands in
`benchmarks/results/returns.json`, one line per piece; `make results-page` writes docs/results.md from it. The runs are
in `runs/returns`.

    python benchmarks/returns.py [PART...] [--minutes M] [--rule RULE] [--task TASK]

PART: parts of the table; all of them by default. --minutes: stop after so many minutes, with a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from results_file import HERE, Line, current_commit, read_results, write_results
from returns_tasks import PARTS, Piece

RUNS = HERE.parent / "runs" / "returns"
KLIMB = str(Path(sys.executable).with_name("klimb"))
AT_A_TIME = 2
ONE_CORE = ("--cores", "1", "--workers", "0", "--quiet")
"""Two trainings of one core each make more steps than one of two."""
INTERRUPTED = (130, 143)
"""Exit statuses of a command that has saved a checkpoint after SIGINT or SIGTERM."""


def at_low_priority(process: subprocess.Popen) -> None:
    """Everything else on the machine comes first. process: in a session of its own."""
    # Linux shares time between sessions first; the nice value of a process counts within its session only.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        Path(f"/proc/{process.pid}/autogroup").write_text("19")


class Stopped(Exception):
    """The benchmark is being stopped."""


class Commands:
    """The commands that run now; all of them are told to stop when the benchmark is."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._running, self._lock = deadline, set[subprocess.Popen](), threading.Lock()
        self._stopped = threading.Event()

    def run(self, *words: str) -> str:
        """What `klimb WORDS` prints. Stopped where it was interrupted."""
        with self._lock:
            if self._stopped.is_set() or time.time() > self._deadline:
                raise Stopped
            process = subprocess.Popen(
                [KLIMB, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            at_low_priority(process)
            self._running.add(process)
        try:
            out, err = process.communicate()
        finally:
            self._running.discard(process)
        if process.returncode in INTERRUPTED or self._stopped.is_set():
            raise Stopped
        if process.returncode != 0:
            raise RuntimeError(f"klimb {shlex.join(words)} ended with status {process.returncode}: {err[-2000:]}")
        return out

    def stop(self, *_: Any) -> None:
        """Tell all running commands to save a checkpoint and end."""
        self._stopped.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def stop_in_time(self) -> None:
        """Stop at the deadline; for a thread of its own."""
        self._stopped.wait(min(max(self._deadline - time.time(), 0), threading.TIMEOUT_MAX))
        self.stop()


def train(piece: Piece, commands: Commands) -> Path:
    """The run of a piece: as it is if it has ended, else from its newest checkpoint, else from the start."""
    directory = RUNS / piece.name
    if (directory / "evaluation.json").exists():
        return directory
    if any((directory / "checkpoints").glob("*")):
        commands.run("resume", str(directory), "--quiet")
    else:
        shutil.rmtree(directory, ignore_errors=True)
        commands.run(*shlex.split(piece.command)[1:], *ONE_CORE, "--run-dir", str(directory))
    return directory


def measured(piece: Piece, directory: Path, evaluation: dict) -> dict[str, Any]:
    """The row of a piece. Returns are means of deterministic episodes, one value per seed."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = [record for record in records if record.get("eval_return") is not None]
    statuses = [status for record in records for status in np.atleast_1d(record["status"])]
    curve = np.array([np.atleast_1d(record["eval_return"]) for record in evaluated], float)
    start = json.loads((directory / "provenance.json").read_text())[0]
    return {
        **vars(piece),
        "command": piece.command,
        "date": start["date"],
        "klimb": start["klimb"],
        "commit": current_commit(),
        "packages": {name: start["packages"].get(name) for name in ("jax", "gymnasium", "mujoco")},
        "seconds": round(records[-1]["wall_time"]),
        "eval_steps": [record["env_steps"] for record in evaluated],
        "eval_return": rounded(curve),
        "eval_sampled_return": rounded([np.atleast_1d(record["eval_sampled_return"]) for record in evaluated]),
        "best": rounded(curve.max(axis=0)),
        "final": rounded([seed["mean"] for seed in evaluation["seeds"]]),
        "final_standard_error": rounded([seed["standard_error"] for seed in evaluation["seeds"]]),
        "kl": mean_of(records, "kl_old_new", 6),
        "rejected": round(statistics.mean(status != "ACCEPTED" for status in statuses), 4),
        "entropy": rounded([mean_of(part, "entropy", 3) for part in tenths(records)]),
        "explained_variance": rounded([mean_of(part, "explained_variance", 3) for part in tenths(records)]),
    }


def rounded(values: Any) -> Any:
    """Lists of numbers with as many digits as matter."""
    return np.round(np.asarray(values, float), 3).tolist()


def mean_of(records: list[dict], name: str, digits: int) -> float:
    """The mean of a metric over records and seeds."""
    values = np.array([np.atleast_1d(record[name]) for record in records], float)
    return round(float(np.nanmean(values)), digits)


def tenths(records: list[dict]) -> list[list[dict]]:
    """The records in ten consecutive parts."""
    edges = np.linspace(0, len(records), 11).astype(int)
    return [records[a:b] for a, b in itertools.pairwise(edges)]


class Table:
    """The rows measured so far, which are written to disk as they come."""

    def __init__(self) -> None:
        self.rows: list[dict] = read_results("returns").get("rows", [])
        self._lock = threading.Lock()

    def has(self, piece: Piece) -> bool:
        """Whether this very command has been measured."""
        return any(row["command"] == piece.command for row in self.rows)

    def add(self, piece: Piece, row: dict) -> None:
        """Keep a row, in place of an older one of the same piece."""
        with self._lock:
            same = vars(piece)
            self.rows = [old for old in self.rows if any(old[key] != value for key, value in same.items())] + [row]
            write_results("returns", rows=[Line(row) for row in self.rows])


def measure(piece: Piece, table: Table, commands: Commands) -> None:
    """Train and evaluate a piece, and add its row."""
    directory = train(piece, commands)
    answer = commands.run("evaluate", str(directory), "--episodes", str(piece.final_episodes), "--seed", "1", "--json")
    row = measured(piece, directory, json.loads(answer))
    table.add(piece, row)
    print(f"{piece.name}: best {np.mean(row['best']):.1f}, final {np.mean(row['final']):.1f}", flush=True)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of the table: {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--rule", help="only this rule")
    parser.add_argument("--task", help="only this task, such as Hopper")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    table, commands = Table(), Commands(time.time() + 60 * given.minutes)
    signal.signal(signal.SIGTERM, commands.stop)
    signal.signal(signal.SIGINT, commands.stop)
    threading.Thread(target=commands.stop_in_time, daemon=True).start()
    missing = [
        piece
        for part in given.parts or PARTS
        for piece in PARTS[part]
        if given.rule in (None, piece.rule) and given.task in (None, piece.task)
        if not table.has(piece)
    ]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        waiting = [pool.submit(measure, piece, table, commands) for piece in missing]
        faults = [error for one in waiting if (error := one.exception()) is not None]
    stopped = sum(isinstance(error, Stopped) for error in faults)
    print(f"{len(missing) - len(faults)} measured, {stopped} still to be measured")
    if failed := [error for error in faults if not isinstance(error, Stopped)]:
        sys.exit("\n".join(map(str, failed)))


if __name__ == "__main__":
    main()
