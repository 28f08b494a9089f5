"""Seeds side by side, as accelerators compute them, are the same trainings as one after the other; and precision."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, RunConfig, TrainOptions
from klimb.rules import RULES
from klimb.training import copies
from klimb.training.program import Program
from problems import slow_except

SMALL = {"num_envs": 4, "num_steps": 16, "env_steps": 4 * 16 * 3, "hidden": (4,), "critic_num_minibatches": 2}
ONLINE = [name for name in RULES if name not in ("behaviour-cloning", "guided")]
TIMES = ("wall_time", "steps_per_second")
COUNTS = ("status", "backtracks", "cg_iterations", "epochs", "episodes")


def trained(rule, env: str, *, side_by_side: bool, monkeypatch: pytest.MonkeyPatch, **options) -> list[dict]:
    monkeypatch.setattr(copies, "side_by_side", lambda: side_by_side)
    return klimb.train(env, rule, **{**SMALL, **options}).history


def assert_same_trainings(one: list[dict], other: list[dict]) -> None:
    """Equal to rounding: products of several seeds at once are summed in another order."""
    assert len(one) == len(other) == 3
    for before, after in zip(one, other, strict=True):
        assert before.keys() == after.keys()
        for name in before.keys() - {*TIMES, *COUNTS}:
            a, b = (np.asarray(record[name], float) for record in (before, after))
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3, err_msg=name)
        assert before["status"] == after["status"]


# Five seeds on two devices: two on one, three on the other, of which one is padding.
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("name", slow_except({"trpo", "ppo"}, ONLINE))
def test_of_every_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        trained(RULES[name](), "CartPole-v1", side_by_side=way, monkeypatch=monkeypatch, num_seeds=5)
        for way in (True, False)
    ]
    assert_same_trainings(*runs)


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {"memory": "gru", "memory_size": 4, "chunk_steps": 8}),
        ("Pendulum-v1", {"tanh_squash": True}),
        ("gymnasium:CartPole-v1", {"workers": 1}),
        ("picture_tasks:CompiledDots", {"hidden": None}),
    ],
    ids=["memory", "continuous", "host", "pictures"],
)
def test_of_every_kind_of_task(env: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        trained(TRPO(), env, side_by_side=way, monkeypatch=monkeypatch, **{"num_seeds": 3, **options})
        for way in (True, False)
    ]
    assert_same_trainings(*runs)


def test_a_run_side_by_side_resumes_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(copies, "side_by_side", lambda: True)
    options = {**SMALL, "num_seeds": 3, "checkpoint_every": 1}
    whole = klimb.train("CartPole-v1", PPO(), run_dir=tmp_path / "whole", **options)
    short = {**options, "env_steps": 4 * 16}
    klimb.train("CartPole-v1", PPO(), run_dir=tmp_path / "cut", **short)
    cut = klimb.resume(tmp_path / "cut", env_steps=options["env_steps"])
    for a, b in zip(whole.policies, cut.policies, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


def test_states_are_given_up_for_the_next_ones() -> None:
    """A training holds one state, not two: the buffers of the old one are used again."""
    program = Program(RunConfig("CartPole-v1", TRPO(), TrainOptions(**SMALL)), klimb.make("CartPole-v1"))
    state = program.initial_state()
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 1]
    program.advance(state, 1)
    program.close()
    assert all(leaf.is_deleted() for leaf in leaves)


def test_a_precision_that_a_cpu_does_not_have_is_named(caplog: pytest.LogCaptureFixture) -> None:
    options = TrainOptions(**SMALL, precision="tensorfloat32")
    Program(RunConfig("CartPole-v1", TRPO(), options), klimb.make("CartPole-v1")).close()
    assert "precision = tensorfloat32 has no effect on a CPU" in caplog.text
    with pytest.raises(klimb.ConfigError, match="precision"):
        dataclasses.replace(options, precision="float16")
