"""What every rule keeps to in a training: resuming, several seeds, --overlap. Rules join in test_contract."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, BehaviourCloning, DualDescent, OffPolicyGradient, Reinforce
from problems import assert_same_bits, without_timing
from test_contract import RULES, rule_id

SMALL = dict(num_envs=4, num_steps=32, hidden=(8,), critic_epochs=2, critic_num_minibatches=2)
ITERATIONS = 4
OVERLAPPED = TRPO | PPO | DualDescent | OffPolicyGradient | Reinforce


def steps(iterations: int) -> int:
    return iterations * SMALL["num_envs"] * SMALL["num_steps"]


# What overlaps is the same for all: these differ in how they weight data that is one policy old.
some_rules = pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, id=rule_id(rule), marks=pytest.mark.slow) for rule in RULES if isinstance(rule, OVERLAPPED)],
)
# Cloning has no environment: tests/training/test_starting_points.py resumes it.
each_rule = pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=rule_id(rule), marks=pytest.mark.slow)
        for rule in RULES
        if not isinstance(rule, BehaviourCloning)
    ],
)


@each_rule
def test_a_training_that_was_stopped_is_the_one_that_was_not(rule, tmp_path):
    """Two seeds, to the bit: policies, critics, optimisers, statistics, records."""
    options = dict(SMALL, env_steps=steps(ITERATIONS), checkpoint_every=2, num_seeds=2)
    whole = klimb.train("Pendulum-v1", rule, run_dir=tmp_path / "whole", **options)
    copy = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    (copy / "checkpoints" / f"{ITERATIONS:09}.safetensors").unlink()
    resumed = klimb.resume(copy, rule=rule)
    assert_same_bits(resumed.state, whole.state)
    assert without_timing(resumed.history) == without_timing(whole.history)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [TRPO(), OffPolicyGradient(history=2)], ids=rule_id)
def test_a_seed_among_others_is_the_run_alone(rule):
    """To rounding, with what is kept of it."""
    options = dict(SMALL, env_steps=steps(3))
    whole = klimb.train("Pendulum-v1", rule, **options, num_seeds=2)
    alone = klimb.train("Pendulum-v1", rule, **options, seed=1)
    for one, several in zip(alone.history, whole.history, strict=True):
        assert one["kl_old_new"] == pytest.approx(several["kl_old_new"][1], rel=2e-2, abs=1e-6)
    for one, several in zip(jax.tree.leaves(alone.policy), jax.tree.leaves(whole.policies[1]), strict=True):
        np.testing.assert_allclose(one, several, rtol=1e-2, atol=1e-3)


@some_rules
def test_a_training_that_overlaps_is_repeated_to_the_bit(rule):
    """Whatever the thread that steps and the update do first."""
    options = dict(SMALL, env_steps=steps(3), workers=0, overlap=True)
    first, again = (klimb.train("gymnasium:Pendulum-v1", rule, **options) for _ in range(2))
    assert_same_bits(first.state, again.state)
    assert without_timing(first.history) == without_timing(again.history)
    assert np.isfinite([record["kl_old_new"] for record in first.history]).all()
