"""`until_return`, `patience` and `callback.stop()`: training ends after the iteration that it should, and says why."""

from __future__ import annotations

import json

import numpy as np
import pytest

import klimb
from klimb import PPO, ConfigError, TrainOptions
from klimb.runs.directory import RunDirectory
from klimb.runs.ending import Ending, read_ending
from klimb.training.pace import CallSize
from klimb.training.stopping import WINDOW, Stopping, WindowedReturn
from problems import Stopper, same_bits, without_timing

RULE = PPO(epochs=2, num_minibatches=2)
SMALL = {"num_envs": 8, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
LONG = {**SMALL, "env_steps": 24 * 256, "num_seeds": 2}


class Fixed(CallSize):
    """Calls of always the same number of iterations, whatever the speed of the machine."""

    def __init__(self, maximum: int) -> None:
        super().__init__(maximum)
        self.iterations = min(7, maximum)

    def adapt(self, iterations: int, seconds: float) -> None:
        """Never."""


@pytest.fixture(autouse=True)
def calls_of_seven(monkeypatch):
    monkeypatch.setattr("klimb.training.loop.CallSize", Fixed)


@pytest.fixture(scope="module")
def whole_run():
    return klimb.train("CartPole-v1", RULE, **LONG)


def windowed(counts: list[float], returns: list[float | None]) -> list[float | None]:
    """By the definition: the fewest last iterations with that many episodes, for every iteration."""
    means: list[float | None] = []
    for end in range(1, len(counts) + 1):
        starts = [start for start in range(end) if sum(counts[start:end]) >= WINDOW]
        rows = slice(max(starts), end) if starts else slice(0)
        totals = [n * r for n, r in zip(counts[rows], returns[rows], strict=True) if r is not None and n > 0]
        means.append(sum(totals) / sum(counts[rows]) if starts else None)
    return means


def returns_of(run) -> np.ndarray:
    """The windowed returns `[iterations, seeds]`; minus infinity where there is none."""
    columns = []
    for seed in range(2):
        counts = [record["episodes"][seed] for record in run.history]
        means = windowed(counts, [record["episode_return"][seed] for record in run.history])
        columns.append([-np.inf if mean is None else mean for mean in means])
    return np.array(columns).T


def test_the_windowed_return_is_that_of_the_last_hundred_episodes():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 60, 80).tolist()
    returns = [float(x) if n else None for n, x in zip(counts, rng.normal(size=80), strict=True)]
    window = WindowedReturn()
    for mean, expected in zip(map(window.add, counts, returns), windowed(counts, returns), strict=True):
        assert mean == (None if expected is None else pytest.approx(expected, rel=1e-12))
    assert WindowedReturn().add(200, float("nan")) is None


def stopping(**options) -> Stopping:
    return Stopping(TrainOptions(eval_every=1, **options))


def test_every_seed_has_to_reach_the_return_once():
    rule = stopping(until_return=10.0, num_seeds=2)
    for evaluated in ([12.0, 3.0], [4.0, 9.9], [None, None], [4.0, float("nan")]):
        rule.add((), (), evaluated)
        assert rule.reason is None
    rule.add((), (), [0.0, 10.0])
    assert rule.reason == "until_return"
    assert rule.message == "the evaluation return reached until_return = 10 for each of the 2 seeds"
    rule.add((), (), [0.0, 0.0])
    assert rule.reason == "until_return", "what is reached stays reached"


def test_patience_counts_evaluations_without_a_higher_return():
    rule = stopping(patience=2)
    for value in (1.0, 2.0, 2.0, 3.0, 2.5):
        rule.add((), (), [value])
        assert rule.reason is None
    rule.add((), (), [])  # an iteration without an evaluation
    rule.add((), (), [None])  # an evaluation that has failed
    assert rule.reason is None
    rule.add((), (), [3.0])
    assert rule.reason == "patience"
    assert rule.message == "2 evaluations in a row brought no higher return (patience)"


def test_patience_of_several_seeds_is_over_when_it_is_for_all_at_once():
    rule = stopping(patience=2, num_seeds=2)
    for value in (1.0, 1.0, 1.0, 1.0):
        rule.add((), (), [value, 0.0 if value is None else 1.0])
    assert rule.reason == "patience"
    rule = stopping(patience=2, num_seeds=2)
    for first, second in ((1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 4)):
        rule.add((), (), [float(first), float(second)])
    assert rule.reason is None
    rule.add((), (), [2.0, 4.0])
    assert rule.reason == "patience"


def test_without_either_nothing_stops():
    rule = Stopping(TrainOptions())
    for _ in range(100):
        rule.add([1000], [1e9])
    assert rule.reason is None
    assert not rule.by_iteration


@pytest.mark.slow
def test_training_ends_with_the_iteration_that_reaches_the_return(whole_run, tmp_path):
    """Inside of a call of seven; seed by seed."""
    means = returns_of(whole_run)
    until = float(np.sort(means[12:].min(1))[3])
    expected = 1 + int(np.flatnonzero((np.maximum.accumulate(means) >= until).all(1))[0])
    assert expected < 24
    assert expected % 7, "not at the end of a call"
    run = klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "run", **LONG, until_return=until)
    assert without_timing(run.history) == without_timing(whole_run.history[:expected])
    message = f"the mean return of the last 100 episodes reached until_return = {until:g} for each of the 2 seeds"
    ending = Ending("until_return", expected, (expected + 1) * 256, message)
    assert run.ended == ending
    assert read_ending(tmp_path / "run") == ending


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_with_the_same_iteration(whole_run, tmp_path):
    """And one that has ended is done: going on adds nothing."""
    until = float(np.sort(returns_of(whole_run)[12:].min(1))[3])
    run = klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "run", **LONG, until_return=until)
    with pytest.raises(klimb.Interrupted):
        klimb.train(
            "CartPole-v1", RULE, run_dir=tmp_path / "cut", **LONG, until_return=until, callback=Stopper(after=7)
        )
    assert read_ending(tmp_path / "cut").reason == "interrupted"
    resumed = klimb.resume(tmp_path / "cut")
    assert same_bits(resumed.state, run.state)
    assert without_timing(resumed.history) == without_timing(run.history)
    assert (tmp_path / "cut/ended.json").read_bytes() == (tmp_path / "run/ended.json").read_bytes()
    again = klimb.resume(tmp_path / "run")
    assert again.ended == run.ended
    assert again.history == run.history


@pytest.mark.slow
def test_it_ends_with_the_same_iteration_on_two_devices(two_devices):
    """Where the iterations of a call are made again, from a state that lies on both."""
    whole = klimb.train("CartPole-v1", RULE, **LONG)
    means = returns_of(whole)
    until = float(np.sort(means[12:].min(1))[3])
    expected = 1 + int(np.flatnonzero((np.maximum.accumulate(means) >= until).all(1))[0])
    assert expected % 7
    run = klimb.train("CartPole-v1", RULE, **LONG, until_return=until)
    assert without_timing(run.history) == without_timing(whole.history[:expected])


@pytest.mark.slow
def test_training_ends_when_patience_is_over(whole_run):
    means = returns_of(whole_run)
    best, waited, expected = np.full(2, -np.inf), np.zeros(2, int), None
    for i, row in enumerate(means):
        waited = np.where(row > best, 0, waited + np.isfinite(row))
        best = np.maximum(best, row)
        if (waited >= 1).all():
            expected = i + 1
            break
    assert expected is not None, "choose other numbers"
    run = klimb.train("CartPole-v1", RULE, **LONG, patience=1)
    assert len(run.history) == expected
    assert run.ended.reason == "patience"
    assert "1 iteration brought no higher return" in run.ended.message


@pytest.mark.slow
def test_a_callback_stops_a_run_that_can_be_resumed(whole_run, tmp_path):
    seen, views = [], []

    def watch(run: klimb.OngoingRun) -> None:
        seen.extend(record["iteration"] for record in run.records)
        views.append(run)
        assert run.metrics is run.records[-1]
        assert run.iteration == seen[-1]
        assert run.env_steps == run.metrics["env_steps"]
        assert run.directory == tmp_path / "run"
        if run.iteration >= 9:
            assert run.policies is run.policies, "read once"
            run.stop()

    run = klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "run", **LONG, callback=watch)
    assert seen == list(range(1, 15))
    assert run.ended == Ending("callback", 14, 15 * 256, "a callback stopped the training")
    assert same_bits(views[-1].policies, run.policies)
    assert same_bits(views[-1].policy, klimb.load_policy(tmp_path / "run", seed=0))
    with pytest.raises(klimb.RunError, match="after iteration 7 are no longer available"):
        _ = views[0].policy
    resumed = klimb.resume(tmp_path / "run", callback=lambda run: seen.append(run.iteration))
    assert seen[14:] == [21, 24]
    assert resumed.ended.reason == "complete"
    assert same_bits(resumed.state, whole_run.state)
    assert without_timing(resumed.history) == without_timing(whole_run.history)


@pytest.mark.slow
def test_an_interrupted_run_without_a_directory_has_its_policy(whole_run):
    policies = []

    def stop(run: klimb.OngoingRun) -> None:
        policies[:] = run.policies
        Stopper(after=7)(run)

    with pytest.raises(klimb.Interrupted) as caught:
        klimb.train("CartPole-v1", RULE, **LONG, callback=stop)
    assert "nothing was saved" not in str(caught.value)
    assert "the policy is here: error.runs[0].policy" in str(caught.value)
    (run,) = caught.value.runs
    assert same_bits(run.policies, policies)
    assert without_timing(run.history) == without_timing(whole_run.history[:7])
    assert run.ended.reason == "interrupted"


@pytest.mark.slow
def test_a_sweep_goes_on_until_all_of_its_runs_would_have_ended(tmp_path):
    options = {**LONG, "until_return": 22.0}
    runs = klimb.sweep("CartPole-v1", RULE, {"clip_eps": [0.02, 0.3]}, run_dir=tmp_path / "sweep", **options)
    ends = []
    for run in runs:
        means = returns_of(run)
        ends.append(1 + int(np.flatnonzero((np.maximum.accumulate(means) >= 22).all(1))[0]))
        assert len(run.history) == runs[0].ended.iteration
        assert run.ended.reason == "until_return"
    assert max(ends) == runs[0].ended.iteration < 24
    seen = []

    def watch(run: klimb.OngoingRun) -> None:
        seen.append((run.directory, len(run.policies)))
        run.stop()

    runs = klimb.sweep("CartPole-v1", RULE, {"clip_eps": [0.02, 0.3]}, run_dir=tmp_path / "b", **LONG, callback=watch)
    assert seen == [(tmp_path / "b", 4)]
    assert [run.ended.reason for run in runs] == ["callback"] * 2


def test_an_ending_that_is_none_is_one_line(tmp_path):
    assert read_ending(tmp_path) is None
    for content in (
        "{",
        "[]",
        json.dumps({"reason": "bored", "iteration": 1, "env_steps": 1, "message": ""}),
        "9" * 70_000,
        "[" * 50_000,
        '{"reason":' * 5_000,
    ):
        (tmp_path / "ended.json").write_text(content)
        with pytest.raises(klimb.RunError, match="does not say what ended a run") as caught:
            read_ending(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"eval_every": 10}, {"until_return": 1.0}, {"patience": 3}])
def test_demonstrations_alone_have_no_returns(option):
    with pytest.raises(ConfigError, match="learns from demonstrations alone"):
        klimb.RunConfig("CartPole-v1", klimb.BehaviourCloning(), TrainOptions(**option))


@pytest.mark.slow
def test_a_failed_run_says_so(tmp_path):
    """A learning rate that no number survives."""
    rule = klimb.Reinforce(learning_rate=1e38)
    with pytest.raises(klimb.TrainingFailed, match="NONFINITE"):
        klimb.train("Pendulum-v1", rule, run_dir=tmp_path / "run", **SMALL, env_steps=20 * 256, max_rejections=2)
    ending = RunDirectory.open(tmp_path / "run").ending()
    assert ending.reason == "failed"
    assert "2 steps in a row were rejected" in ending.message
