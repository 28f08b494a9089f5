"""Evaluations during a training: when, of what, what is recorded, and that the training is the same without them."""

from __future__ import annotations

import json
import logging

import gymnasium as gym
import numpy as np
import pytest

import klimb
from klimb import PPO, ConfigError, TrainOptions
from klimb.training.evaluations import Evaluations
from problems import Stopper, same_bits, without_timing

RULE = PPO(epochs=2, num_minibatches=2)
SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
OPTIONS = {**SMALL, "env_steps": 12 * 128, "num_seeds": 2, "checkpoint_every": 5}
EVALUATE = {"eval_every": 300, "eval_episodes": 3}
DUE = [2, 4, 7, 9, 11]
"""Iterations with (i + 1) · 128 steps, the first rollout included, that are the first past 300, 600, …"""


class Keep:
    """Keeps the policies that were evaluated, by iteration."""

    def __init__(self) -> None:
        self.policies: dict[int, list] = {}

    def __call__(self, run: klimb.OngoingRun) -> None:
        assert not any("eval_return" in record for record in run.records[:-1])
        if "eval_return" in run.metrics:
            self.policies[run.iteration] = run.policies


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run with evaluations, and the policies that were evaluated."""
    keep = Keep()
    path = tmp_path_factory.mktemp("runs") / "evaluated"
    return klimb.train("CartPole-v1", RULE, run_dir=path, **OPTIONS, **EVALUATE, callback=keep), keep.policies


def without_evaluations(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if not k.startswith("eval_")} for record in without_timing(history)]


@pytest.mark.slow
def test_evaluations_change_nothing_of_the_training(evaluated, tmp_path):
    run, _ = evaluated
    plain = klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "plain", **OPTIONS)
    assert same_bits(run.state, plain.state)
    for seed in (0, 1):
        name = f"policy_seed{seed}.safetensors"
        assert (run.directory / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert without_evaluations(run.history) == without_timing(plain.history)


@pytest.mark.slow
def test_they_are_made_after_the_iterations_that_reach_the_multiples(evaluated):
    run, policies = evaluated
    assert [record["iteration"] for record in run.history if "eval_return" in record] == DUE
    assert list(policies) == DUE


@pytest.mark.slow
def test_records_hold_what_evaluate_gives(evaluated):
    """Both kinds of actions, seed by seed, with the seed that the docs name."""
    run, policies = evaluated
    for iteration in (DUE[0], DUE[-1]):
        record = run.history[iteration - 1]
        for prefix, deterministic in (("eval", True), ("eval_sampled", False)):
            for k, policy in enumerate(policies[iteration]):
                result = klimb.evaluate(policy, "CartPole-v1", episodes=3, seed=2**31 + k, deterministic=deterministic)
                expected = {
                    "return": result.returns.sum() / 3,
                    "return_se": np.sqrt(((result.returns - result.returns.mean()) ** 2).sum() / 2 / 3),
                    "return_min": min(result.returns),
                    "return_max": max(result.returns),
                    "length": result.lengths.sum() / 3,
                }
                for name, value in expected.items():
                    assert record[f"{prefix}_{name}"][k] == pytest.approx(value, rel=1e-12), name


@pytest.mark.slow
def test_the_best_is_the_best_by_deterministic_evaluation(evaluated):
    run, policies = evaluated
    means = {i: float(np.mean(run.history[i - 1]["eval_return"])) for i in DUE}
    best = max(means, key=means.get)
    assert json.loads((run.directory / "best/score.json").read_text()) == {
        "iteration": best,
        "score": pytest.approx(means[best]),
        "by": "evaluation",
    }
    for seed in (0, 1):
        assert same_bits(klimb.load_policy(run.directory / "best", seed=seed), policies[best][seed])


@pytest.mark.slow
def test_a_run_that_is_resumed_has_the_same_evaluations_and_the_same_best(evaluated, tmp_path):
    run, _ = evaluated
    with pytest.raises(klimb.Interrupted):
        klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "run", **OPTIONS, **EVALUATE, callback=Stopper(after=7))
    resumed = klimb.resume(tmp_path / "run")
    assert without_timing(resumed.history) == without_timing(run.history)
    seeds = [f"policy_seed{seed}.safetensors" for seed in (0, 1)]
    for name in ("best/score.json", "ended.json", *seeds, *(f"best/{name}" for name in seeds)):
        assert (tmp_path / "run" / name).read_bytes() == (run.directory / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_ends_by_its_evaluations(evaluated):
    """At an evaluation, not before; with training returns that would have ended it earlier."""
    run, _ = evaluated
    best = np.maximum.accumulate([run.history[i - 1]["eval_return"] for i in DUE])
    until = float(best[2].min())
    expected = DUE[int(np.flatnonzero((best >= until).all(1))[0])]
    shorter = klimb.train("CartPole-v1", RULE, **OPTIONS, **EVALUATE, until_return=until)
    assert shorter.ended.reason == "until_return"
    assert shorter.ended.message.startswith("the evaluation return reached")
    assert without_timing(shorter.history) == without_timing(run.history[:expected])


@pytest.mark.slow
def test_a_host_environment_is_evaluated_in_copies_of_its_own():
    options = {**SMALL, "env_steps": 4 * 128, "workers": 0}
    keep = Keep()
    run = klimb.train("gymnasium:CartPole-v1", RULE, **options, eval_every=256, eval_episodes=3, callback=keep)
    plain = klimb.train("gymnasium:CartPole-v1", RULE, **options)
    assert same_bits(run.state, plain.state)
    assert without_evaluations(run.history) == without_timing(plain.history)
    assert list(keep.policies) == [1, 3]
    result = klimb.evaluate(keep.policies[3][0], "gymnasium:CartPole-v1", episodes=3, seed=2**31)
    assert run.history[2]["eval_return"] == pytest.approx(result.mean, rel=1e-12)


@pytest.mark.slow
def test_runs_of_a_sweep_are_evaluated_as_they_would_be_alone(tmp_path):
    """Whole episodes: every run has steps of its own, and is evaluated when it is due by them, as after a resume."""
    options = {**SMALL, "env_steps": 1500, "num_steps": 64, "batch": "episodes", "checkpoint_every": 3, **EVALUATE}
    values = {"learning_rate": [1e-5, 0.03]}
    keep = Keep()
    runs = klimb.sweep("CartPole-v1", RULE, values, run_dir=tmp_path / "whole", **options, callback=Stopper(10**9))
    for run in runs:
        steps = np.array([0] + [record["env_steps"] for record in run.history])
        due = 1 + np.flatnonzero(steps[1:] // 300 > steps[:-1] // 300)
        assert [record["iteration"] for record in run.history if "eval_return" in record] == due.tolist()
        means = {int(i): run.history[i - 1]["eval_return"] for i in due}
        score = json.loads((run.directory / "best/score.json").read_text())
        assert score["score"] == max(means.values()) == means[score["iteration"]]
    assert [len(record) for record in runs[0].history] != [len(record) for record in runs[1].history]
    with pytest.raises(klimb.Interrupted):
        klimb.sweep("CartPole-v1", RULE, values, run_dir=tmp_path / "cut", **options, callback=Stopper(after=4))
    for run in runs:
        resumed = klimb.resume(tmp_path / "cut" / run.directory.name, callback=keep)
        records = {record["iteration"]: record for record in resumed.history}
        for iteration, (policy,) in keep.policies.items():
            result = klimb.evaluate(policy, "CartPole-v1", episodes=3, seed=2**31, deterministic=False)
            assert records[iteration]["eval_sampled_return"] == pytest.approx(result.mean)
        assert len(keep.policies) > 1
        keep.policies.clear()


class FailsInEvaluations(gym.Env):
    """Raises in the episodes whose seeds are those of evaluations."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        evaluations = np.random.SeedSequence(2**31).generate_state(2).tolist()
        self.fails = getattr(self, "fails", False) or seed in evaluations
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if self.fails:
            raise ValueError("only here")
        return np.zeros(2, np.float32), 1.0, self.np_random.random() < 0.2, False, {}


@pytest.mark.slow
def test_an_environment_that_fails_in_an_evaluation_does_not_stop_the_training(caplog):
    environment = klimb.GymnasiumEnvironment.from_maker("fails", FailsInEvaluations)
    with caplog.at_level(logging.WARNING, "klimb"):
        run = klimb.train(environment, RULE, **SMALL, env_steps=256, eval_every=256, eval_episodes=2, patience=1)
    assert "the evaluation after iteration 1 has failed" in caplog.text
    assert "only here" in caplog.text
    assert run.history[0]["eval_return"] is None
    assert run.history[0]["eval_sampled_return_max"] is None
    assert run.ended.reason == "complete"


class Steps(klimb.HostEnvironment):
    """An environment that nobody steps."""

    id = "steps"

    def vector(self, copies, *, restart=False):
        raise NotImplementedError


@pytest.mark.parametrize("seed", range(3))
def test_no_call_goes_past_an_evaluation(seed):
    """Whole episodes make a different number of steps per iteration and seed; calls are cut by what may be made."""
    rng, most, every = np.random.default_rng(seed), 50, 170
    evaluations = Evaluations(Steps(), TrainOptions(eval_every=every, eval_episodes=1))
    steps = rng.integers(0, 50, (400, 3)) + np.array([[int(i == 0) * 40] * 3 for i in range(400)])
    totals = np.concatenate([np.zeros((1, 3), int), steps.cumsum(0)]).astype(np.uint32)
    expected = [i for i in range(1, 401) if totals[i].mean() // every > totals[i - 1].mean() // every]
    done, iteration = [], 0
    while iteration < 400:
        count = min(evaluations.certain(totals[iteration], most), 400 - iteration)
        assert count >= 1
        if evaluations.due(totals[iteration], totals[iteration + count]):
            done.append(iteration + count)
        iteration += count
    assert done == expected


def test_without_evaluations_nothing_is_due():
    evaluations = Evaluations(Steps(), TrainOptions())
    assert evaluations.certain(np.array([5]), 10) is None
    assert not evaluations.due(np.array([5]), np.array([500]))


def test_an_evaluation_needs_episodes():
    with pytest.raises(ConfigError, match="choose eval_episodes = 1 or more"):
        klimb.RunConfig("CartPole-v1", RULE, TrainOptions(eval_every=100, eval_episodes=0))
