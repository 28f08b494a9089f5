"""Searches with Optuna: what is proposed, which trials are pruned, and that a search repeats and resumes exactly."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import klimb
from klimb import ConfigError, Reinforce, RunConfig, RunError, TrainingFailed, TrainOptions, Trial
from klimb.runs.directory import RunDirectory
from klimb.runs.lock import RunLock
from klimb.runs.search_space import Choice, Range, search_space
from klimb.runs.tune_file import RUNGS, Tuning, read_trials, write_trials
from klimb.training import tune as tune_module
from klimb.training.optuna_study import importances, journal, propose
from klimb.training.progress.view import View
from klimb.training.run_writer import RunWriter
from klimb.training.tune import Search, below_median
from problems import without_timing

optuna = pytest.importorskip("optuna", reason="an extra of klimb")

ENV = "jax:CartPole-v1"
SMALL = {
    "num_envs": 4, "num_steps": 32, "hidden": (4,), "advantage": "reward_to_go", "bootstrap": None,
    "certificate": False, "eval_episodes": 4, "env_steps": 8 * 128, "checkpoint_every": 3,
}  # fmt: skip
OVER = {"learning_rate": "log:1e-3:1e-1", "gamma": "0.9:0.999"}
CONFIG = RunConfig(ENV, klimb.PPO(), TrainOptions(num_envs=4, num_steps=32))


def table(trials: list[Trial]) -> list[dict[str, Any]]:
    """The trials, without the times."""
    return [{name: value for name, value in asdict(one).items() if name not in ("started", "ended")} for one in trials]


def records(run: Path) -> list[dict[str, Any]]:
    return without_timing([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])


def require_same(one: Path, other: Path) -> None:
    """The same trials, records and policies, to the byte."""
    trials = [read_trials(folder, Tuning.read(folder)) for folder in (one, other)]
    assert table(trials[0]) == table(trials[1])
    for folder in [*(trial.name for trial in trials[0]), "best"]:
        names = [sorted(path.name for path in (root / folder).glob("policy*.safetensors")) for root in (one, other)]
        assert names[0] == names[1] != []
        for name in names[0]:
            assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes(), folder
        assert records(one / folder) == records(other / folder)


PRUNED = {"trials": 6, "trials_at_once": 4, "prune": True, "num_seeds": 2, **SMALL}
"""Two batches of four and two trials."""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "whole"
    klimb.tune(ENV, Reinforce(), OVER, run_dir=folder, **PRUNED)
    return folder


FEW = {"trials": 2, **SMALL}
"""One batch, and one program."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "whole"
    klimb.tune(ENV, Reinforce(), OVER, run_dir=folder, **FEW)
    return folder


# ---- what is searched


def test_ranges_and_choices_are_read_and_written():
    given = {
        "learning_rate": "log:1e-4:1e-2", "gamma": "0.9:1", "epochs": "1:8", "num_minibatches": "log-int:1:8",
        "hidden": [(64, 64), [8]], "normalize_advantage": [True, False],
    }  # fmt: skip
    space = search_space(CONFIG, given)
    assert space["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert space["epochs"] == Range(1.0, 8.0, whole=True)  # the field's type is int
    assert space["num_minibatches"] == Range(1.0, 8.0, log=True, whole=True)
    assert space["hidden"] == Choice(((64, 64), (8,)))
    assert search_space(CONFIG, {name: domain.written for name, domain in space.items()}) == space


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({}, "needs a field and its range"),
        ({"clip_eps": "0.3:0.1"}, "clip_eps: the range 0.3 to 0.1 is empty: write LOW:HIGH"),
        ({"clip_eps": "log:0:0.1"}, "begins above 0, not at 0"),
        ({"clip_eps": "lin:0.1:0.3"}, "'lin:0.1:0.3' is no range: it is written FIELD:LOW:HIGH"),
        ({"clip_eps": "0.1"}, "'0.1' is no range"),
        ({"clip_eps": "0.1:nan"}, "'nan' is not a number that a range can end with"),
        ({"clip_eps": "0.1:many"}, "'many' is not a number"),
        ({"clip_eps": "-1:0.1"}, "clip_eps = -1.0: input should be greater than 0"),
        ({"gamma": "0.9:1.5"}, "gamma = 1.5: input should be less than or equal to 1"),
        ({"epochs": "1.5:4"}, "epochs is a whole number, and 1.5 to 4 are not both"),
        ({"hidden": "1:4"}, "hidden is no number and has no range: name its values, --over hidden VALUE VALUE"),
        ({"normalize_advantage": "0:1"}, "normalize_advantage is no number"),
        ({"clip_ep": "0.1:0.3"}, "no option 'clip_ep'; did you mean 'clip_eps'"),
        ({"seed": "0:5"}, "seed can't be searched: every trial is trained with all seeds"),
        ({"epochs": [4]}, "epochs has 1 values to choose from: name 2 to 256"),
        ({"epochs": [4, 4]}, "the values of epochs to choose from are not all different"),
        ({"epochs": [4, "x"]}, "epochs = 'x'"),
        ({"epochs": 4}, "a range such as 'log:1e-3:1e-1' or a list of values, not 4"),
    ],
)
def test_what_cannot_be_searched_is_said(over, words):
    with pytest.raises(ConfigError, match=r".*".join(words.split("*"))) as error:
        search_space(CONFIG, over)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials = 0; a search has 1 to 4096"),
        ({"trials_at_once": 1000}, "trials_at_once = 1000; a search has 1 to 256"),
        ({"eval_episodes": 0}, "the score of a trial is the mean return of its final evaluation"),
        ({"prune": True, "batch": "episodes"}, "not with batch = episodes"),
    ],
)
def test_searches_that_cannot_be_leave_nothing(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "search", **{**SMALL, **options})
    with pytest.raises(ConfigError, match="nothing to overlap"):  # found out by the program
        klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "search", **SMALL, overlap=True)
    assert not list(tmp_path.iterdir())


# ---- what is proposed


def made_up(space: dict[str, Any], count: int, score: Any, seed: int = 0) -> list[Trial]:
    """The trials of a search, in batches of eight, whose scores are a function of their values."""
    trials: list[Trial] = []
    while len(trials) < count:
        for values in propose(space, trials, 8, seed):
            trials.append(Trial(len(trials), values, "complete", score(values)))
    return trials


def test_proposals_are_a_function_of_trials_and_seed_and_approach_the_optimum():
    """The best of 48 is nearer to the optimum than the best of as many random ones, in the mean of ten searches."""
    space = search_space(CONFIG, {"learning_rate": "log:1e-5:1e-1", "clip_eps": "0.01:0.9"})

    def score(values: dict[str, float]) -> float:
        return -((math.log10(values["learning_rate"]) + 3) ** 2) - 4 * (values["clip_eps"] - 0.3) ** 2

    searches = [made_up(space, 48, score, seed) for seed in range(10)]
    assert searches[0] == made_up(space, 48, score)
    assert len({str(trial.values) for trials in searches for trial in trials}) == 480
    rng = np.random.default_rng(0)
    draws = [{"learning_rate": 10 ** rng.uniform(-5, -1), "clip_eps": rng.uniform(0.01, 0.9)} for _ in range(4800)]
    random = np.mean([max(map(score, draws[i : i + 48])) for i in range(0, 4800, 48)])
    found = np.mean([max(trial.score for trial in trials) for trials in searches])
    assert found > random / 2  # scores are negative
    assert all(space[name].contains(value) for trial in searches[0] for name, value in trial.values.items())


def test_no_combination_is_proposed_twice():
    space = search_space(CONFIG, {"normalize_advantage": [True, False], "epochs": "1:3"})
    first = propose(space, [], 4, 0)
    trials = [Trial(i, values, "complete", 1.0) for i, values in enumerate(first)]
    rest = propose(space, trials, 4, 0)
    assert len(first) == 4
    assert len(rest) == 2
    assert len({str(values) for values in [*first, *rest]}) == 6
    assert propose(space, [*trials, *(Trial(4 + i, v, "complete", 1.0) for i, v in enumerate(rest))], 4, 0) == []


def test_importance_is_that_of_the_field_that_decides():
    space = search_space(CONFIG, {"learning_rate": "log:1e-5:1e-1", "clip_eps": "0.01:0.9", "epochs": [1, 2, 4]})
    trials = made_up(space, 40, lambda values: -abs(math.log10(values["learning_rate"]) + 3))
    found = importances(space, trials)
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.6
    assert sum(found.values()) == pytest.approx(1)
    assert importances(space, trials[:5]) == {}


def test_the_journal_is_read_by_optuna(tmp_path):
    space = search_space(CONFIG, {"learning_rate": "log:1e-5:1e-1", "hidden": [(8,), (4, 4)]})
    values = propose(space, [], 4, 0)
    trials = [
        Trial(0, values[0], "complete", 3.0, rungs=((25, 1.0), (50, 2.0)), started="2026-11-29T10:00:00+00:00"),
        Trial(1, values[1], "pruned", rungs=((25, 0.5),)),
        Trial(2, values[2], "failed", note="of its own"),
        Trial(3, values[3]),
    ]
    (tmp_path / "journal.log").write_text(journal("mine", space, trials))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.load_study(study_name="mine", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert study.best_trial.value == 3.0
    assert study.best_trial.intermediate_values == {25: 1.0, 50: 2.0}
    for trial, kept in zip(trials, study.trials, strict=True):
        assert kept.params["learning_rate"] == trial.values["learning_rate"]
        assert kept.params["hidden"] == "x".join(map(str, trial.values["hidden"]))
        assert kept.user_attrs == {"directory": trial.name}


# ---- a whole search


def test_a_search_is_a_directory_of_runs(searched):
    tuning = Tuning.read(searched)
    trials = read_trials(searched, tuning)
    for trial in trials:
        run = RunDirectory.open(searched / trial.name)
        assert run.config == tuning.config_of(trial)
        assert run.ending().reason == trial.state
    best = max(trials, key=lambda trial: trial.score)
    assert best.score == klimb.evaluate(klimb.load_policy(searched / "best"), ENV, episodes=4, seed=10_000).mean
    study = optuna.load_study(
        study_name="whole",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(searched / "optuna-journal.log"))
        ),
    )
    assert (study.best_trial.number, study.best_trial.value) == (best.number, best.score)
    assert RunDirectory.open(searched / "best").config == tuning.config_of(best)
    with pytest.raises(RunError, match="it is a search, which klimb resume continues; its best trial is"):
        RunDirectory.open(searched)


def test_what_is_below_the_median_of_all_trials_of_a_rung():
    def trial(number: int, score: float | None, state: str = "running") -> Trial:
        return Trial(number, {}, state, rungs=() if score is None else ((25, score),))

    earlier = [trial(0, 1.0, "pruned"), trial(1, 5.0, "complete"), trial(2, None, "failed")]
    batch = [trial(3, 2.0), trial(4, 3.0), trial(5, 9.0), trial(6, None)]
    assert below_median([*earlier, *batch], 25) == [(batch[0], 2.0, 3.0)]
    assert below_median(batch, 25) == [(batch[0], 2.0, 3.0)]
    assert below_median([*earlier, *batch], 50) == []
    assert below_median(batch[:1], 25) == []


@pytest.mark.slow
def test_trials_below_the_median_are_pruned(pruned):
    """Found out again from the scores alone: a trial goes on past a rung if it is not below the median there."""
    searched = pruned
    trials = read_trials(searched, Tuning.read(searched))
    means = []
    for seed in (0, 1):
        policy = klimb.load_policy(searched / "best", seed=seed)
        means.append(klimb.evaluate(policy, ENV, episodes=4, seed=10_000).mean)
    assert max(trial.score for trial in trials if trial.state == "complete") == np.mean(means)
    for batch in (trials[:4], trials[4:]):
        alive = list(batch)
        for percent in RUNGS:
            assert all(trial.score_at(percent) is not None for trial in alive)
            earlier = [trial.score_at(percent) for trial in trials[: batch[-1].number + 1]]
            median = statistics.median(score for score in earlier if score is not None)
            pruned = [trial for trial in alive if trial.score_at(percent) < median]
            alive = [trial for trial in alive if trial not in pruned]
            for trial in pruned:
                assert (trial.state, trial.rungs[-1][0]) == ("pruned", percent)
                assert len(records(searched / trial.name)) == 8 * percent // 100
        assert [trial.state for trial in alive] == ["complete"] * len(alive)
        assert all(len(records(searched / trial.name)) == 8 for trial in alive)


class StopAt(View):
    """Sends SIGTERM after some calls to the device, or raises KeyboardInterrupt in some evaluation."""

    def __init__(self, calls: int = -1, evaluations: int = -1) -> None:
        self.calls, self.evaluations = calls, evaluations

    def update(self, records: Any) -> None:
        self.calls -= 1
        if self.calls == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def episodes(self, done: int, total: int) -> None:
        if done == 0:
            self.evaluations -= 1
            if self.evaluations == 0:
                raise KeyboardInterrupt


def stop_and_resume(folder: Path, stop: View, **options: Any) -> None:
    """Stop a search, resume it, and find that there is nothing left to do."""
    with pytest.raises(klimb.Interrupted) as stopped:
        klimb.tune(ENV, Reinforce(), OVER, run_dir=folder, progress=stop, **options)
    assert str(stopped.value).endswith(f"go on with: klimb resume {folder}")
    assert any(trial.state == "running" for trial in read_trials(folder, Tuning.read(folder)))
    result = klimb.resume_tune(folder)
    assert result.best_run == folder / result.best.name
    assert result.best_values == result.best.values
    assert klimb.resume_tune(folder).trials == result.trials


def test_a_stopped_search_is_resumed_with_the_same_result(searched, tmp_path):
    stop_and_resume(tmp_path / "whole", StopAt(calls=2), **FEW)
    require_same(searched, tmp_path / "whole")


@pytest.mark.slow
def test_a_search_that_is_stopped_while_its_runs_are_made_begins_them_again(searched, tmp_path, monkeypatch):
    """The trials of a program are trained in one program, also after a stop between their directories."""
    create, calls = RunWriter.create, []

    def stopped(*arguments: Any, **options: Any) -> RunWriter:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return create(*arguments, **options)

    monkeypatch.setattr(RunWriter, "create", stopped)
    with pytest.raises(klimb.Interrupted, match="go on with: klimb resume"):
        klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "whole", **FEW)
    lock = RunLock(tmp_path / "whole")
    with pytest.raises(RunError, match="is being written by"):
        klimb.resume_tune(tmp_path / "whole")
    lock.release()
    assert [path.name for path in (tmp_path / "whole").glob("trial-*")] == ["trial-0000"]
    klimb.resume_tune(tmp_path / "whole")
    require_same(searched, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",
    [StopAt(calls=2), StopAt(evaluations=3), StopAt(evaluations=9)],
    ids=["at the first rung", "in a rung", "in the second batch"],
)
def test_a_stopped_search_that_prunes_is_resumed_with_the_same_result(pruned, stop, tmp_path):
    stop_and_resume(tmp_path / "whole", stop, **PRUNED)
    require_same(pruned, tmp_path / "whole")


@pytest.mark.slow
def test_more_trials_are_made(pruned, tmp_path):
    """A search of four trials that is resumed with six is one of six."""
    klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "search", **{**PRUNED, "trials": 4})
    with pytest.raises(ConfigError, match="the search has made 4 already"):
        klimb.resume_tune(tmp_path / "search", trials=3)
    klimb.resume_tune(tmp_path / "search", trials=6)
    require_same(pruned, tmp_path / "search")


@pytest.mark.slow
def test_a_trial_alone_is_the_training_with_its_values(tmp_path):
    """Also through the pauses at two rungs: a single trial is never pruned."""
    result = klimb.tune(
        ENV, Reinforce(), OVER, run_dir=tmp_path / "search", trials=1, trials_at_once=1, prune=True, **SMALL
    )
    (trial,) = result.trials
    options = {**SMALL, "gamma": trial.values["gamma"]}
    rule = Reinforce(learning_rate=trial.values["learning_rate"])
    run = klimb.train(ENV, rule, run_dir=tmp_path / "run", **options)
    assert len(trial.rungs) == 2
    assert (run.directory / "policy.safetensors").read_bytes() == (result.best_run / "policy.safetensors").read_bytes()
    assert records(run.directory) == records(result.best_run)


@pytest.mark.slow
def test_discounts_that_share_a_program_are_those_of_trainings_alone(tmp_path):
    """With a critic and the certificate, whose bounds depend on the discount."""
    options = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "env_steps": 2 * 128, "eval_episodes": 1}
    over = {"gamma": "0.5:0.99", "gae_lambda": "0.5:1"}
    search = klimb.tune(ENV, klimb.TRPO(), over, run_dir=tmp_path / "search", trials=3, **options)
    for trial in search.trials:
        alone = klimb.train(ENV, klimb.TRPO(), **options, **trial.values)
        for record, other in zip(records(search.directory / trial.name), alone.history, strict=True):
            for name in ("surrogate_gain", "kl_old_new", "episode_return", "value_loss", "sampled_improvement_bound"):
                np.testing.assert_allclose(
                    np.array(record[name], float), np.array(other[name], float), rtol=2e-3, atol=1e-6, err_msg=name
                )
    gains = {records(search.directory / trial.name)[1]["surrogate_gain"] for trial in search.trials}
    assert len(gains) == 3


# ---- failures, and files of somebody else


class Untrained:
    """A trainer that trains nothing, in the place of klimb's. unfinished: the names of what it can't train."""

    unfinished_names: tuple[str, ...] = ()

    def __init__(self, plan: Any, *_: Any) -> None:
        self.plan = plan

    def go_on(self, members: Any) -> Any:
        if any(member.name in self.unfinished_names for member in members):
            raise TrainingFailed("of its own")
        yield from ()

    def groups(self, members: Any) -> list[Any]:
        return []

    def unfinished(self, members: Any) -> list[Any]:
        return [member for member in members if member.name in self.unfinished_names]


def without_training(monkeypatch: pytest.MonkeyPatch, scores: Any, unfinished: tuple[str, ...] = ()) -> None:
    monkeypatch.setattr(tune_module, "SweepTrainer", type("Fake", (Untrained,), {"unfinished_names": unfinished}))
    monkeypatch.setattr(Search, "_policies", lambda self, trial: [])
    monkeypatch.setattr(Search, "_write_best", lambda self: None)
    monkeypatch.setattr(tune_module, "evaluate_run", lambda path, *_: {"mean": scores(path.name)})


def test_trials_that_fail_do_not_end_the_search(monkeypatch, tmp_path):
    """Some that can't be combined; of the others one that can't be trained, and one whose score is not a number."""
    over = {"num_minibatches": [1, 2], "num_envs": [1, 2], "clip_eps": "0.1:0.3"}
    rule, options = klimb.PPO(num_minibatches=1), {"num_envs": 2, "num_steps": 1, "critic_num_minibatches": 1}
    config = RunConfig(ENV, rule, TrainOptions(**options))
    first = propose(search_space(config, over), [], 8, 0)
    possible = [i for i, values in enumerate(first) if values["num_minibatches"] <= values["num_envs"]]
    untrained, undefined, *others = possible
    assert 2 <= len(others) < 6
    scores = {f"trial-{undefined:04}": math.nan}
    without_training(monkeypatch, lambda name: scores.get(name, float(name[-1])), (f"trial-{untrained:04}",))
    result = klimb.tune(ENV, rule, over, run_dir=tmp_path / "search", trials=8, **options)
    assert [trial.values for trial in result.trials] == first
    assert [trial.number for trial in result.trials if trial.state == "complete"] == others
    assert result.best.number == others[-1]
    for trial in result.trials:
        expected = {untrained: "of its own", undefined: "its evaluation has the mean return nan"}
        if trial.number not in others:
            assert expected.get(trial.number, "more than the batch has rows") in trial.note


def test_a_search_in_which_everything_fails_says_why(monkeypatch, tmp_path):
    without_training(monkeypatch, lambda name: math.inf)
    with pytest.raises(TrainingFailed, match="no trial could be trained: its evaluation has the mean return inf"):
        klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "search", trials=2, **SMALL)

    def unreachable(address: str) -> None:
        raise ConfigError(f"no Ray cluster can be used at {address!r}")

    # What was there before is not removed by a mistake.
    monkeypatch.setattr(tune_module, "RayCluster", unreachable)
    with pytest.raises(ConfigError, match="no Ray cluster can be used"):
        klimb.resume_tune(tmp_path / "search", trials=4, ray="elsewhere:1")
    assert (tmp_path / "search" / "trials.json").exists()


def test_trials_of_another_search_are_refused(tmp_path):
    tuning = Tuning(CONFIG, search_space(CONFIG, {"clip_eps": "0.1:0.3", "hidden": [(8,), (4,)]}), 4, 2, False, "mine")
    tuning.write(tmp_path / "search")
    assert Tuning.read(tmp_path / "search") == tuning
    with pytest.raises(RunError, match="exists already; choose another directory for the search"):
        tuning.write(tmp_path / "search")
    good = Trial(0, {"clip_eps": 0.2, "hidden": [8]}, "complete", 1.5, ((25, 1.0),))
    write_trials(tmp_path / "search", [good])
    assert read_trials(tmp_path / "search", tuning) == [good]
    for bad, words in (
        (replace(good, number=1), "trial 0 has the number 1"),
        (replace(good, values={"clip_eps": 0.2}), "trial 0 has values of"),
        (replace(good, values={"clip_eps": 0.5, "hidden": [8]}), "clip_eps = 0.5, which is not searched"),
        (replace(good, values={"clip_eps": 0.2, "hidden": [9]}), "which is not searched"),
        (replace(good, score=None), "trial 0 is complete and has no score"),
    ):
        write_trials(tmp_path / "search", [bad])
        with pytest.raises(RunError, match=words) as error:
            read_trials(tmp_path / "search", tuning)
        assert "restore it from a copy" in str(error.value)


def test_links_are_not_written_through(searched, tmp_path):
    """`best` of a search that somebody else has made."""
    tuning = Tuning.read(searched)
    tuning.write(tmp_path / "search")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "search" / "best").symlink_to(tmp_path / "elsewhere")
    trials = [replace(trial, state="complete", score=1.0) for trial in read_trials(searched, tuning)]
    write_trials(tmp_path / "search", trials[:1])
    search = Search(tuning, klimb.make(ENV), tmp_path / "search")
    with pytest.raises(RunError, match="is a link; klimb writes into the directory of the search alone"):
        search._write_best()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_search_on_a_cluster_finds_the_same(tmp_path):
    """In processes of their own, as tasks are; `hidden` needs a program for each value."""
    pytest.importorskip("ray", reason="an extra of klimb")
    over = {"hidden": [[4], [5]]}
    options = {**SMALL, "trials": 2, "prune": True, "cores": 1}
    for name, ray in (("alone", None), ("cluster", "local")):
        arguments = f"{over!r}, run_dir={name!r}, ray={ray!r}, **{options!r}"
        code = f"import klimb; klimb.tune({ENV!r}, klimb.Reinforce(), {arguments})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=170, cwd=tmp_path)
    require_same(tmp_path / "alone", tmp_path / "cluster")


def test_without_optuna_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(klimb.MissingExtra, match=r"klimb tune needs Optuna: pip install 'klimb\[tune\]'"):
        klimb.tune(ENV, Reinforce(), OVER, run_dir=tmp_path / "search", **SMALL)
    assert not list(tmp_path.iterdir())
