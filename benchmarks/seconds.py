"""How long until a task is solved: klimb beside its peers, each with its own tuned settings. `make bench-seconds`.

Seconds of training, until the mean return of deterministic episodes first reaches the task's threshold; compilation and
evaluations are left out for everybody. `seconds_tasks.py` lists tasks, contenders, limits and settings. The contenders
of a task are processes that take turns, seed by seed; one trains at a time, and has both cores.

It can be stopped at any moment and goes on where it stopped: every seed stands in `benchmarks/results/seconds.json` as
soon as it is finished. A contender of which more than half of the seeds are not solved has no median, whatever the
others do: they are not trained. docs/seconds.md, the figure and the marked parts of other pages are written from the
results, at the end and with `--page`.

    python benchmarks/seconds.py [--task TASK]... [--contender NAME]... [--minutes M] [--again] [--page]

TASK, NAME: as in the tables of docs/seconds.md, or how they begin; all by default. --minutes: start no seed after so
many minutes. --again: forget what was measured of the chosen ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import seconds_page
from results_file import Line, current_commit, read_results, write_results
from seconds_results import Row, is_settled
from seconds_tasks import TASKS, Contender, Task
from speed import OURS, THEIRS, Worker, install_peers
from speed import Contender as Process

PATIENCE = 1800
"""Seconds for one answer: evaluations and compilation take time too, and are not limited."""


class Solver(Worker):
    """A running contender of a task: it is told a seed, and answers when the task is solved or a limit is reached."""

    def __init__(self, task: Task, contender: Contender) -> None:
        argument = json.dumps(task.argument(contender))
        python = OURS if contender.is_ours else THEIRS
        super().__init__(Process(contender.name, python, contender.script, (argument,)), PATIENCE)

    def solve(self, seed: int) -> dict[str, Any]:
        """What until_solved.py says of a seed."""
        return json.loads(self.ask(str(seed)))


class Table:
    """The rows measured so far, which are written to disk as they come."""

    def __init__(self) -> None:
        self.rows: list[Row] = read_results("seconds").get("rows", [])

    def of(self, task: Task, contender: Contender) -> list[Row]:
        """The rows of a contender with its present settings."""
        return [row for row in self.rows if is_of(row, task, contender)]

    def missing(self, task: Task, contender: Contender) -> list[int]:
        """Seeds that are still to be trained."""
        rows = self.of(task, contender)
        if is_settled(rows, task.seeds):
            return []
        done = {row["seed"] for row in rows}
        return [seed for seed in range(task.seeds) if seed not in done]

    def add(self, task: Task, contender: Contender, answer: dict[str, Any]) -> None:
        """Keep the row of a seed, in place of those with other settings."""
        start = {"task": task.name, "contender": contender.name}
        row = start | answer | {"argument": task.argument(contender)}
        row |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": current_commit()}
        self.rows = [old for old in self.rows if not is_named(old, task, contender) or is_of(old, task, contender)]
        self.rows.append(row)
        self._write()

    def forget(self, chosen: Iterable[tuple[Task, Contender]]) -> None:
        """Leave out all rows of some contenders."""
        names = {(task.name, contender.name) for task, contender in chosen}
        self.rows = [row for row in self.rows if (row["task"], row["contender"]) not in names]
        self._write()

    def _write(self) -> None:
        write_results("seconds", rows=[Line(row) for row in self.rows])


def is_named(row: Row, task: Task, contender: Contender) -> bool:
    """Whether a row is of a contender, with whatever settings."""
    return (row["task"], row["contender"]) == (task.name, contender.name)


def is_of(row: Row, task: Task, contender: Contender) -> bool:
    """Whether a row is of a contender with its present settings and limits."""
    return is_named(row, task, contender) and row["argument"] == task.argument(contender)


def measure(task: Task, contenders: Iterable[Contender], table: Table, deadline: float) -> list[str]:
    """Train what is missing of a task, seed by seed. Gives the names of contenders that failed."""
    failed = []
    with contextlib.ExitStack() as stack:
        solvers = {}
        for contender in contenders:
            if not table.missing(task, contender) or time.time() > deadline:
                continue
            try:
                solvers[contender] = solver = Solver(task, contender)
                stack.callback(solver.stop)
            except SystemExit as error:
                failed.append(f"{task.name}: {error}")
        for seed in range(task.seeds):
            for contender, solver in list(solvers.items()):
                if seed not in table.missing(task, contender) or time.time() > deadline:
                    continue
                try:
                    answer = solver.solve(seed)
                except SystemExit as error:
                    failed.append(f"{task.name}: {error}")
                    del solvers[contender]
                    continue
                table.add(task, contender, answer)
                print(f"{task.name}, {contender.name}, seed {seed}: {said(answer)}", flush=True)
    return failed


def said(answer: dict[str, Any]) -> str:
    """One seed, for the terminal."""
    if answer["seconds"] is None:
        return f"not solved in {answer['used_seconds']:.3g} s, {answer['used_steps']:,} steps"
    return f"{answer['seconds']:.3g} s, {answer['steps']:,} steps"


def chosen(names: list[str], begins: list[str] | None, what: str) -> list[str]:
    """The names that begin as is asked for; SystemExit for what no name begins with."""
    for begin in begins or []:
        if not any(name.startswith(begin) for name in names):
            raise SystemExit(f"no {what} begins with {begin!r}; there are {', '.join(names)}")
    return [name for name in names if name.startswith(tuple(begins or [""]))]


def main() -> None:
    """Measure what is missing, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append")
    parser.add_argument("--contender", action="append")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the pages")
    given = parser.parse_args()
    names = list(dict.fromkeys(contender.name for task in TASKS for contender in task.contenders))
    tasks = chosen([task.name for task in TASKS], given.task, "task")
    contenders = chosen(names, given.contender, "contender")
    table, deadline, failed = Table(), time.time() + 60 * given.minutes, []
    if not given.page:
        install_peers()
        selected = {task: [one for one in task.contenders if one.name in contenders] for task in TASKS}
        if given.again:
            table.forget((task, one) for task in TASKS if task.name in tasks for one in selected[task])
        for task in TASKS:
            if task.name in tasks:
                failed += measure(task, selected[task], table, deadline)
    missing = sum(len(table.missing(task, one)) for task in TASKS for one in task.contenders)
    print(f"{missing} seeds still to be trained")
    seconds_page.write(table.rows)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
