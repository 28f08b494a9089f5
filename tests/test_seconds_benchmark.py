"""The benchmark of seconds until a task is solved: its clock, going on after a stop, limits, and its pages."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

import results_file
import seconds
import seconds_figure
import seconds_page
from klimb.cli.commands import load
from klimb.cli.train import configuration
from seconds_results import Median, fastest_ratio, is_settled, median
from seconds_tasks import TASKS, Contender, Task

WORKERS = results_file.HERE / "workers"
OURS, PEER, SLOW = (
    Contender("klimb TRPO", "fake.py"),
    Contender("rejax PPO", "fake.py"),
    Contender("SB3 PPO", "fake.py"),
)
TASK = Task("Toy-v0", 10.0, 5, 100, 3, 1000, 60.0, (OURS, PEER, SLOW))
KLIMB = [(task, contender) for task in TASKS for contender in task.contenders if contender.is_ours]


def load_worker(name: str):
    """A module of benchmarks/workers that needs no peer."""
    spec = importlib.util.spec_from_file_location(name, WORKERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


until_solved = load_worker("until_solved")
GOAL = until_solved.Goal("Toy-v0", threshold=10.0, episodes=5, every=100, max_steps=1000, max_seconds=60.0)


def answer(seed: int, took: float | None, used: float = 60.0) -> dict:
    """What a worker says. took: None where the seed was not solved."""
    solved = {"seconds": took, "steps": None if took is None else round(1000 * took)}
    spent = {"used_seconds": used if took is None else took, "used_steps": 1000}
    return {"seed": seed, **solved, **spent, "curve": []}


class FakeSolver:
    """Answers from a table: (contender, seed) -> seconds, or an exception. It notes who was asked."""

    asked: ClassVar[list[tuple[str, int]]]
    takes: ClassVar[dict[tuple[str, int], float | BaseException | None]]

    def __init__(self, task, contender):
        self.name = contender.name

    def solve(self, seed):
        self.asked.append((self.name, seed))
        took = self.takes[self.name, seed]
        if isinstance(took, BaseException):
            raise took
        return answer(seed, took)

    def stop(self):
        pass


@pytest.fixture
def solvers(tmp_path, monkeypatch):
    """Three contenders: klimb solves all seeds, one peer does too, and one never."""
    monkeypatch.setattr(results_file, "HERE", tmp_path)
    monkeypatch.setattr(seconds, "Solver", FakeSolver)
    monkeypatch.setattr(FakeSolver, "asked", [], raising=False)
    takes = {(one.name, seed): None if one is SLOW else 1.0 + seed for one in TASK.contenders for seed in range(3)}
    monkeypatch.setattr(FakeSolver, "takes", takes, raising=False)
    return FakeSolver


def test_the_clock_stands_still_during_evaluations():
    def evaluate():
        time.sleep(0.05)
        return 0.0

    clock = until_solved.Clock(GOAL, evaluate)
    assert not clock.over(0)
    assert clock.curve == []
    time.sleep(0.01)
    assert not clock.over(150)
    # Not due before a multiple of 100 steps is reached.
    assert not clock.over(199)
    assert not clock.over(200)
    assert [steps for steps, _, _ in clock.curve] == [150, 200]
    assert 0.01 <= clock.seconds < 0.05


def test_a_seed_is_solved_where_an_evaluation_first_reaches_the_threshold():
    returns = iter([3.0, 10.0])
    clock = until_solved.Clock(GOAL, lambda: next(returns))
    assert not clock.over(100)
    assert clock.over(220)
    said = json.loads(clock.answer(7))
    assert (said["seed"], said["steps"], said["seconds"]) == (7, 220, said["used_seconds"])


@pytest.mark.parametrize("limit", [{"max_steps": 500}, {"max_seconds": 0.0}])
def test_limits_end_a_training_that_is_not_solved(limit):
    goal = until_solved.Goal(**{**vars(GOAL), **limit})
    clock = until_solved.Clock(goal, lambda: 0.0)
    assert clock.over(500)
    said = json.loads(clock.answer(0))
    assert said["seconds"] is said["steps"] is None
    assert said["used_steps"] == 500
    assert said["used_seconds"] >= 0


def test_contenders_take_turns_and_the_rest_of_one_that_fails_is_left_out(solvers):
    table = seconds.Table()
    assert seconds.measure(TASK, TASK.contenders, table, time.time() + 60) == []
    names = [OURS.name, PEER.name, SLOW.name]
    # Two of three seeds have no time, so that the median has none either.
    assert solvers.asked == [(name, seed) for seed in (0, 1) for name in names] + [(OURS.name, 2), (PEER.name, 2)]
    assert all(table.missing(TASK, one) == [] for one in TASK.contenders)


def test_what_is_finished_is_not_measured_again(solvers):
    solvers.takes[PEER.name, 1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        seconds.measure(TASK, TASK.contenders, seconds.Table(), time.time() + 60)
    assert solvers.asked[-1] == (PEER.name, 1)
    solvers.asked.clear()
    solvers.takes[PEER.name, 1] = 2.0
    seconds.measure(TASK, TASK.contenders, seconds.Table(), time.time() + 60)
    assert solvers.asked == [(PEER.name, 1), (SLOW.name, 1), (OURS.name, 2), (PEER.name, 2)]
    rows = seconds.Table().rows
    assert len(rows) == len({(row["contender"], row["seed"]) for row in rows}) == 8


def test_other_settings_are_measured_anew(solvers):
    table = seconds.Table()
    seconds.measure(TASK, [OURS], table, time.time() + 60)
    changed = Contender(OURS.name, OURS.script, {"command": "other"})
    assert seconds.Table().missing(TASK, changed) == [0, 1, 2]
    table.add(TASK, changed, answer(0, 1.0))
    # The old rows are of no use any more.
    assert [row["argument"].get("command") for row in seconds.Table().rows] == ["other"]


def test_again_forgets_at_once(solvers):
    table = seconds.Table()
    seconds.measure(TASK, [OURS, PEER], table, time.time() + 60)
    table.forget([(TASK, OURS)])
    assert {row["contender"] for row in seconds.Table().rows} == {PEER.name}


def test_a_contender_that_fails_stops_no_other(solvers):
    solvers.takes[PEER.name, 0] = SystemExit("rejax PPO ended")
    failed = seconds.measure(TASK, [OURS, PEER], seconds.Table(), time.time() + 60)
    assert failed == ["Toy-v0: rejax PPO ended"]
    assert seconds.Table().missing(TASK, OURS) == []
    assert seconds.Table().missing(TASK, PEER) == [0, 1, 2]


def test_nothing_starts_after_the_deadline(solvers):
    seconds.measure(TASK, TASK.contenders, seconds.Table(), time.time() - 1)
    assert solvers.asked == []


def test_tasks_are_chosen_by_how_they_begin():
    assert seconds.chosen(["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"], ["H"], "task") == [
        "Hopper-v5",
        "HalfCheetah-v5",
    ]
    assert seconds.chosen(["Hopper-v5"], None, "task") == ["Hopper-v5"]
    with pytest.raises(SystemExit, match="no task begins with 'Ant'; there are Hopper-v5"):
        seconds.chosen(["Hopper-v5"], ["Ant"], "task")


def test_medians_where_seeds_are_not_solved():
    solved = [answer(seed, float(seed)) for seed in range(1, 4)]
    assert median(solved, 3) == Median(2.0, 1000, False, 3, 3)
    assert median(solved[:2], 3) is None
    # One of three: the middle one is solved.
    one = [answer(0, None, 60.0), *solved[:2]]
    assert median(one, 3) == Median(2.0, 1000, False, 2, 3)
    # Two of three: larger than the smaller limit, whatever the third is.
    two = [answer(0, None, 60.0), answer(1, None, 61.0)]
    assert is_settled(two, 3)
    assert median(two, 3) == Median(60.0, 1000, True, 0, 2)
    # Half of an even number: the middle lies between a solved seed and a limit.
    half = [answer(0, 1.0), answer(1, None, 60.0)]
    assert not is_settled(half, 2)
    assert median(half, 2) == Median(30.5, 1000, True, 1, 2)


def test_ratios_are_of_the_faster_rule_to_the_fastest_peer():
    def of(value: float, bound: bool = False) -> Median:
        return Median(value, 1.0, bound, 3, 3)

    medians = {"klimb TRPO": of(2.0), "klimb PPO": of(1.0), "A": of(8.0), "B": of(5.0)}
    ours = {"klimb TRPO", "klimb PPO"}
    assert fastest_ratio(medians, ours) == (0.2, False, "klimb PPO", "B")
    # A peer that was stopped may be the fastest one: the ratio is only known to be smaller than with its limit.
    assert fastest_ratio(medians | {"B": of(4.0, bound=True)}, ours) == (0.25, True, "klimb PPO", "B")
    assert fastest_ratio(medians | {"klimb PPO": of(1.0, bound=True)}, ours).ours == "klimb TRPO"
    assert fastest_ratio({"klimb PPO": of(1.0)}, ours) is None
    assert fastest_ratio({"klimb PPO": of(1.0, bound=True), "A": of(1.0)}, ours) is None


def rows_of(takes: dict[Contender, list[float | None]]) -> list[dict]:
    """Rows as the table has them."""
    return [
        {"task": TASK.name, "contender": one.name, **answer(seed, took), "argument": TASK.argument(one)}
        for one, values in takes.items()
        for seed, took in enumerate(values)
    ]


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """Pages with marks, and one task with the commands of klimb."""
    ours = Contender(OURS.name, OURS.script, {"command": "klimb train trpo Toy-v0"})
    task = Task(TASK.name, TASK.threshold, 5, 100, 3, 1000, 60.0, (ours, PEER, SLOW))
    monkeypatch.setattr(seconds_page, "TASKS", (task,))
    monkeypatch.setattr(seconds_page, "SHOWN", (task.name,))
    monkeypatch.setattr(seconds_page, "ROOT", tmp_path)
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    for name in ("README.md", "docs/performance.md", "docs/index.md"):
        (tmp_path / name).write_text("before\n<!-- seconds -->\n<!-- end of seconds -->\nafter\n")
    rows = rows_of({PEER: [20.0, 10.0, 40.0], SLOW: [None, None]})
    rows += [row | {"argument": task.argument(ours)} for row in rows_of({ours: [3.0, 1.0, 2.0]})]
    return tmp_path, rows


def test_pages_show_medians_and_lower_bounds(documents):
    root, rows = documents
    seconds_page.write(rows)
    page = (root / "docs" / "seconds.md").read_text()
    assert "| klimb TRPO | 2.00 | 1 000 | 3 of 3 |" in page
    assert "| rejax PPO | 20.0 | 1 000 | 3 of 3 |" in page
    assert "| SB3 PPO | > 60.0 | – | 0 of 2 that were trained |" in page
    assert "    klimb train trpo Toy-v0" in page
    line = "| Toy-v0 | 10 | 2.00 (TRPO) | 1 000 | 20.0 (rejax PPO) | 1 000 | 0.1 |"
    for name in ("docs/seconds.md", "docs/performance.md", "docs/index.md"):
        assert line in (root / name).read_text()
    readme = (root / "README.md").read_text()
    assert "Toy-v0 (a return of 10) takes 2.00 s. On all 1 tasks klimb takes at most 0.1 of the time" in readme
    assert readme.startswith("before\n<!-- seconds -->\n")
    assert readme.endswith("\n<!-- end of seconds -->\nafter\n")
    assert (root / "docs" / "figures" / "seconds.png").stat().st_size > 5000
    # Writing them twice changes nothing.
    seconds_page.write(rows)
    assert (root / "README.md").read_text() == readme


def test_readme_waits_until_everything_is_measured(documents):
    root, rows = documents
    seconds_page.write([row for row in rows if row["contender"] != SLOW.name])
    assert (root / "README.md").read_text() == "before\n<!-- seconds -->\n<!-- end of seconds -->\nafter\n"
    assert not (root / "docs" / "figures" / "seconds.png").exists()
    # Who is known stands in the table, but there is no ratio yet.
    page = (root / "docs" / "seconds.md").read_text()
    assert "| rejax PPO | 20.0 |" in page
    assert "(rejax PPO)" not in page


def test_pages_are_those_of_the_results(tmp_path, monkeypatch):
    """docs and rows do not go apart."""
    names = ("docs/seconds.md", "docs/performance.md", "docs/index.md", "README.md")
    root = Path(__file__).parent.parent
    (tmp_path / "docs").mkdir()
    for name in names:
        (tmp_path / name).write_text((root / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(seconds_page, "ROOT", tmp_path)
    monkeypatch.setattr(seconds_figure, "draw", lambda found, path: None)
    seconds_page.write(seconds.Table().rows)
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (root / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("task", "ours"), KLIMB, ids=lambda one: one.name)
def test_commands_of_klimb_are_valid(task, ours):
    """And train as long as the limit of steps, with a preset on MuJoCo only."""
    arguments = load("train").parse(shlex.split(ours.task["command"])[2:])
    config, _ = configuration(arguments)
    assert config.env.endswith(task.name)
    assert config.options.env_steps == task.max_steps
    assert (arguments.applied is not None) == config.env.startswith("gymnasium:")


def test_every_contender_has_a_worker_and_a_name_of_its_own():
    assert len({task.name for task in TASKS}) == len(TASKS)
    for task in TASKS:
        assert len({one.name for one in task.contenders}) == len(task.contenders)
        for one in task.contenders:
            assert (WORKERS / one.script).exists()
            assert json.loads(json.dumps(task.argument(one))) == task.argument(one)


def test_schedules_of_the_zoo_end_with_the_limit_of_steps():
    """lin_VALUE decreases over n_timesteps of the zoo, and in the worker over the limit of steps: CartPole-v1 alone."""
    with_schedule = [
        task.name
        for task in TASKS
        for one in task.contenders
        if any(str(value).startswith("lin_") for value in one.task.get("settings", {}).values())
    ]
    assert set(with_schedule) == {"CartPole-v1"}
    assert next(task for task in TASKS if task.name == "CartPole-v1").max_steps == 100_000
