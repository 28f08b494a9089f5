"""Trainings in which no step is accepted: a line says so, and the training continues."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from test_numbers import SMALL, Spoiled

import klimb
from klimb import TRPO, BehaviourCloning, Reinforce, RunConfig, Status, TrainingFailed, TrainOptions
from klimb.collect.demonstrations import Demonstrations
from klimb.policies.actions import Discrete
from klimb.report.data import read_run
from klimb.report.idle_seeds import idle_seeds
from klimb.training.rejections import Rejections, copy_names

fault = pytest.mark.fault
TINY = {"num_envs": 2, "num_steps": 8, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
ACCEPTED, LARGE, NOTHING, NAN, BROKEN, WAITS, FINISHED = (int(status) for status in Status)


def lines(caplog) -> list[str]:
    """What has been logged about trainings without an accepted step."""
    found = [record for record in caplog.records if record.getMessage().startswith("no step has been accepted")]
    assert all((record.name, record.levelno) == ("klimb", logging.WARNING) for record in found)
    assert all(record.getMessage().isprintable() for record in found)
    return [record.getMessage() for record in found]


def counted(statuses: list, limit: int = 5, names: tuple[str, ...] = ()) -> Rejections:
    """After some iterations, each of the statuses of all copies, in calls of three."""
    rejections = Rejections(limit, names)
    rows = np.array(statuses).reshape(len(statuses), -1)
    for k in range(0, len(rows), 3):
        rejections.count(rows[k : k + 3])
    return rejections


SEEDS = ("seed 3", "seed 4", "seed 5")


@fault("every step is rejected, for two reasons", "one line has the number of each, the cause and the remedy")
def test_one_line_with_counts_cause_and_remedy(caplog):
    counted([NOTHING, NOTHING, LARGE, NOTHING, LARGE, NOTHING, LARGE])
    (line,) = lines(caplog)
    assert line.startswith(
        "no step has been accepted in 5 iterations (rejected: 3 as NO_IMPROVEMENT and 2 as KL_TOO_LARGE): "
        + Status.NO_IMPROVEMENT.message
    )
    assert line.endswith("; the training goes on")


@fault(
    "steps fail numerically now and then, and no other is accepted", "a line says so; it stops only for a row of them"
)
def test_numerical_failures_that_are_not_in_a_row(caplog):
    rejections = counted([NAN, NAN, BROKEN, NOTHING, NAN])
    assert not rejections.limit_reached
    (line,) = lines(caplog)
    assert "(rejected: 3 as NONFINITE and 1 as NO_IMPROVEMENT and 1 as CG_BREAKDOWN)" in line


def test_numerical_failures_in_a_row_stop_the_training_as_before(caplog):
    rejections = counted([NAN, BROKEN] * 3)
    assert rejections.limit_reached
    assert rejections.message.startswith("5 steps in a row were rejected as ") or rejections.message.startswith("6 ")
    assert not lines(caplog)


@fault("steps are rejected for ever after some were accepted", "nothing is said: this is normal at convergence")
def test_convergence_is_quiet(caplog):
    counted([NOTHING, NOTHING, LARGE, LARGE, ACCEPTED] + [NOTHING] * 40)
    counted([[ACCEPTED, NOTHING, NOTHING], [LARGE, ACCEPTED, ACCEPTED]] + [[NOTHING] * 3] * 40, names=SEEDS)
    assert not lines(caplog)


def test_iterations_without_a_try_do_not_count(caplog):
    counted([WAITS] * 40 + [NOTHING] * 4 + [FINISHED] * 40)
    assert not lines(caplog)
    counted([WAITS] * 40 + [NOTHING] * 5)
    assert lines(caplog)[0].startswith("no step has been accepted in 5 iterations (rejected: 5 as")


@fault("some seeds of a training have no accepted step", "the line names them")
def test_some_seeds(caplog):
    counted([[NOTHING, ACCEPTED, LARGE]] * 9, names=SEEDS)
    (line,) = lines(caplog)
    assert "in 5 iterations of seed 3, seed 5 (2 of 3 seeds) (rejected: 5 as KL_TOO_LARGE and 5 as" in line.replace(
        "5 as NO_IMPROVEMENT and 5 as KL_TOO_LARGE", "5 as KL_TOO_LARGE and 5 as NO_IMPROVEMENT"
    )


def test_a_seed_that_begins_later_is_named_later(caplog):
    counted([[NOTHING, WAITS, ACCEPTED]] * 4 + [[NOTHING, LARGE, NOTHING]] * 9, names=SEEDS)
    first, second = lines(caplog)
    assert "of seed 3 (1 of 3 seeds)" in first
    assert "of seed 4 (1 of 3 seeds)" in second
    assert Status.KL_TOO_LARGE.message in second


def test_all_seeds_and_many_trainings(caplog):
    counted([[NOTHING] * 3] * 5, names=SEEDS)
    assert "in 5 iterations of 3 of 3 seeds (rejected: 15 as NO_IMPROVEMENT)" in lines(caplog)[-1]
    names = tuple(f"max_kl={k} seed 0" for k in range(9))
    counted([[NOTHING] * 8 + [ACCEPTED]] * 5, names=names)
    shown = "of max_kl=0 seed 0, max_kl=1 seed 0, max_kl=2 seed 0, max_kl=3 seed 0 and 4 more (8 of 9 trainings)"
    assert shown in lines(caplog)[-1]


def test_copies_are_called_by_seed_and_combination():
    one, two = (RunConfig("CartPole-v1", TRPO(), TrainOptions(num_seeds=n, seed=7)) for n in (1, 2))
    assert copy_names([one], ()) == ["seed 7"]
    assert copy_names([two], ()) == ["seed 7", "seed 8"]
    assert copy_names([one, one], ("a=1", "a=2")) == ["a=1", "a=2"]
    assert copy_names([two, two], ("a=1", "a=2")) == ["a=1 seed 7", "a=1 seed 8", "a=2 seed 7", "a=2 seed 8"]


def resumed(statuses: list, **options) -> Rejections:
    rejections = Rejections(5, **options)
    rejections.restore([{"status": status} for status in statuses])
    return rejections


@fault("a run without an accepted step is resumed", "its steps before count, and the line comes once more")
def test_resumed(caplog):
    rejections = resumed(["NO_IMPROVEMENT"] * 3)
    rejections.count(np.full((1, 1), LARGE))
    assert not lines(caplog)
    rejections.count(np.full((9, 1), LARGE))
    assert "in 5 iterations (rejected: 3 as NO_IMPROVEMENT and 2 as KL_TOO_LARGE)" in lines(caplog)[0]
    late = resumed(["NO_IMPROVEMENT"] * 70)
    assert len(lines(caplog)) == 1
    late.count(np.full((9, 1), NOTHING))
    assert "in 71 iterations" in lines(caplog)[1]
    assert len(lines(caplog)) == 2
    for accepted in (resumed(["NO_IMPROVEMENT"] * 70), resumed(["ACCEPTED"] + ["NO_IMPROVEMENT"] * 70)):
        accepted.count(np.array([[ACCEPTED]] + [[NOTHING]] * 40))
    assert len(lines(caplog)) == 2


@fault("statuses in the metrics of a resumed run are not those of its seeds", "they are left out of the counts")
@pytest.mark.parametrize("damaged", [["NONFINITE"] * 3, [], [["NONFINITE"], {}], [1, 2], {"x": 1}, 7, None, "x" * 9999])
def test_damaged_statuses(damaged, caplog):
    names = ["seed 0", "seed 1"]
    rejections = resumed([["NO_IMPROVEMENT", "ACCEPTED"], damaged, ["NO_IMPROVEMENT"] * 2], names=names)
    rejections.count(np.array([[NOTHING, NOTHING]] * 9))
    assert len(lines(caplog)) <= 1
    assert not rejections.limit_reached


# Whole trainings.


@dataclass(frozen=True)
class Idle:
    """Its policy stays as it is. Steps are accepted if `accepts` and the first parameter have the same sign."""

    status: int = NOTHING
    accepts: float = 0.0

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        status = jnp.where(self.accepts * klimb.flatten(policy).theta[0] > 0, ACCEPTED, self.status)
        return klimb.accept_or_reject(policy, state, policy, state, batch, status=status)


@fault(
    "a rule accepts no step", "after --max-rejections iterations a line says so, and the training goes on to its end"
)
def test_a_training_that_does_nothing(tmp_path, caplog):
    run = klimb.train("CartPole-v1", Idle(), run_dir=tmp_path / "run", env_steps=16 * 12, max_rejections=6, **TINY)
    assert len(run.history) == 12
    (line,) = lines(caplog)
    assert "in 6 iterations (rejected: 6 as NO_IMPROVEMENT)" in line
    assert "No step was accepted: the policy is the one that the training began with." in page(tmp_path / "run")


def page(run) -> str:
    return re.sub(r"<script.*?</script>|<[^>]*>", "", klimb.write_report(run).read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_seeds_and_a_resumed_run(tmp_path, caplog):
    options = {**TINY, "num_seeds": 4, "max_rejections": 6, "env_steps": 16 * 4}
    run = klimb.train("CartPole-v1", Idle(accepts=1.0), run_dir=tmp_path / "run", **options)
    statuses = [record["status"] for record in run.history]
    assert all(row == statuses[0] for row in statuses)
    idle = [seed for seed, status in enumerate(statuses[0]) if status != "ACCEPTED"]
    assert 0 < len(idle) < 4
    assert not lines(caplog)
    klimb.resume(tmp_path / "run", env_steps=16 * 9, trust_environment=True)
    (line,) = lines(caplog)
    assert f"of {', '.join(f'seed {seed}' for seed in idle)} ({len(idle)} of 4 seeds)" in line
    assert f"No step of seed{'s' * (len(idle) > 1)} {', '.join(map(str, idle))} was accepted" in page(tmp_path / "run")


@pytest.mark.slow
@fault("some combinations of a sweep have no accepted step", "the line names them")
def test_a_sweep(tmp_path, caplog):
    options = {**TINY, "max_rejections": 3, "env_steps": 16 * 6}
    runs = klimb.sweep("CartPole-v1", Idle(), {"accepts": [-1.0, 1.0]}, run_dir=tmp_path / "sweep", **options)
    idle = next(run for run in runs if run.history[0]["status"] != "ACCEPTED")
    assert sum(run.history[0]["status"] == "ACCEPTED" for run in runs) == 1
    (line,) = lines(caplog)
    assert f"in 3 iterations of accepts={idle.config.rule.accepts} (1 of 2 trainings) (rejected: 3 as" in line


@pytest.mark.slow
@fault("every reward is 1e19", "the steps are rejected; a line says so, with the cause")
def test_rewards_whose_deviation_overflows(caplog):
    klimb.train(Spoiled("reward", 1e19, 1.0), TRPO(), **SMALL, env_steps=8 * 128, max_rejections=6)
    (line,) = lines(caplog)
    assert "rewards or action bounds of an extreme size" in line


@pytest.mark.slow
@fault("passes over demonstrations never raise the held-out likelihood", "a line says so, and the training goes on")
def test_offline(tmp_path, caplog):
    rng, ends = np.random.default_rng(0), np.arange(64) % 8 == 7
    obs = rng.standard_normal((65, 4)).astype(np.float32)
    demonstrations = Demonstrations(
        obs=obs[:-1], next_obs=obs[1:], action=rng.integers(2, size=64).astype(np.int32),
        log_prob=np.full(64, -0.7, np.float32), reward=np.ones(64, np.float32), terminated=ends,
        truncated=np.zeros(64, bool), actions=Discrete(2), environment="jax:CartPole-v1",
    )  # fmt: skip
    rule = BehaviourCloning(learning_rate=50.0, max_epochs=12, holdout_patience=100, minibatch_size=16, holdout=0.3)
    run = klimb.train("CartPole-v1", rule, demonstrations=demonstrations, hidden=(4,), max_rejections=6)
    assert {record["status"] for record in run.history} == {"NO_IMPROVEMENT"}
    assert len(lines(caplog)) == 1


# The report.


def written(folder, statuses: list, **options):
    """A run whose records have these statuses."""
    config = RunConfig("CartPole-v1", Reinforce(), TrainOptions(max_rejections=5, **options))
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml())
    records = [{"iteration": i + 1, "env_steps": 16 * (i + 1), "status": s} for i, s in enumerate(statuses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_run(folder)


@fault("the report is of a run without an accepted step", "it says so at its top, with the cause and the remedy")
def test_the_report_says_so(tmp_path):
    text = idle_seeds(written(tmp_path / "one", ["NO_IMPROVEMENT"] * 4 + ["KL_TOO_LARGE"] * 1200))
    assert text.startswith("No step was accepted: the policy is the one that the training began with. Rejected: 1,200 ")
    assert "as KL too large and 4 as no improvement. Every step tried left the trust region: raise" in text
    few = idle_seeds(written(tmp_path / "two", ["NO_IMPROVEMENT"] * 4))
    late = idle_seeds(written(tmp_path / "three", ["NO_IMPROVEMENT"] * 5 + ["ACCEPTED", "NO_IMPROVEMENT"]))
    over = idle_seeds(written(tmp_path / "four", ["ACCEPTED"] + ["NO_IMPROVEMENT"] * 99))
    assert (few, over) == ("", "")
    assert late.startswith("The first steps were all rejected. Rejected: 5 as no improvement. No step tried improved")


def test_the_report_names_seeds(tmp_path):
    rows = [["ACCEPTED", "KL_TOO_LARGE", "NO_IMPROVEMENT"]] * 5 + [["KL_TOO_LARGE", "KL_TOO_LARGE", "ACCEPTED"]] * 3
    text = idle_seeds(written(tmp_path / "one", rows, num_seeds=3, seed=4))
    assert text.startswith("No step of seed 5 was accepted: the policy is the one")
    assert "Rejected: 8 as KL too large." in text
    assert "The first steps of seed 6 were all rejected. Rejected: 5 as no improvement." in text
    text = idle_seeds(written(tmp_path / "two", [["<i>x"] * 3] * 6, num_seeds=3))
    assert text.startswith("No step of any of the 3 seeds was accepted")
    assert "<i>x" not in klimb.write_report(tmp_path / "two").read_text()


@pytest.mark.slow
def test_a_training_that_fails_says_only_why_it_fails(caplog):
    with pytest.raises(TrainingFailed, match="3 steps in a row were rejected as CG_BREAKDOWN"):
        klimb.train("CartPole-v1", Idle(status=BROKEN), env_steps=16 * 9, max_rejections=3, **TINY)
    assert not lines(caplog)
