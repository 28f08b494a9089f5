"""Guided policy search with the simulator's derivatives on MuJoCo tasks, beside TRPO: environment steps are not all."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guided_runs import evaluated, listed, minus, table, thousands, trained

SIMULATOR = "--method mirror_descent --dynamics simulator"


@dataclass(frozen=True)
class Task:
    """An environment, and how guided policy search and TRPO are trained on it.

    steps: of the environment, for each seed. flags: of both. look_ahead: of guided policy search; None for none.
    seeds: trained.
    """

    env: str
    steps: int
    flags: str
    look_ahead: int | None
    seeds: int

    def guided(self, dynamics: str, more: str = "") -> str:
        ahead = "" if self.look_ahead is None else f" --look-ahead {self.look_ahead}"
        return self._command(f"guided gymnasium:{self.env} --method mirror_descent --dynamics {dynamics}{ahead}{more}")

    def trpo(self, steps: int) -> str:
        """With its own batches, of 2048 rows as they are by default, where it has many steps."""
        if steps == self.steps:
            return self._command(f"trpo gymnasium:{self.env} --preset none")
        return f"trpo gymnasium:{self.env} --preset none --env-steps {steps} --num-seeds {self.seeds}"

    def _command(self, words: str) -> str:
        return f"{words} {self.flags} --env-steps {self.steps} --num-seeds {self.seeds}"


SHORT = "--num-envs 16 --num-steps 64 --initial-log-std -0.5"
LONG = "--num-envs 8 --num-steps 200 --initial-log-std -0.5"
TASKS = (
    Task("Reacher-v5", 48_000, "--num-envs 32 --num-steps 50 --initial-log-std -0.5", None, 3),
    Task("InvertedPendulum-v5", 20_000, SHORT, 16, 3),
    Task("InvertedDoublePendulum-v5", 60_000, SHORT, 8, 3),
    Task("Swimmer-v5", 40_000, LONG, 20, 3),
    Task("HalfCheetah-v5", 60_000, LONG, 5, 3),
)


def measure() -> dict[str, Any]:
    """Every task: guided policy search with the simulator's derivatives and with fitted ones; TRPO with as many steps
    of the environment, and with as many of the simulator in all."""
    return {task.env: _measured(task) for task in TASKS}


def _measured(task: Task) -> dict[str, Any]:
    guided = _training(task, "simulator", task.guided("simulator"))
    found = {
        "simulator": guided,
        "constrained": _training(
            task, "constrained", task.guided("simulator").replace("mirror_descent", "constrained")
        ),
        "fitted": _training(task, "fitted", task.guided("fitted")),
        "regions": _training(task, "regions", task.guided("fitted", " --regions 8")),
        "trpo": _training(task, "trpo", task.trpo(task.steps)),
        "trpo_more": _training(task, "trpo-more", task.trpo(round(guided["simulator_steps"], -3))),
    }
    for name, one in found.items():
        print(f"{task.env:<26} {name:<12} {one['mean']:9.1f}  {one['seconds']:6.0f} s", flush=True)
    return found


def _training(task: Task, name: str, arguments: str) -> dict[str, Any]:
    """What a training took, each seed, and what it led to."""
    directory = trained(arguments, f"tasks-{task.env}-{name}")
    each = evaluated(directory)
    return {"command": f"klimb train {arguments}", "mean": statistics.mean(each), "seeds": each, **_cost(directory)}


def _cost(directory: Path) -> dict[str, Any]:
    """Steps of the environment and of the simulator, of one seed; seconds, of all seeds together."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    derivatives = sum(float(np.ravel(row["simulator_steps"])[0]) for row in rows if "simulator_steps" in row)
    last = rows[-1]
    return {
        "env_steps": last["env_steps"],
        "simulator_steps": round(last["env_steps"] + derivatives),
        "seconds": last["wall_time"],
    }


LABELS = {
    "simulator": "guided, simulator's derivatives",
    "constrained": "the same, `--method constrained`",
    "fitted": "guided, fitted dynamics",
    "regions": "the same, `--regions 8`",
    "trpo": "TRPO, as many environment steps",
    "trpo_more": "TRPO, as many simulator steps",
}


def lines(found: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    rows = []
    for env, trainings in found.items():
        for name, label in LABELS.items():
            one = trainings[name]
            numbers = [thousands(one["env_steps"]), thousands(one["simulator_steps"]), f"{one['seconds']:.0f}"]
            rows.append(f"| {env} | {label} | {' | '.join(numbers)} | {minus(one['mean'])} | {listed(one['seeds'])} |")
            env = ""
    commands = [f"    {trainings['simulator']['command']}" for trainings in found.values()]
    return [
        "With the simulator's derivatives each environment step needs n + 1 additional simulator steps, n the number "
        "of coordinates of state and action. Steps are per seed, seconds are for all seeds together, and returns are "
        "those of the most probable actions.",
        "",
        *table("| | | environment steps | simulator steps | seconds | mean return | seeds |", rows),
        "The commands of the first row of each task; the other rows differ in the options that they name:",
        "",
        *commands,
        "",
    ]
