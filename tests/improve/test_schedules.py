"""Schedules: their values by hand, the steps that follow them, and the learning rate that follows the KL."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import (
    AWR,
    PPO,
    REPS,
    TRPO,
    VMPO,
    ConservativePolicyIteration,
    DualDescent,
    KLPenalty,
    NaturalGradient,
    OffPolicyGradient,
    Reinforce,
    Status,
)
from klimb.errors import ConfigError
from klimb.fields import build
from klimb.improve.rule import traits_of
from klimb.improve.schedules import SCHEDULES, current, scheduled
from klimb.improve.target_kl import adapted_factor
from klimb.rules import RULES
from problems import batch_on_table, make_mdp, make_table, slow_except, take

THIRD = 1 / 3
"""Of the training: cos(π/3) = ½, so that cosine leaves three quarters of a value."""
FULL = {"num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """A policy and its batch of exact expectations, a third into the training."""
    policy = make_table(1)
    return policy, eqx.tree_at(lambda b: b.fraction_done, batch_on_table(make_mdp(0), policy), jnp.array(THIRD))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [2, 2, 2, 2, 2]),
        ("linear", [2, 1.5, 4 / 3, 1, 0]),
        ("cosine", [2, 1 + np.sqrt(0.5), 1.5, 1, 0]),
        ("kl", [2, 2, 2, 2, 2]),
    ],
)
def test_values_of_the_schedules(x64, schedule, values):
    found = [float(scheduled(2.0, schedule, f)) for f in (0.0, 0.25, THIRD, 0.5, 1.0)]
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-15)
    array = scheduled(jnp.array([2.0, 4.0]), schedule, jnp.array(0.25))
    np.testing.assert_allclose(array, [values[1], 2 * values[1]], rtol=0, atol=1e-15)


SCHEDULED = [
    Reinforce(ent_coef=0.3),
    OffPolicyGradient(ent_coef=0.3, gradient_steps=3),
    KLPenalty(ent_coef=0.3, epochs=3, **FULL),
    # The limit stops the ascent and moves the multiplier, which the second round uses.
    DualDescent(ent_coef=0.3, epsilon=1e-4, learning_rate=0.01, epochs=3, rounds=2, **FULL),
    NaturalGradient(ent_coef=0.3),
    NaturalGradient(ent_coef=0.3, learning_rate=0.1),
    TRPO(ent_coef=0.3),
    PPO(ent_coef=0.3, clip_eps=0.1, learning_rate=0.05, epochs=6, **FULL),
    ConservativePolicyIteration(ent_coef=0.3, epochs=3, **FULL),
    REPS(ent_coef=0.3, epochs=3, **FULL),
    VMPO(ent_coef=0.3, epochs=3, **FULL),
    AWR(ent_coef=0.3, epochs=3, **FULL),
]
QUICK = [rule for rule in SCHEDULED if isinstance(rule, PPO | TRPO)]


def schedules_of(rule) -> dict[str, float]:
    """The values of a rule that can have a schedule, by field."""
    values = {name: getattr(rule, name) for name, schedule in SCHEDULES.items() if hasattr(rule, schedule)}
    if isinstance(rule, NaturalGradient):
        del values["learning_rate" if rule.learning_rate is None else "epsilon"]
    return values


@pytest.mark.parametrize("rule", slow_except(QUICK, SCHEDULED), ids=lambda rule: type(rule).__name__)
def test_a_step_is_that_of_the_values_at_its_time(problem, rule):
    """Every schedule of the rule at once: the step, the state and the metrics are those of constants of ¾ the size."""
    policy, batch = problem
    values = schedules_of(rule)
    varying = dataclasses.replace(rule, **{SCHEDULES[name]: "cosine" for name in values})
    shrunk = dataclasses.replace(rule, **{name: 0.75 * value for name, value in values.items()})
    new, state, info = take(varying, policy, batch)
    expected, expected_state, _ = take(shrunk, policy, batch)
    np.testing.assert_allclose(new.logits, expected.logits, rtol=0, atol=1e-12)
    assert info.status == Status.ACCEPTED
    assert info.extra.keys() <= traits_of(varying).metrics.keys()
    assert {name: float(info.extra[name]) for name in values} == pytest.approx(
        {name: 0.75 * value for name, value in values.items()}
    )
    if isinstance(rule, DualDescent | VMPO):
        assert float(state.multiplier) == pytest.approx(float(expected_state.multiplier), rel=1e-10)
    unchanged, *_ = take(rule, policy, batch)
    assert np.abs(np.asarray(new.logits - unchanged.logits)).max() > 1e-5


@pytest.mark.parametrize("rule_class", RULES.values(), ids=RULES)
def test_every_schedule_is_off_by_default_and_known_to_the_loop(rule_class):
    """Without schedules there is nothing to say about the length of the run, and no metric of a value."""
    rule = rule_class()
    names = [name for name, schedule in SCHEDULES.items() if hasattr(rule, schedule)]
    assert all(getattr(rule, SCHEDULES[name]) == "constant" for name in names)
    assert not traits_of(rule).anneals
    assert not SCHEDULES.keys() & traits_of(rule).metrics.keys()
    for name in names:
        given = {"learning_rate": 0.1} if rule_class is NaturalGradient and name == "learning_rate" else {}
        varying = build(rule_class, {SCHEDULES[name]: "linear", **given})
        assert traits_of(varying).anneals
        assert name in traits_of(varying).metrics


def test_an_entropy_coefficient_of_zero_computes_no_entropy(problem):
    now, _ = current(TRPO(), problem[1])
    assert now.ent_coef is None
    now, _ = current(TRPO(ent_coef=0.5), problem[1])
    assert now.ent_coef == 0.5


@pytest.mark.parametrize(
    ("rule_class", "fields", "line"),
    [
        *(
            (
                rule,
                {"learning_rate_schedule": "kl"},
                "schedule = kl needs target_kl, .* target_kl = 0.01$",
            )
            for rule in (PPO, KLPenalty, OffPolicyGradient, AWR, REPS)
        ),
        (
            PPO,
            {"learning_rate_schedule": "kl", "penalty": "kl", "target_kl": 0.01},
            "learning_rate_schedule = kl and penalty = kl .*: choose penalty = clip, or another schedule",
        ),
        (NaturalGradient, {"learning_rate_schedule": "linear"}, "has no learning_rate to change: .* epsilon_schedule"),
        (
            NaturalGradient,
            {"epsilon_schedule": "cosine", "learning_rate": 0.1},
            "epsilon_schedule = cosine changes nothing, .*: use learning_rate_schedule",
        ),
        (DualDescent, {"learning_rate_schedule": "kl"}, "learning_rate_schedule = 'kl': .*'constant', 'linear' or"),
        (
            TRPO,
            {"max_kl_schedule": "exponential"},
            "max_kl_schedule = 'exponential': .*'linear' or 'cosine'",
        ),
        (
            PPO,
            {"anneal_learning_rate": True},
            "is learning_rate_schedule here, with a value: linear or cosine",
        ),
    ],
)
def test_wrong_schedules_get_one_clear_line(rule_class, fields, line):
    with pytest.raises(ConfigError, match=line):
        build(rule_class, fields)


# The learning rate that follows the KL.


@pytest.mark.parametrize(
    ("factor", "kl", "expected"),
    [
        (1.0, 0.0201, 1 / 1.5),
        (1.0, 0.02, 1.0),
        (1.0, 0.0051, 1.0),
        (1.0, 0.0049, 1.5),
        (1.0, 0.0, 1.0),  # no step was taken: it says nothing about the learning rate
        (1.0, np.nan, 1.0),
        (90.0, 0.001, 100.0),
        (0.012, 0.5, 0.01),
    ],
)
def test_the_factor_follows_the_kl_within_its_range(x64, factor, kl, expected):
    assert float(adapted_factor(jnp.array(factor), jnp.array(kl), 0.01)) == pytest.approx(expected, rel=1e-15)


BY_KL = {"learning_rate_schedule": "kl", "target_kl": 0.01}


def test_the_learning_rate_of_ppo_follows_the_kl_from_batch_to_batch(problem):
    """Every step is that of plain PPO with the learning rate of the moment; above the target, no epoch is left out."""
    policy, batch = problem
    plain = PPO(clip_eps=0.9, epochs=5, **FULL)
    rule = dataclasses.replace(plain, **BY_KL)
    state, plain_state, rate, rates = None, plain.init(policy), 0.2, []
    for _ in range(5):
        new, state, info = take(rule, policy, batch, state, learning_rate=0.2)
        expected, plain_state, plain_info = take(plain, policy, batch, plain_state, learning_rate=rate)
        np.testing.assert_allclose(new.logits, expected.logits, rtol=0, atol=1e-12)
        assert float(info.extra["learning_rate"]) == pytest.approx(rate, rel=1e-12)
        assert info.extra["epochs_done"] == 5
        rates.append(rate)
        kl = float(plain_info.kl_old_new)
        rate *= 1 / 1.5 if kl > 0.02 else 1.5 if kl < 0.005 else 1
        policy = new
    assert rates[1] < rates[0]
    assert len(set(rates)) > 2
    assert not traits_of(rule).anneals


RULES_BY_KL = [KLPenalty(**FULL), OffPolicyGradient(), AWR(**FULL), REPS(**FULL), PPO(**FULL)]


@pytest.mark.parametrize("rule", slow_except([AWR(**FULL)], RULES_BY_KL), ids=lambda rule: type(rule).__name__)
def test_the_kl_of_a_batch_changes_the_learning_rate_of_the_next(problem, rule):
    """Lowered above twice the target and raised below half of it; a rejected step leaves it alone."""
    policy, batch = problem
    rule = dataclasses.replace(rule, **BY_KL)
    before = rule.learning_rate
    _, _, info = take(rule, policy, batch)
    kl = float(info.kl_new_old if traits_of(rule).kl.direction == "new_old" else info.kl_old_new)
    for target, factor in ((kl / 2.01, 1 / 1.5), (kl / 1.99, 1), (kl * 1.99, 1), (kl * 2.01, 1.5)):
        new, state, info = take(rule, policy, batch, target_kl=target)
        assert float(info.extra["learning_rate"]) == pytest.approx(before, rel=1e-12)
        *_, info = take(rule, new, batch, state, target_kl=target)
        assert float(info.extra["learning_rate"]) == pytest.approx(factor * before, rel=1e-12)
    spoilt = eqx.tree_at(lambda b: b.advantage, batch, batch.advantage.at[0].set(jnp.nan))
    _, kept, info = take(rule, new, spoilt, state, target_kl=target)
    assert Status(int(info.status)) is Status.NONFINITE
    *_, info = take(rule, new, batch, kept, target_kl=target)
    assert float(info.extra["learning_rate"]) == pytest.approx(1.5 * before, rel=1e-12)
