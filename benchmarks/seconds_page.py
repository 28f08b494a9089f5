"""Writes docs/seconds.md, its figure, and the marked parts of other pages, from benchmarks/results/seconds.json.

A contender stands in a table as soon as its median is known. The figure and the part of README are written once all
contenders of all tasks have been measured.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import seconds_figure
from results_file import HERE
from seconds_results import Median, Ratio, Row, fastest_ratio, median, number, taken
from seconds_tasks import TASKS, Task

ROOT = HERE.parent
SHOWN = ("HalfCheetah-v5", "CartPole-v1")
"""The tasks of README's sentence."""
LEFT_OUT = """## What is left out

- Contenders whose own published mean return on a task is below its threshold: on HalfCheetah-v5 TRPO of sb3-contrib
  (1785 after a million steps); on Hopper-v5 TRPO and NPG of Tianshou (2046 and 1915) and PPO with the settings of
  rl-baselines3-zoo (2410); on Walker2d-v5 NPG of Tianshou (2503); on LunarLander-v3 TRPO of sb3-contrib (133 after
  200 000 steps).
- Contenders that cannot be the fastest: on MuJoCo PPO of SB3, whose settings are those of SBX, which makes more steps
  per second; on Walker2d-v5 PPO of Tianshou, which makes half of the steps per second of its TRPO; on classic control
  TRPO of sb3-contrib, which makes 8 000 steps per second, and rejax more than 100 000.
- Contenders without published settings for a task: rejax on MuJoCo and on LunarLander-v3, whose environments are not
  compiled; Tianshou on all tasks that are not of MuJoCo; SB3, SBX and sb3-contrib on MinAtar.
- CleanRL, whose algorithms are scripts, and no library that can be installed beside the others.
"""
HEAD = """# Time until a task is solved

Seconds of training until the mean return of deterministic episodes first reaches a threshold, on two cores of a shared
x86-64 machine. `make bench-seconds` measures, and writes this page.

## How it is measured

- **What counts**: the time of training alone. The clock stands still while programs are compiled and policies are
  evaluated, in the same way for everybody: a worker trains with another seed, or for one iteration, before the clock
  starts, and stops the clock around each evaluation. SBX compiles for every model; its models train for one iteration
  and start over from their initial parameters.
- **Evaluations**: 20 episodes, on MuJoCo 10, with the most probable actions (the means of continuous ones) and the
  statistics of observations that training has at that point.
- **Limits**: a seed that has not reached the threshold within the limit of steps or of seconds is not solved. Then the
  limit is a lower bound of its time, and a median of mostly unsolved seeds is shown as "> limit". A contender that has
  failed on more than half of the seeds is not trained with the others. The limit of seconds is several times that
  of klimb's faster rule.
- **Turns**: the contenders of a task train one after the other, seed by seed, each alone with both cores.
- **Settings**: each contender has its own tuned ones. Peers have those that their projects publish for the task
  ([list](../benchmarks/seconds_settings.py)): rejax its `configs/gymnax`; SB3, sb3-contrib and SBX those of
  rl-baselines3-zoo (version 4 for the MuJoCo tasks); Tianshou those of its `examples/mujoco`. For MinAtar, which rejax
  has no settings for, rejax has those of purejaxrl, without the decrease of the learning rate. klimb has its
  [presets](presets.md) on MuJoCo; on the other tasks the best of a few settings per rule, tried on seeds from 100 on.
  The seeds below are 0, 1, 2 ….
- **Environments**: LunarLander-v3 is EnvPool's for all. On MuJoCo klimb, sb3-contrib and SBX step Gymnasium's
  environments, Tianshou EnvPool's.
- **Threshold of Breakout-MinAtar**: 10. With other settings rejax's PPO stays at 6 after a million steps
  ([MinAtar](minatar.md)).
"""


NEXT = """## Next
[Performance](performance.md) · [returns](results.md) · [presets](presets.md)"""


class Measured(NamedTuple):
    """A task, what is known of its contenders, and the ratio once all of them are known."""

    task: Task
    medians: dict[str, Median]
    ratio: Ratio | None

    @property
    def is_complete(self) -> bool:
        return len(self.medians) == len(self.task.contenders)


def summary(task: Task, rows: list[Row]) -> Measured:
    """What the rows say of a task. Rows of other settings than the present ones do not count."""
    medians = {}
    for contender in task.contenders:
        argument = task.argument(contender)
        own = [row for row in rows if (row["contender"], row["argument"]) == (contender.name, argument)]
        found = median([row for row in own if row["task"] == task.name], task.seeds)
        if found is not None:
            medians[contender.name] = found
    ours = {contender.name for contender in task.contenders if contender.is_ours}
    complete = len(medians) == len(task.contenders)
    return Measured(task, medians, fastest_ratio(medians, ours) if complete else None)


def write(rows: list[Row]) -> None:
    """All pages. rows: measured so far."""
    found = [summary(task, rows) for task in TASKS]
    (ROOT / "docs" / "seconds.md").write_text("\n".join(page(found)).rstrip() + "\n", encoding="utf-8")
    put(ROOT / "docs" / "performance.md", overview(found))
    put(ROOT / "docs" / "index.md", overview(found))
    if all(one.is_complete for one in found):
        seconds_figure.draw({one.task: one.medians for one in found}, ROOT / "docs" / "figures" / "seconds.png")
        put(ROOT / "README.md", first_screen(found))


def put(path: Path, lines: list[str]) -> None:
    """Replace what stands between the marks of a page."""
    begin, end = "<!-- seconds -->", "<!-- end of seconds -->"
    head, _, tail = path.read_text(encoding="utf-8").partition(begin)
    if end not in tail:
        raise SystemExit(f"{path} has no marks {begin} and {end}")
    path.write_text("\n".join([head + begin, *lines, end + tail.partition(end)[2]]), encoding="utf-8")


def page(found: list[Measured]) -> list[str]:
    """docs/seconds.md."""
    lines = [HEAD]
    measured = [one for one in found if one.medians]
    if not measured:
        return [*lines, "Nothing has been measured yet.", "", LEFT_OUT, NEXT]
    if all(one.is_complete for one in found):
        lines += ["![Seconds until each task is solved, by contender](figures/seconds.png)", ""]
    lines += ["## Against the fastest peer", "", *overview(found), "", "## Task by task", ""]
    for one in measured:
        lines += section(one)
    return [*lines, LEFT_OUT, NEXT]


def evaluations(task: Task) -> str:
    return f"{task.episodes} episodes after every {grouped(task.every)} steps"


def section(one: Measured) -> list[str]:
    """All contenders of a task, and klimb's commands."""
    task = one.task
    head = ["contender", "seconds, median", "environment steps, median", "solved"]
    rows = [[name, taken(found), grouped_steps(found), counted(found, task)] for name, found in one.medians.items()]
    commands = [contender.task["command"] for contender in task.contenders if contender.is_ours]
    limits = f"{evaluations(task)}; at most {grouped(task.max_steps)} steps and {task.max_seconds:g} s."
    return [
        f"### {task.name}, return {number(task.threshold)}",
        "",
        *table(head, rows),
        "",
        limits,
        "",
        *(f"    {shlex.join(command.split())}" for command in commands),
        "",
    ]


def overview(found: list[Measured]) -> list[str]:
    """klimb's faster rule and the fastest peer, task by task."""
    complete = [one for one in found if one.ratio is not None]
    if not complete:
        return ["`make bench-seconds` has not been run yet."]
    head = ["task", "return", "klimb, seconds", "steps", "fastest peer, seconds", "steps", "klimb / peer"]
    rows = [overview_row(one, one.ratio) for one in complete if one.ratio is not None]
    return table(head, rows)


def overview_row(one: Measured, ratio: Ratio) -> list[str]:
    ours, peer = one.medians[ratio.ours], one.medians[ratio.peer]
    rule = ratio.ours.removeprefix("klimb ")
    return [
        one.task.name,
        number(one.task.threshold),
        f"{taken(ours)} ({rule})",
        grouped_steps(ours),
        f"{taken(peer)} ({ratio.peer})",
        grouped_steps(peer),
        ratio_text(ratio),
    ]


def first_screen(found: list[Measured]) -> list[str]:
    """README's sentence and figure."""
    ratios = {one.task.name: one.ratio for one in found if one.ratio is not None}
    largest = max(ratios.values(), key=lambda ratio: ratio.value)
    said = [
        f"{name} (a return of {number(one.task.threshold)}) takes {taken(one.medians[ratio.ours])} s"
        for one in found
        if (name := one.task.name) in SHOWN and (ratio := ratios.get(name)) is not None
    ]
    every = f"all {len(found)} tasks" if len(ratios) == len(found) else f"{len(ratios)} of {len(found)} tasks"
    return [
        f"Seconds of training until a task is solved, on two CPU cores: {', '.join(said)}. On {every} klimb takes at "
        f"most {largest.value:.2g} of the time of the fastest of SB3, sb3-contrib, SBX, rejax and Tianshou, each with "
        "its own tuned settings ([how it is measured](docs/seconds.md)).",
        "",
        "![Seconds of training until each task is solved, by library](docs/figures/seconds.png)",
    ]


def ratio_text(ratio: Ratio) -> str:
    return f"{'< ' if ratio.bound else ''}{ratio.value:.2g}"


def counted(one: Median, task: Task) -> str:
    """How many seeds are solved, of those that were trained."""
    return f"{one.solved} of {one.trained}" + ("" if one.trained == task.seeds else " that were trained")


def grouped_steps(one: Median) -> str:
    return "–" if one.bound else grouped(round(one.steps))


def grouped(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]]
