"""What is shown while a sweep trains: of every value its own returns, and its KL against its own limit."""

from __future__ import annotations

import io

from rich.console import Console

from klimb import TRPO, RunConfig, TrainOptions
from klimb.cli.sweep_progress import SweepProgress
from klimb.runs.sweep_file import Sweep

PLAN = Sweep(
    RunConfig("CartPole-v1", TRPO(), TrainOptions(env_steps=4 * 2048, num_seeds=2)),
    {"gamma": [0.9, 0.99], "max_kl": [0.003, 0.03]},
)


def record(iteration: int, returns: list[float | None], kl: list[float], status: list[str]) -> dict:
    return {
        "iteration": iteration, "env_steps": iteration * 2048, "steps_per_second": 12345.0,
        "episode_return": returns, "kl_old_new": kl, "status": status,
    }  # fmt: skip


RECORDS = [
    record(1, [10.0, 20.0, 30.0, None], [0.001, 0.002, 0.01, 0.03], ["ACCEPTED"] * 4),
    record(2, [20.0, 30.0, 50.0, 70.0], [0.002, 0.004, 0.02, 0.03], ["ACCEPTED", "NO_IMPROVEMENT"] + ["ACCEPTED"] * 2),
]


def shown(terminal: bool, width: int) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=terminal, color_system=None)
    with SweepProgress(PLAN, console) as progress:
        progress.begin(PLAN.members()[:2])
        progress.update(RECORDS)
        progress.end()
        progress.begin(PLAN.members()[2:])
        progress.update(RECORDS[:1])
    return output.getvalue()


def test_lines_are_whole_in_a_pipe_and_one_for_each_value():
    """Returns are means over the seeds of a value and its last iterations; narrow is no reason to break a line."""
    lines = shown(terminal=False, width=40).splitlines()
    first, second = (f"iteration {i}/4  env steps {i * 2048:,}  steps/s 12,345" for i in (1, 2))
    assert lines == [
        "training     gamma=0.9,max_kl=0.003, gamma=0.9,max_kl=0.03 (2 of 4 combinations begun)",
        f"gamma=0.9,max_kl=0.003  {second}  return 20.0  KL 0.0030 / 0.003  rejected 1",
        f"gamma=0.9,max_kl=0.03   {second}  return 45.0  KL 0.0250 / 0.03  rejected 0",
        "training     gamma=0.99,max_kl=0.003, gamma=0.99,max_kl=0.03 (4 of 4 combinations begun)",
        f"gamma=0.99,max_kl=0.003  {first}  return 15.0  KL 0.0015 / 0.003  rejected 0",
        f"gamma=0.99,max_kl=0.03   {first}  return 30.0  KL 0.0200 / 0.03  rejected 0",
    ]


def test_a_terminal_gets_a_panel_with_a_row_for_each_value():
    text = shown(terminal=True, width=100)
    assert "TRPO on CartPole-v1 · 2 seeds" in text
    row = next(line for line in text.splitlines() if "gamma=0.9,max_kl=0.03 " in line)
    assert row.split()[1:-1] == ["gamma=0.9,max_kl=0.03", "45.0", "0.0250", "/", "0.03", "0"]
    assert "iteration 2/4  env steps 4,096  steps/s 12,345 · 2 of 4 combinations begun" in text
