"""The page of a search: what it says of the trials, and that a browser draws every chart of it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from browser import CHROMIUM, browse
from klimb import PPO, RunConfig, RunError, TrainOptions, Trial
from klimb.cli.main import main
from klimb.cli.parser import Command
from klimb.report.tuning_page import write_tuning_report
from klimb.runs.search_space import search_space
from klimb.runs.tune_file import Tuning, read_trials, write_trials

pytest.importorskip("optuna", reason="an extra of klimb")
OVER = {"clip_eps": "log:0.01:0.5", "gamma": "0.9:0.999", "epochs": "1:8", "hidden": [(64, 64), (8,)]}
HOSTILE = "</script><script>document.title = 'taken'</script>"


def made_up(folder: Path, count: int = 20) -> Path:
    """A search of some trials without runs: the more clipping the better, and a few that were pruned or failed."""
    config = RunConfig("jax:CartPole-v1", PPO(), TrainOptions(num_seeds=2))
    tuning = Tuning(config, search_space(config, OVER), count, 5, True)
    tuning.write(folder)
    trials = []
    for i in range(count):
        values = {
            "clip_eps": 0.01 * 1.2**i,
            "gamma": 0.9 + i / 250,
            "epochs": 1 + i % 8,
            "hidden": [[64, 64], [8]][i % 2],
        }
        state = {3: "pruned", 4: "pruned", 5: "failed", count - 1: "running"}.get(i, "complete")
        rungs = ((25, 10.0 + i), (50, 20.0 + i)) if i % 2 else ((25, 10.0 + i),)
        note = f"it could not be trained {HOSTILE}" if state == "failed" else None
        score = -1e6 if i == 7 else 100.0 + i
        times = (f"2026-11-29T10:{i:02}:00+00:00", f"2026-11-29T10:{i + 1:02}:00+00:00")
        trials.append(Trial(i, values, state, score if state == "complete" else None, rungs, note, *times))
    write_trials(folder, trials)
    return folder


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_says_what_the_trials_are(tmp_path):
    folder = made_up(tmp_path / "tune")
    page = write_tuning_report(folder).read_text()
    data, trials = data_of(page), read_trials(folder, Tuning.read(folder))
    history, bars, *slices = data["charts"]
    assert history["points"]["y"][0] == 100
    assert history["points"]["group"][3:5] == [1, 1]
    assert history["points"]["y"][3:5] == [23, 14]
    assert 5 not in history["points"]["trial"]
    assert history["best"]["values"][:3] == [100, 101, 102]
    assert history["best"]["values"][-1] == 118
    assert {row["label"] for row in bars["rows"]} == set(OVER)
    assert sum(row["value"] for row in bars["rows"]) == pytest.approx(1, abs=1e-3)
    assert [chart["title"] for chart in slices] == list(OVER)
    assert slices[3]["xTicks"] == [[0, "64x64"], [1, "8"]]
    assert "17 trained to the end" not in page
    assert "16 trained to the end, 2 pruned, 1 failed, 1 running" in page
    rows = re.findall(r"<tr[^>]*><td>(?:<a [^>]*>)?(trial-\d+)", page)
    assert rows[0] == "trial-0018"
    assert rows[-4:] == ["trial-0003", "trial-0004", "trial-0005", "trial-0019"]
    assert len(rows) == len(trials)
    assert HOSTILE not in page
    assert "pruned after 50 % with 23" in page


def test_its_commands_are_those_of_the_best_and_of_the_search(tmp_path):
    """What is written is read again by the parser, as what it was written from."""
    folder = made_up(tmp_path / "tune")
    tuning, page = Tuning.read(folder), write_tuning_report(folder).read_text()
    blocks = re.findall(r'<pre class="command"><code>(.*?)</code></pre>', page)
    best, search = (shlex.split(re.sub(r"<[^>]+>", "", block).replace("&#x27;", "'")) for block in blocks)
    from klimb.cli.train import COMMAND as TRAIN
    from klimb.cli.tune import COMMAND as TUNE
    from klimb.cli.tune import _over

    train: Command = TRAIN
    arguments = train.parse(best[2:])
    trial = max(read_trials(folder, tuning), key=lambda one: one.score or 0)
    assert RunConfig("jax:CartPole-v1", arguments.rule, arguments.training) == tuning.config_of(trial)
    again = TUNE.parse(search[2:])
    assert search_space(tuning.config, _over(tuning.config, again.over)) == tuning.over
    assert (again.trials, again.trials_at_once, again.prune) == (20, 5, True)
    assert again.training == tuning.config.options


def test_a_search_without_trials_has_no_report(tmp_path, capsys):
    folder = made_up(tmp_path / "tune", 6)
    write_trials(folder, [])
    with pytest.raises(RunError, match="has no trial yet: klimb resume makes them"):
        write_tuning_report(folder)
    assert main(["report", str(folder)]) == 2
    write_trials(folder, [Trial(0, {"clip_eps": 0.1, "gamma": 0.95, "epochs": 2, "hidden": [8]})])
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "No trial has been trained to its end." in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_browser_draws_every_chart(tmp_path):
    document, console = browse(write_tuning_report(made_up(tmp_path / "tune")), tmp_path / "profile")
    assert not re.search(r"CONSOLE.*(error|refused)|Uncaught", console, re.IGNORECASE), console
    assert 'data-rendered="true"' in document
    assert "<title>taken" not in document
    cards = document.split("data-chart=")[1:]
    assert len(cards) == 6
    for card in cards:
        figure = card.split("</figure>")[0]
        assert re.search(r'<path [^>]*d="M[^"]+"[^>]*data-layer|<path [^>]*data-layer[^>]*d="M', figure), figure[:400]
        assert "NaN" not in figure
        assert "Infinity" not in figure


def test_without_optuna_the_page_has_no_importance(tmp_path, monkeypatch):
    folder = made_up(tmp_path / "tune")
    monkeypatch.setitem(sys.modules, "optuna", None)
    page = write_tuning_report(folder).read_text()
    assert "The importance of fields is not computed: klimb tune needs Optuna: pip install" in page
    assert len(data_of(page)["charts"]) == 5
