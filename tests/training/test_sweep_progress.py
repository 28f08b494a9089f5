"""What is shown while a sweep trains: of every value its own returns, and its KL against its own limit."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from klimb import TRPO, RunConfig, TrainOptions
from klimb.runs.sweep_file import Sweep
from klimb.training.progress.choice import lines_on
from klimb.training.progress.figures import Part
from klimb.training.progress.panel import MAX_ROWS, Board
from klimb.training.progress.view import View

PLAN = Sweep(
    RunConfig("CartPole-v1", TRPO(), TrainOptions(env_steps=4 * 2048, num_seeds=2)),
    {"gamma": [0.9, 0.99], "max_kl": [0.003, 0.03]},
)
MEMBERS = PLAN.members()
PARTS = [Part(member.name, member.config, slice(2 * i, 2 * i + 2)) for i, member in enumerate(MEMBERS[:2])]


def record(iteration: int, returns: list[float | None], kl: list[float], status: list[str]) -> dict:
    return {
        "iteration": iteration, "env_steps": iteration * 2048, "steps_per_second": 12345.0, "wall_time": 1.0,
        "episode_return": returns, "kl_old_new": kl, "status": status,
    }  # fmt: skip


RECORDS = [
    record(1, [10.0, 20.0, 30.0, None], [0.001, 0.002, 0.01, 0.03], ["ACCEPTED"] * 4),
    record(2, [20.0, 30.0, 50.0, 70.0], [0.002, 0.004, 0.02, 0.03], ["ACCEPTED", "NO_IMPROVEMENT"] + ["ACCEPTED"] * 2),
]


def show(view: View) -> None:
    view.begin(PARTS[0].config, 0, [], PARTS)
    view.update(RECORDS[:1])
    view.update(RECORDS[1:])
    view.end(finished=True)


def test_a_pipe_gets_a_whole_line_for_each_value():
    """Returns are means over the seeds of a value and its last iterations; narrow is no reason to break a line."""
    output = io.StringIO()
    show(lines_on(Console(file=output, width=40), logging.DEBUG))
    first, second = (f"iteration {i}/4  env steps {i * 2048:,}  steps/s 12,345" for i in (1, 2))
    lines = output.getvalue().splitlines()
    assert lines[0] == (
        "training trpo on CartPole-v1: 4 iterations, 2 seeds, gamma=0.9,max_kl=0.003, gamma=0.9,max_kl=0.03"
    )
    shown = [line.partition("  time left")[0] for line in lines if line.startswith("gamma=")]
    assert shown == [
        f"gamma=0.9,max_kl=0.003  {first}  return 15.0  KL 0.0015 / 0.003  rejected 0",
        f"gamma=0.9,max_kl=0.03   {first}  return 30.0  KL 0.0200 / 0.03  rejected 0",
        f"gamma=0.9,max_kl=0.003  {second}  return 20.0  KL 0.0030 / 0.003  rejected 1",
        f"gamma=0.9,max_kl=0.03   {second}  return 45.0  KL 0.0250 / 0.03  rejected 0",
    ]


def test_the_last_iteration_has_a_line_for_each_value_when_a_sweep_is_stopped():
    output = io.StringIO()
    show(lines_on(Console(file=output)))
    shown = [line for line in output.getvalue().splitlines() if "iteration 2/4" in line]
    assert [line.split()[0] for line in shown] == [part.name for part in PARTS]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_panel_has_a_row_for_each_value_and_cuts_no_number(width):
    board, output = Board(), io.StringIO()
    board.begin(PARTS[0].config, PARTS)
    board.update(RECORDS)
    Console(file=output, width=width, color_system=None).print(board)
    lines = output.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line.strip("│ ").split() for line in lines if line.startswith("│ gamma")]
    assert [row[1] for row in rows] == ["20.0", "45.0"]
    if width == 100:
        assert rows[1] == ["gamma=0.9,max_kl=0.03", "45.0", "0.0250", "/", "0.03", "0"]
        assert any("2/4" in line and "4,096" in line and "12,345" in line for line in lines)


def test_of_many_values_the_first_have_a_row():
    parts = [Part(f"max_kl={i}", PARTS[0].config, slice(0, 2)) for i in range(MAX_ROWS + 3)]
    board, output = Board(), io.StringIO()
    board.begin(PARTS[0].config, parts)
    board.update(RECORDS)
    Console(file=output, width=100, color_system=None).print(board)
    assert output.getvalue().count("max_kl=") == MAX_ROWS
    assert "and 3 more" in output.getvalue()
