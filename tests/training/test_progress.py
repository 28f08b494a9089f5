"""What is shown of a training: figures, lines at a rhythm, a panel that fits its terminal, and what the logger gets."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

import klimb
from klimb import PPO, TRPO, BehaviourCloning, Reinforce, RunConfig, TrainOptions
from klimb.training.progress import choice, panel
from klimb.training.progress.figures import Figures, duration
from klimb.training.progress.panel import Board, NotebookPanel, TerminalPanel, columns_within
from klimb.training.progress.view import SILENT, Lines, Rhythm, View, Views, log_lines

WIDTHS = (20, 30, 40, 50, 60, 80, 100, 140)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def config(rule=None, *, iterations: int = 100, **options) -> RunConfig:
    options = {"num_envs": 4, "num_steps": 512, "env_steps": 2048 * iterations, **options}
    return RunConfig("CartPole-v1", rule or TRPO(max_kl=0.01), TrainOptions(**options))


def record(iteration: int, *, seconds: float = 1.0, first: float = 5.0, value: float | None = 200.0, **more) -> dict:
    """Of an iteration that takes some seconds; the first one takes longer."""
    return {
        "iteration": iteration,
        "env_steps": 2048 * iteration,
        "wall_time": first + seconds * (iteration - 1),
        "steps_per_second": 2048 / seconds,
        "episode_return": value,
        "kl_old_new": 0.0123,
        "kl_new_old": 0.5,
        "status": "ACCEPTED",
        **more,
    }


def test_the_time_left_counts_from_after_the_first_iteration():
    """100 iterations of 2 s each, of which the first took a minute to compile: after 10 there are 90 × 2 s left."""
    figures = Figures(config())
    figures.take_in(record(1, seconds=2.0, first=60.0))
    assert figures.row["time left"] == "–"
    for i in range(2, 11):
        figures.take_in(record(i, seconds=2.0, first=60.0))
    assert figures.row["time left"] == "0:03:00"
    assert figures.fraction_done == pytest.approx(0.1)
    # A run that is resumed at iteration 50 has made half of it before, in time that is no part of this.
    resumed = Figures(config())
    for i in (51, 52):
        resumed.take_in(record(i, seconds=3.0))
    assert resumed.row["time left"] == duration(48 * 3.0)


def test_figures_are_means_over_seeds_and_newest_records():
    figures = Figures(config(num_seeds=2))
    for i in range(1, 41):
        status = ["KL_TOO_LARGE", "CRITIC_WARMUP"] if i == 1 else ["ACCEPTED", "FINISHED"]
        figures.take_in(record(i, episode_return=[float(i), None], kl_old_new=[0.01, 0.03], status=status))
    row = figures.row
    assert row["return"] == "30.5"  # of iterations 21 to 40
    assert row["KL"] == "0.0200 / 0.01"
    assert row["rejected"] == "1"
    assert row["iteration"] == "40/100"
    assert row["env steps"] == "81,920"
    assert figures.titles == ("TRPO on CartPole-v1 · 2 seeds", "TRPO on CartPole-v1", "TRPO")
    nothing = Figures(config())
    nothing.take_in(record(1, value=None, kl_old_new=None))
    assert (nothing.row["return"], nothing.row["KL"]) == ("–", "– / 0.01")


def test_every_figure_has_its_importance():
    """Else it would never be shown in a panel."""
    for rule in (TRPO(), PPO(), BehaviourCloning()):
        figures = Figures(config(rule, **{"demonstrations": "some"} if rule == BehaviourCloning() else {}))
        figures.take_in(record(1, held_out_log_likelihood=-0.5, waited=3))
        assert sorted(figures.row) == sorted(figures.by_importance)


def test_a_line_is_due_after_a_twentieth_but_neither_too_soon_nor_too_late():
    clock = Clock()
    rhythm = Rhythm(clock)
    for now, done, due in (
        (4.9, 0.5, False),  # too soon
        (5.0, 0.5, True),
        (20.0, 0.549, False),  # too little
        (20.0, 0.551, True),
        (79.9, 0.552, False),
        (80.0, 0.552, True),  # a minute later
    ):
        clock.now = now
        assert rhythm.due(done) == due, (now, done)


def lines_of(records: list[list[dict]], level: int, seconds: float, *, finished: bool = True) -> list[tuple[int, str]]:
    """What is written of calls of some seconds each, of 20 iterations that are saved every 5."""
    clock, written = Clock(), []
    lines = Lines(lambda *line: written.append(line), level, clock)
    lines.begin(config(iterations=20), 0, [Path("runs/one")])
    lines.doing("compiling")
    for call in records:
        clock.now += seconds
        lines.update(call)
        if call[-1]["iteration"] % 5 == 0:
            lines.saved(call[-1]["iteration"], [Path("runs/one")])
    lines.end(finished=finished)
    return written


CALLS = [[record(i)] for i in range(1, 21)]


def test_a_fast_training_gets_few_lines_and_a_slow_one_all():
    start = ["training trpo on CartPole-v1: 20 iterations, in runs/one", "compiling …"]
    end = ["checkpoint of iteration 20 written to runs/one", "trained: 20 iterations in 0:00:24"]
    fast = [line for _, line in lines_of(CALLS, logging.INFO, 1.0)]
    assert fast[:2] == start
    assert fast[-2:] == end
    # After the first iteration, and then every 5 s.
    shown = [int(re.match(r"iteration (\d+)/20  env steps", line)[1]) for line in fast if line.startswith("iteration")]
    assert shown == [1, 6, 11, 16, 20]
    slow = [line for _, line in lines_of(CALLS, logging.INFO, 10.0)]
    assert sum(line.startswith("iteration") for line in slow) == 20
    assert sum(line.startswith("checkpoint") for line in slow) == 4


def test_details_are_every_iteration_and_every_checkpoint():
    written = lines_of([[record(i) for i in range(1, 11)], [record(i) for i in range(11, 21)]], logging.DEBUG, 1.0)
    rows = [(level, line) for level, line in written if line.startswith("iteration")]
    assert [line.split()[1] for _, line in rows] == [f"{i}/20" for i in range(1, 21)]
    # The lines that are due are no details: the same ones as without them.
    due = [line for level, line in rows if level == logging.INFO]
    assert [line.split()[1] for line in due] == ["20/20"]
    assert sum(line.startswith("checkpoint") for _, line in written) == 2


def test_the_last_iteration_of_a_training_that_is_stopped_has_a_line():
    written = [line for _, line in lines_of(CALLS[:3], logging.INFO, 1.0, finished=False)]
    assert written[-1].startswith("iteration 3/20")
    assert written[-2].startswith("iteration 1/20")


def test_nothing_is_written_below_the_level():
    assert lines_of(CALLS, logging.WARNING, 10.0) == []


def test_an_evaluation_has_a_sign_of_life_once_it_takes_long():
    clock, written = Clock(), []
    lines = Lines(lambda _, line: written.append(line), logging.INFO, clock)
    for done in range(101):
        lines.episodes(done, 100)
        clock.now += 0.5
    assert written == [f"evaluating: {done} of 100 episodes" for done in range(10, 101, 10)]


def rendered(board: Board, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(board)
    return out.getvalue()


@pytest.fixture
def board():
    """A panel with long numbers in it, and the clock by which it goes."""
    clock = Clock()
    board = Board(clock)
    board.begin(config(num_seeds=3, iterations=12_345))
    more = {"steps_per_second": 1_234_567.0, "kl_old_new": [0.01] * 3, "status": ["NO_IMPROVEMENT"] * 3}
    board.update([record(i, episode_return=[-123_456.7] * 3, **more) for i in (1233, 1234)])
    return board, clock


@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrow_panel_leaves_columns_out_and_cuts_no_number(width, board):
    board, clock = board
    clock.now = 100.0
    text = rendered(board, width)
    whole = {"1234/12345", "2,527,232", "1,234,567", "-123456.7", "0.0100 / 0.01", "6", "3:05:11"}
    whole |= {"0:01:40", "1235", "3"}  # how long it has been in which iteration, and the seeds
    assert "…" not in text
    for number in re.findall(r"[-\d][\d,.:/]*(?: / [\d.]+)?", text.replace("CartPole-v1", "")):
        assert number in whole, (number, text)
    lines = text.splitlines()
    assert all(len(line) <= width - panel.MARGIN for line in lines)
    assert len(lines) == 5
    shown = sum(name in lines[1] for name in Figures(config()).by_importance)
    assert shown == {20: 1, 30: 2, 40: 2, 50: 3, 60: 4, 80: 5, 100: 7, 140: 7}[width], text


def test_the_most_important_columns_that_fit_stay_in_their_order():
    widths = {"a": 5, "b": 20, "c": 5}
    assert columns_within(5 + 3 + 20 + 3 + 5, widths, ("c", "b", "a")) == ["a", "b", "c"]
    assert columns_within(5 + 3 + 20 + 3 + 4, widths, ("c", "b", "a")) == ["b", "c"]
    assert columns_within(20, widths, ("c", "b", "a")) == ["a", "c"]
    assert columns_within(4, widths, ("c", "b", "a")) == []


def test_columns_do_not_move(board):
    board, _ = board
    before = rendered(board, 120).splitlines()[1]
    board.update([record(1235, value=1.0, steps_per_second=1.0)])
    assert rendered(board, 120).splitlines()[1] == before


def test_the_panel_says_what_goes_on():
    clock = Clock()
    board = Board(clock)
    assert rendered(board, 80) == "preparing … 0:00:00\n"
    board.begin(config())
    board.doing("compiling")
    clock.now = 75.0
    assert "│ compiling … 0:01:15 " in rendered(board, 80)
    board.update([record(1)])
    assert rendered(board, 80).splitlines()[-1].strip("╰╯─") == ""
    # An iteration that takes long, and an evaluation within the training.
    clock.now += 65.0
    assert "─ in iteration 2 for 0:01:05 ─" in rendered(board, 80)
    board.doing("evaluating: 1 of 9 episodes")
    clock.now += 2.0
    board.doing("evaluating: 2 of 9 episodes")
    assert "─ evaluating: 2 of 9 episodes … 0:00:02 ─" in rendered(board, 80)
    board.end()
    clock.now += 100.0
    assert rendered(board, 80).splitlines()[-1].strip("╰╯─") == ""


def test_only_figures_stay_in_the_terminal():
    for records, stays in (([], False), ([record(1)], True)):
        out = io.StringIO()
        with TerminalPanel(Console(file=out, width=80, force_terminal=True, color_system=None)) as view:
            view.begin(config(), 0, [])
            for one in records:
                view.update([one])
            view.end(finished=True)
        # What does not stay is erased line by line.
        assert out.getvalue().endswith("\x1b[2K") != stays


def test_brackets_in_names_are_no_markup():
    board = Board()
    board.begin(RunConfig("my_package:Env[/red]", TRPO(), TrainOptions()))
    assert "TRPO on my_package:Env[/red]" in rendered(board, 80)


def test_a_notebook_gets_a_picture_that_is_drawn_again():
    shown, clock = [], Clock()

    class Handle:
        def update(self, thing) -> None:
            shown.append(thing._repr_mimebundle_([], []))

    def display(thing, display_id):
        assert display_id
        return Handle()

    with NotebookPanel(display, clock) as view:
        view.begin(config(), 0, [])
        for i in range(1, 101):
            clock.now += 0.05
            view.update([record(i)])
    assert set(shown[-1]) == {"text/html", "text/plain"}
    assert "100/100" in shown[-1]["text/html"]
    # Not each time: some times a second.
    assert 15 < len(shown) < 25


def test_the_view_suits_the_place(monkeypatch):
    terminal = Console(force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(terminal.file, "isatty", lambda: True, raising=False)
    assert isinstance(choice.view_on(terminal), TerminalPanel)
    # Colours that are forced into a file, and a terminal that can't draw again.
    assert isinstance(choice.view_on(Console(force_terminal=True, file=io.StringIO())), Lines)
    dumb = Console(force_terminal=True, file=terminal.file, _environ={"TERM": "dumb"})
    assert isinstance(choice.view_on(dumb), Lines)
    notebook = Console(force_jupyter=True, file=io.StringIO())
    monkeypatch.setattr(choice, "notebook_display", lambda: print)
    assert isinstance(choice.view_on(notebook), NotebookPanel)
    monkeypatch.setattr(choice, "notebook_display", lambda: None)
    assert isinstance(choice.view_on(notebook), Lines)
    assert choice.view_of(False) is SILENT
    assert choice.view_of(SILENT) is SILENT


class Told(View):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told = []

    def begin(self, config, iteration, directories, parts=()):
        self.told.append(("begin", iteration, len(directories)))

    def doing(self, what):
        self.told.append(("doing", what))

    def update(self, records):
        self.told += [("iteration", one["iteration"]) for one in records]

    def saved(self, iteration, directories):
        self.told.append(("saved", iteration, len(directories)))

    def end(self, *, finished):
        self.told.append(("end", finished))

    def episodes(self, done, total):
        self.told.append(("episodes", done, total))


def test_several_views_are_all_told_everything():
    first, second = Told(), Told()
    views = Views(first, second)
    views.begin(config(), 3, [])
    views.doing("compiling")
    views.episodes(1, 2)
    views.update([record(4)])
    views.saved(4, [Path("a"), Path("b")])
    views.end(finished=False)
    assert first.told == second.told
    assert [name for name, *_ in first.told] == ["begin", "doing", "episodes", "iteration", "saved", "end"]


SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}


@pytest.mark.slow
def test_a_training_and_its_resumption_tell_the_logger_and_the_view(tmp_path, caplog, capsys, monkeypatch):
    """A line of INFO and one on standard error for what `progress=True` shows; the run itself prints nothing else."""
    # Logger and standard error look at the clock by themselves: on a busy machine one has a line that comes after time.
    monkeypatch.setattr(Rhythm, "SHORTEST", float("inf"))
    monkeypatch.setattr(Rhythm, "LONGEST", float("inf"))
    path = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="klimb"):
        klimb.train("CartPole-v1", Reinforce(), env_steps=96, checkpoint_every=2, run_dir=path, progress=True, **SMALL)
    lines = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.INFO]
    assert lines[0] == f"training reinforce on CartPole-v1: 3 iterations, in {path}"
    assert lines[1] == "compiling …"
    assert lines[2].startswith("iteration 1/3  env steps ")
    assert lines[-3].startswith("iteration 3/3  env steps ")
    assert lines[-2] == f"checkpoint of iteration 3 written to {path}"
    assert re.fullmatch(r"trained: 3 iterations in 0:00:\d\d", lines[-1])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == lines
    view = Told()
    caplog.clear()
    klimb.resume(path, progress=view)
    assert view.told == [("begin", 3, 1), ("end", True)]
    assert not caplog.records


def test_a_training_that_fails_ends_its_view(tmp_path):
    view = Told()

    def fail(records) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        klimb.train("CartPole-v1", Reinforce(), env_steps=96, progress=view, callback=fail, **SMALL)
    assert view.told == [("begin", 0, 0), ("doing", "compiling"), ("iteration", 1), ("end", False)]


@pytest.mark.parametrize(("level", "lowest"), [(logging.DEBUG, 10), (logging.INFO, 20), (logging.WARNING, 30)])
def test_a_logger_gets_what_it_listens_to(level, lowest, caplog):
    logger = logging.getLogger("klimb.tests")
    with caplog.at_level(level, logger="klimb.tests"):
        lines = log_lines(logger)
        lines.begin(config(), 0, [])
        lines.update([record(1), record(2)])
    assert {entry.levelno for entry in caplog.records} == {at for at in (10, 20) if at >= lowest}


@pytest.mark.slow
def test_verbose_lines_say_how_long_was_compiled():
    import jax
    import jax.numpy as jnp

    written = []
    with Lines(lambda _, line: written.append(line), logging.DEBUG) as lines:
        lines.begin(config(), 0, [])
        jax.jit(lambda x: jnp.sin(x) * 3.25)(1.0)
        lines.update([record(1)])
        jax.jit(lambda x: jnp.sin(x) * 4.25)(1.0)
        lines.update([record(2)])
    said = [re.fullmatch(r"compiled (\d+) programs in \d+\.\d s", line) for line in written]
    assert [int(found[1]) >= 1 for found in said if found] == [True]
