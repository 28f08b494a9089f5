"""`klimb tune`: how ranges are typed, what a search leaves, and that other commands take its directory."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from klimb.cli.main import main
from klimb.cli.tune import Searched, _searched
from klimb.runs.tune_file import Tuning

pytest.importorskip("optuna", reason="an extra of klimb")
SMALL = shlex.split("--num-envs 4 --num-steps 32 --hidden 4 --advantage reward_to_go --bootstrap none --no-certificate")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Runs go to runs/ in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


def test_ranges_and_values_are_typed():
    assert _searched(["max_kl:log:1e-3:1e-1"]) == Searched((("max_kl", "log:1e-3:1e-1"),), ())
    assert _searched(["max-kl:0:1", "gamma:0.9:1"]) == Searched((("max_kl", "0:1"), ("gamma", "0.9:1")), ())
    assert _searched(["critic-hidden", "64,64", "8"]) == Searched((("critic_hidden", ""),), ("64,64", "8"))
    assert _searched(["policy", "my:net", "my:other"]) == Searched((("policy", ""),), ("my:net", "my:other"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trpo CartPole-v1", "klimb tune needs what to search over: --over max_kl:log:1e-3:1e-1"),
        ("trpo CartPole-v1 --over max_kl", "it takes a field and its range, or a field and its values"),
        ("trpo CartPole-v1 --over max_kl 0.1", "it takes a field and its range, or a field and its values"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 gamma", "'gamma' stands among ranges and is none"),
        ("trpo CartPole-v1 --over max_kl:0.1", "max_kl: '0.1' is no range"),
        ("trpo CartPole-v1 --over max_kl:0.2:0.1", "max_kl: the range 0.2 to 0.1 is empty"),
        ("trpo CartPole-v1 --over max_kl:0:0.1", "max_kl = 0.0: input should be greater than 0"),
        ("trpo CartPole-v1 --over max_kk:0.1:0.2", "no option 'max_kk'; did you mean 'max_kl'"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 --over max_kl:0.1:0.2", "--over max_kl is given twice"),
        ("trpo CartPole-v1 --over hidden:1:2", "hidden is no number and has no range"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 --trials 0", "trials = 0; a search has 1 to 4096"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 --eval-episodes 0", "give --eval-episodes 1 or more"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 --overlap", "leave --overlap off"),
        ("trpo CartPole-v1 --over max_kl:0.1:0.2 --trals 3", "no flag --trals; did you mean '--trials'"),
    ],
)
def test_searches_that_cannot_be_get_one_line_and_leave_nothing(words, said, capsys):
    assert main(["tune", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(Path("runs").glob("*"))


@pytest.mark.slow
def test_a_search_leaves_runs_a_report_and_the_best(capsys):
    words = ["tune", "reinforce", "CartPole-v1", "--over", "learning_rate:log:1e-3:1e-1", "gamma:0.9:0.999", *SMALL]
    assert main([*words, "--env-steps", "512", "--eval-episodes", "2", "--trials", "3", "--trials-at-once", "2"]) == 0
    out = capsys.readouterr().out
    folder = Path("runs/tune-reinforce-CartPole-v1")
    assert re.search(r"trial-0000   mean return [\d.]+: learning_rate 0.\d+, gamma 0.9\d*\n", out)
    assert "training     trial-0000, trial-0001 (2 of 2 trials begun)" in out
    assert re.search(rf"best         trial-000\d, mean return .*\nreport       {folder}/report.html\n", out)
    assert f"again        klimb evaluate {folder}/best\n" in out
    assert Tuning.read(folder).trials == 3
    assert all((folder / f"trial-{i:04}" / "report.html").exists() for i in range(3))
    assert (folder / "report.html").read_text().count("/report.html") == 3
    # Other commands.
    assert main(["evaluate", str(folder / "best"), "--episodes", "2", "--seed", "10000", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["mean"]
    trials = json.loads((folder / "trials.json").read_text())
    assert best == max(trial["score"] for trial in trials)
    for paths in ([folder], sorted(folder.glob("[!.]*"))):
        assert main(["compare", *map(str, paths), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["score"] == "final evaluation"
        assert len(result["environments"][0]["algorithms"]) == 3
    assert main(["evaluate", str(folder)]) == 2
    assert "it is a search, which klimb resume continues" in capsys.readouterr().err
    assert main(["resume", str(folder), "--env-steps", "600"]) == 2
    assert "a sweep or a search keep their settings" in capsys.readouterr().err
    assert main(["resume", str(folder / "best" / ".." / "trial-0000"), "--trials", "9"]) == 2
    assert "is no search: leave --trials out" in capsys.readouterr().err
    assert main(["resume", str(folder), "--trials", "4"]) == 0
    assert "trial-0003   mean return" in capsys.readouterr().out
