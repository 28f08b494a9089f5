"""The benchmark of returns: valid commands, going on after a stop, and a page of what was measured."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time

import numpy as np
import pytest

import ablations_page
import results_file
import returns
import returns_page
from klimb.cli.commands import load
from klimb.cli.train import configuration
from results_file import Line
from returns_tasks import CONTROL, PARTS, Piece

FAKE_KLIMB = """#!{python}
import json, pathlib, signal, sys, time
command, *words = sys.argv[1:]
run = pathlib.Path(words[words.index("--run-dir") + 1] if command == "train" else words[0])
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
with open(run / "calls", "a") as file:
    file.write(command + " ")
if command == "train":
    (run / "checkpoints" / "1").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
if command == "evaluate":
    print(json.dumps({{"seeds": [{{"mean": 7.0, "standard_error": 0.5}}, {{"mean": 9.0, "standard_error": 0.5}}]}}))
else:
    record = dict(eval_return=[1, 5], eval_sampled_return=[0, 2], env_steps=10, status=["ACCEPTED", "KL_TOO_LARGE"])
    record |= dict(kl_old_new=[0.01, 0.03], entropy=[1, 1], explained_variance=[0.5, 0.7], wall_time=3.0)
    records = [record, record | dict(eval_return=[4, 3], env_steps=20), record | dict(eval_return=None)] * 5
    (run / "metrics.jsonl").write_text("\\n".join(map(json.dumps, records)))
    start = dict(date="2026-01-02", klimb="1", packages=dict(jax="2"))
    (run / "provenance.json").write_text(json.dumps([start]))
    (run / "evaluation.json").touch()
"""
ONE_OF_EACH = {(p.part, p.rule, p.task == "Swimmer", p.variant): p for pieces in PARTS.values() for p in pieces}
PIECE = Piece("v4", "trpo", "gymnasium:Hopper-v4", 20, 3, 2)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with a klimb that stands still until it is stopped, and then finishes when it is resumed."""
    klimb = tmp_path / "klimb"
    klimb.write_text(FAKE_KLIMB.format(python=sys.executable))
    klimb.chmod(0o755)
    monkeypatch.setattr(returns, "KLIMB", str(klimb))
    monkeypatch.setattr(returns, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(results_file, "HERE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("piece", ONE_OF_EACH.values(), ids=lambda piece: piece.name)
def test_commands_are_valid(piece):
    """And hyperparameters are those of a preset, which all rules of the table have; on classic control the defaults."""
    arguments = load("train").parse(shlex.split(piece.command)[2:])
    config, _ = configuration(arguments)
    assert config.options.num_seeds == piece.num_seeds
    assert (arguments.applied is not None) == (piece.part != "control")


def test_every_seed_is_trained_once():
    """Ten seeds of every task of version 4, and runs that do not share a directory."""
    for part in PARTS.values():
        assert len({piece.name for piece in part}) == len(part)
    seeds = [
        s + k for p in PARTS["v4"] if p.rule == "ppo" and "Ant-" in p.env for s in [p.seed] for k in range(p.num_seeds)
    ]
    assert seeds == list(range(10))


def test_a_run_that_was_stopped_is_resumed_and_measured(workplace):
    commands, table = returns.Commands(time.time() + 60), returns.Table()
    directory = workplace / "runs" / PIECE.name

    def stop():
        while not (directory / "checkpoints" / "1").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        commands.stop()

    threading.Thread(target=stop).start()
    with pytest.raises(returns.Stopped):
        returns.measure(PIECE, table, commands)
    assert not table.has(PIECE)
    returns.measure(PIECE, table, returns.Commands(time.time() + 60))
    assert (directory / "calls").read_text().split() == ["train", "resume", "evaluate"]
    (row,) = returns.Table().rows
    assert returns.Table().has(PIECE)
    assert row["best"] == [4, 5]
    assert row["final"] == [7, 9]
    assert row["rejected"] == 0.5
    assert row["kl"] == pytest.approx(0.02)
    assert row["eval_return"] == [[1, 5], [4, 3]] * 5
    # One line per piece.
    assert (
        sum('"rule": "trpo"' in line for line in (workplace / "results" / "returns.json").read_text().splitlines()) == 1
    )


def test_nothing_starts_after_the_deadline(workplace):
    with pytest.raises(returns.Stopped):
        returns.Commands(time.time() - 1).run("train", "trpo")
    assert not (workplace / "runs").exists()


def test_lines_are_the_same_json(workplace):
    rows = [Line(a=[1.5, None], b='é"\\x'), Line()]
    path = results_file.write_results("x", rows=rows, nested=[{"z": Line(y=1)}])
    read = json.loads(path.read_text())
    assert read["rows"] == rows
    assert read["nested"] == [{"z": {"y": 1}}]


def test_the_page_shows_means_over_all_seeds(tmp_path, monkeypatch):
    curve = [[0.0] * 5] * 9 + [[2000.0] * 5]
    row = {
        **vars(PARTS["v4"][0]),
        "command": PARTS["v4"][0].command,
        "eval_steps": list(range(10)),
        "eval_return": curve,
        "best": [5000.0] * 5,
        "final": [3000.0] * 5,
        "kl": 0.01,
        "rejected": 0.25,
    }
    other = row | {"seed": 5, "best": [4000.0] * 5, "final": [2000.0] * 5, "kl": 0.02}
    other["command"] = other["command"].replace("--seed 0", "--seed 5")
    monkeypatch.setattr(returns_page, "DOCS", tmp_path)
    monkeypatch.setattr(returns_page, "read_results", lambda name: {"rows": [other, row]})
    (tmp_path / "figures").mkdir()
    returns_page.main()
    page = (tmp_path / "results.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| HalfCheetah")]
    _, theirs, zoo, best, final, seeds, kl, rejected = [cell.strip() for cell in line.strip("|").split("|")]
    assert (theirs, zoo, seeds, kl, rejected) == ("4471 ± 805", "1785 ± 69.0", "10", "0.0150", "25.0 %")
    # Only the best evaluations are above the published mean.
    assert best.startswith("**4500 [")
    assert final.startswith("2500 [")
    assert (tmp_path / "figures" / "returns-v4-trpo.png").stat().st_size > 10_000
    (command,) = [line for line in page.splitlines() if line.startswith("    klimb train")]
    assert command.split()[2:4] == ["trpo", "gymnasium:TASK-v4"]
    assert "--seed" not in command


def test_the_page_is_that_of_the_results(tmp_path, monkeypatch):
    """docs/results.md and the rows do not go apart."""
    monkeypatch.setattr(returns_page, "DOCS", tmp_path)
    monkeypatch.setattr(returns_page, "draw", lambda rule, part, measured: tmp_path / f"returns-{part}-{rule}.png")
    returns_page.main()
    page = returns_page.HERE.parent / "docs" / "results.md"
    assert (tmp_path / "results.md").read_text() == page.read_text()


def test_intervals_are_of_the_mean():
    estimate = returns_page.mean(np.arange(10.0))
    assert estimate.value == 4.5
    assert 2.4 < estimate.low < 3.2
    assert 5.8 < estimate.high < 6.6


def test_ablations_are_relative_to_the_unchanged_training(tmp_path, monkeypatch):
    """Twice and half the return on two tasks, and the same on the third: 7/6 in the mean."""
    factors = {"HalfCheetah": 2.0, "Hopper": 0.5, "Walker2d": 1.0}
    rows = [
        {"part": "ablations", "rule": "ppo", "env": f"gymnasium:{task}-v5", "variant": variant, "final": final}
        for task, factor in factors.items()
        for variant, final in (("as-trained", [90.0, 110.0]), ("4-minibatches", [90 * factor, 110 * factor]))
    ]
    # Not measured on every task: not shown.
    rows.append(rows[0] | {"variant": "batch-1024"})
    monkeypatch.setattr(ablations_page, "DOCS", tmp_path)
    monkeypatch.setattr(ablations_page, "read_results", lambda name: {"rows": rows})
    ablations_page.main()
    page = (tmp_path / "ablations.md").read_text()
    assert page.count("\n## ") == 1
    (line,) = [line for line in page.splitlines() if line.startswith("| `--num-minibatches 4")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cell.split()[0] for cell in cells[1:]] == ["200", "50.0", "100", "1.17"]
    assert "batch" not in page.partition("## PPO")[2].partition("minibatches 4")[0]
    monkeypatch.setattr(ablations_page, "read_results", lambda name: {"rows": rows[:1]})
    (tmp_path / "ablations.md").unlink()
    ablations_page.main()
    assert not (tmp_path / "ablations.md").exists()


def test_classic_control_shows_rules_that_are_measured_everywhere():
    rows = [
        {"part": "control", "rule": rule, "env": f"jax:{task}", "final": [k + 1.0, k + 3.0]}
        for rule in ("trpo", "ppo")
        for k, task in enumerate(CONTROL)
    ]
    shown = returns_page.control(rows[:-1])
    (line,) = [line for line in shown if line.startswith(("| trpo", "| ppo"))]
    assert [cell.split()[0] for cell in line.strip("| ").split(" | ")] == ["trpo", "2.0", "3.0", "4.0", "5.0"]
    assert returns_page.control(rows[:3]) == []


def test_published_returns_stand_beside_those_of_their_own_version_and_length():
    row = {"env_steps": 1_000_000, "best": [9e3], "final": [9e3], "kl": 0.0, "rejected": 0.0, "num_seeds": 1}
    cell = returns_page.Cell("Hopper", [row])
    head, _, line = returns_page.table("ppo", "v4", [cell])
    assert "Tianshou |" in head
    assert "2609 ± 701" in line
    head, _, line = returns_page.table("trpo", "v5", [cell])
    assert "Tianshou" not in head
    assert "RL Zoo" not in head
    assert "**" not in line
    head, _, line = returns_page.table("reinforce", "v4", [cell])
    assert "Tianshou, 3M steps" in head
    assert "396 ± 64.5" in line
