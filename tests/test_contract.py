"""What every rule keeps to. A new rule joins by one line in RULES."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jaxtyping import PyTree

import klimb
from klimb import (
    AWR,
    PPO,
    REPS,
    TRPO,
    VMPO,
    Batch,
    BehaviourCloning,
    Categorical,
    ConservativePolicyIteration,
    DualDescent,
    KLPenalty,
    NaturalGradient,
    NetworkPolicy,
    OffPolicyGradient,
    Reinforce,
    RunConfig,
    Status,
    TrainOptions,
)
from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.cartpole import CartPole
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import ConfigError
from klimb.estimate.advantages import normalise
from klimb.fields import build
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.objectives import log_ratio
from klimb.improve.rule import Rule, traits_of
from klimb.improve.schedules import SCHEDULES
from klimb.improve.warm_up import take_step
from klimb.policies.actions import Box, Discrete, action_spec
from klimb.policies.normalizer import Normalizer
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.rules import RULES as REGISTRY
from klimb.tabular.table import SoftmaxTable
from klimb.types import UpdateInfo
from problems import assert_same_bits, make_mdp, slow_except

RULES = [
    Reinforce(),
    OffPolicyGradient(weighting="trajectory", self_normalise=True, max_weight=2.0),
    KLPenalty(),
    DualDescent(divergence="kl_new_old", log_multiplier=True, rounds=3, epochs=2),
    NaturalGradient(solver="woodbury", fisher="empirical", learning_rate=0.1),
    TRPO(),
    PPO(),
    PPO(penalty="kl", target_kl=0.02),
    BehaviourCloning(holdout=0.0, learning_rate=1e-2, minibatch_size=8),
    ConservativePolicyIteration(learning_rate=1e-2, projection_steps=2),
    REPS(),
    VMPO(),
    AWR(),
]
# V-MPO has what the other fits to the penalised optimum have, and a state besides; dual descent has PPO's adaptive λ.
QUICK = [
    rule
    for rule in RULES
    if not isinstance(rule, AWR | REPS | ConservativePolicyIteration | KLPenalty)
    and rule != PPO(penalty="kl", target_kl=0.02)
]
# The same code under other values, or with parts that have tests of their own: compiling it takes minutes.
VARIANTS = [
    Reinforce(optimizer="sgd", learning_rate=0.1, max_grad_norm=0.5),
    NaturalGradient(),
    OffPolicyGradient(),
    OffPolicyGradient(weighting="per_decision", optimizer="sgd", learning_rate=0.1, gradient_steps=2),
    KLPenalty(kl_direction="new_old", kl_coef=10.0, num_minibatches=1, learning_rate_schedule="linear"),
    DualDescent(),
    DualDescent(divergence="tv", epsilon=0.05, initial_multiplier=0.0),
    NaturalGradient(solver="dense", damping=1e-3),
    NaturalGradient(normalised=True),
    TRPO(kl_direction="new_old", max_kl=0.3, damping=1e-3),
    TRPO(fisher="empirical", fisher_fraction=0.5, line_search="growing"),
    PPO(target_kl=0.003, clip_eps=0.1, learning_rate_schedule="linear"),
    PPO(penalty="kl", kl_direction="new_old", target_kl=0.02),
    BehaviourCloning(holdout=0.0, learning_rate=1e-2),
    ConservativePolicyIteration(mixture=None, temperature=0.2, learning_rate=1e-2),
    REPS(epsilon=0.05, max_grad_norm=None),
    VMPO(top_fraction=1.0, epsilon=1e-3, epochs=3),
    AWR(temperature=0.3, max_weight=2.0, num_minibatches=1),
]

# What is off by default, turned on: schedules, the entropy bonus, a target for the KL, a share of the predicted gain.
BONUS = {"ent_coef": 0.01, "ent_schedule": "cosine"}
LINEAR = {"learning_rate_schedule": "linear", **BONUS}
BY_KL = {"learning_rate_schedule": "kl", "target_kl": 0.02, **BONUS}
OPTIONS = [
    Reinforce(**LINEAR),
    OffPolicyGradient(target_kl=1e-4, **LINEAR),
    OffPolicyGradient(**BY_KL),
    KLPenalty(target_kl=1e-4, **LINEAR),
    KLPenalty(**BY_KL),
    DualDescent(target_kl=1e-4, epsilon_schedule="cosine", **LINEAR),
    NaturalGradient(epsilon_schedule="linear", **BONUS),
    NaturalGradient(learning_rate=0.1, **LINEAR),
    TRPO(max_kl_schedule="cosine", min_gain_share=0.1, **BONUS),
    TRPO(max_kl_schedule="linear", min_gain_share=0.1, line_search="growing", **BONUS),
    PPO(clip_schedule="linear", **BY_KL),
    PPO(penalty="kl", **LINEAR),
    BehaviourCloning(holdout=0.0, learning_rate=1e-2, learning_rate_schedule="cosine"),
    ConservativePolicyIteration(target_kl=1e-4, projection_steps=2, **LINEAR),
    REPS(target_kl=1e-4, epsilon_schedule="linear", **LINEAR),
    VMPO(target_kl=1e-4, epsilon_schedule="linear", **LINEAR),
    AWR(**BY_KL),
]


def rule_id(rule: Rule) -> str:
    """The class and the fields that are not the default."""
    fields = [(f.name, getattr(rule, f.name)) for f in dataclasses.fields(rule) if getattr(rule, f.name) != f.default]
    return type(rule).__name__ + "".join(f",{name}={value}" for name, value in fields)


def over(condition: Callable[[Rule], bool], quick: Collection[Rule] = QUICK):
    """A test of every rule that meets the condition; those that are not `quick` only with `make test-slow`."""
    return pytest.mark.parametrize(
        "rule",
        [
            pytest.param(rule, id=rule_id(rule), marks=[] if rule in quick else pytest.mark.slow)
            for rule in (*RULES, *VARIANTS)
            if condition(rule)
        ],
    )


each_rule = over(lambda rule: True)
# Where every rule needs a compilation of its own, and what is tested is hardly the rule's.
each_rule_slowly = over(lambda rule: True, quick=[TRPO(), PPO()])
# Cloning climbs the likelihood of what was done, whatever came of it.
each_rule_with_advantages = over(lambda rule: not isinstance(rule, BehaviourCloning))


def draws(rule: Rule) -> bool:
    """Whether a step depends on its key: minibatches, or a random part of the batch."""
    shuffles = getattr(rule, "num_minibatches", 1) > 1 or getattr(rule, "minibatch_size", ROWS) < ROWS
    return shuffles or getattr(rule, "fisher_fraction", 1) < 1


# The fixtures: a table in double precision, where theory is exact, and two networks in single precision.

STATES, ACTIONS, ROWS, PADDING = 6, 4, 64, 4


class Case(NamedTuple):
    policy: PyTree
    batch: Batch


@functools.cache
def make_case(name: str, seed: int = 0) -> Case:
    """An on-policy batch of a policy away from its symmetric start. The networks' last rows are padding."""
    with jax.enable_x64(name == "table"):  # whoever asks first
        return _make_case(name, np.random.default_rng(seed), seed)


def _make_case(name: str, rng: np.random.Generator, seed: int) -> Case:
    if name == "table":
        policy = SoftmaxTable(jnp.asarray(rng.normal(size=(STATES, ACTIONS))))
        batch = eqx.filter_jit(klimb.exact_batch)(make_mdp(seed, STATES, ACTIONS), policy)
        return Case(policy, eqx.tree_at(lambda b: b.fraction_done, batch, jnp.zeros(())))
    actions = Discrete(ACTIONS) if name == "categorical" else Box((-2.0, -1.0), (2.0, 1.0))
    policy = NetworkPolicy(3, actions, hidden=(8,), key=jax.random.key(seed))
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + jnp.asarray(0.3 * rng.normal(size=theta.shape), theta.dtype))
    policy = eqx.tree_at(lambda p: p.encoder.normalizer.mean, policy, jnp.array([0.5, -0.2, 0.0]))
    obs = jnp.asarray(rng.normal(size=(ROWS, 3)), theta.dtype)
    distribution = jax.vmap(policy)(obs)
    action = distribution.sample(jax.random.key(seed + 1))
    batch = Batch(
        obs=obs,
        action=action,
        log_prob=distribution.log_prob(action),
        advantage=jnp.asarray(rng.normal(size=ROWS), theta.dtype),
        value_target=jnp.zeros(ROWS),
        weight=jnp.ones(ROWS).at[-PADDING:].set(0),
        fraction_done=jnp.zeros(()),
        gamma=0.9,
    )
    return Case(policy, batch)


# Between them the table and the Gaussian have what the categorical network has.
CATEGORICAL = pytest.param("categorical", marks=pytest.mark.slow)


@pytest.fixture(params=["table", CATEGORICAL, "gaussian"])
def name(request):
    with jax.enable_x64(request.param == "table"):
        yield request.param


@pytest.fixture
def case(name):
    return make_case(name)


@pytest.fixture
def gaussian():
    return make_case("gaussian")


@pytest.fixture
def table(x64):
    """In double precision, where two ways to compute one step can be told from two different steps."""
    return make_case("table")


TRACES: Counter = Counter()


@functools.cache
def compiled(rule: Rule):
    """A step under jit, through the door that the training loop uses, with its traces counted."""

    def step(key, policy, state, batch):
        TRACES[rule] += 1
        return take_step(rule, key, policy, state, batch)

    return eqx.filter_jit(step)


def take(rule: Rule, case: Case, *, key: int = 0, state: PyTree = None):
    state = rule.init(case.policy) if state is None else state
    return compiled(rule)(jax.random.key(key), case.policy, state, given(rule, case.batch))


def given(rule: Rule, batch: Batch) -> Batch:
    """The batch as a rule is to get it: to be cloned are demonstrations, of someone who prefers what is better."""
    if not isinstance(rule, BehaviourCloning):
        return batch
    advantage = jnp.where(jnp.isfinite(batch.advantage), jnp.clip(batch.advantage, -2, 2), 0)
    return eqx.tree_at(lambda b: b.weight, batch, batch.weight * jnp.exp(2 * advantage))


def direction(rule: Rule) -> str:
    """The direction of the KL that the rule constrains."""
    if isinstance(rule, AWR | REPS):
        return "new_old"
    if isinstance(rule, DualDescent):
        return "new_old" if rule.divergence == "kl_new_old" else "old_new"
    return getattr(rule, "kl_direction", "old_new")


def change(batch: Batch, rows, **columns) -> Batch:
    """The batch with some rows of some columns overwritten."""
    for name, value in columns.items():
        batch = eqx.tree_at(lambda b, name=name: getattr(b, name), batch, getattr(batch, name).at[rows].set(value))
    return batch


def assert_close(a: PyTree, b: PyTree, *, rtol: float, atol: float) -> None:
    a, b = eqx.filter(a, eqx.is_array), eqx.filter(b, eqx.is_array)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def moved(old: PyTree, new: PyTree) -> float:
    return float(jnp.abs(flatten(new).theta - flatten(old).theta).max())


# What a step reports, computed again in NumPy.


def by_definition(old: PyTree, new: PyTree, batch: Batch, direction: str) -> dict[str, float]:
    """The fields of UpdateInfo from the two policies' distributions, in double precision."""
    weight = np.asarray(batch.weight, float)
    counted = weight > 0
    action, behaviour = np.asarray(batch.action), np.asarray(batch.log_prob, float)
    p, q = (action_distribution(policy, batch.obs) for policy in (old, new))
    if isinstance(p, Categorical):
        p, q = (scipy.special.softmax(np.asarray(x.logits, float), axis=1) for x in (p, q))
        forward, backward = scipy.stats.entropy(p, q, axis=1), scipy.stats.entropy(q, p, axis=1)
        tv, entropy = np.abs(p - q).sum(axis=1) / 2, scipy.stats.entropy(q, axis=1)
        log_prob = np.log(q[np.arange(len(action)), action])
    else:
        (m, s), (n, r) = ((np.asarray(x.mean, float), np.exp(np.asarray(x.log_std, float))) for x in (p, q))
        forward = np.sum(np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5, axis=1)
        backward = np.sum(np.log(s / r) + (r**2 + (m - n) ** 2) / (2 * s**2) - 0.5, axis=1)
        tv, entropy = None, scipy.stats.norm.entropy(n, r).sum(axis=1)
        log_prob = scipy.stats.norm.logpdf(action, n, r).sum(axis=1)

    def mean(x):
        return np.average(x[counted], weights=weight[counted])

    ratio = np.exp(log_prob - behaviour)
    if tv is None:  # several dimensions: sampled, and bounded in the worst state
        smaller = np.minimum(forward, backward)
        tv, tv_max = np.abs(ratio - 1) / 2, np.minimum(np.sqrt(smaller / 2), np.sqrt(1 - np.exp(-smaller)))
    else:
        tv_max = tv
    return {
        "surrogate_gain": mean((ratio - 1) * np.asarray(batch.advantage, float)),
        "kl_old_new": mean(forward),
        "kl_new_old": mean(backward),
        "kl_max": (forward if direction == "old_new" else backward)[counted].max(),
        "tv": mean(tv),
        "tv_max": tv_max[counted].max(),
        "entropy": mean(entropy),
        "ess": mean(ratio) ** 2 / mean(ratio**2),
    }


@each_rule
def test_reports_what_the_returned_policy_is(rule, name, case):
    new, _, info = take(rule, case)
    expected = by_definition(case.policy, new, given(rule, case.batch), direction(rule))
    assert {f.name for f in dataclasses.fields(UpdateInfo)} == {*expected, "status", "errors", "extra"}
    tolerance = {"rtol": 1e-8, "atol": 1e-11} if name == "table" else {"rtol": 1e-3, "atol": 2e-6}
    for field, value in expected.items():
        np.testing.assert_allclose(getattr(info, field), value, **tolerance, err_msg=field)
    assert info.status == Status.ACCEPTED
    assert moved(case.policy, new) > 1e-5
    assert info.kl_old_new > 0
    for value in (*jax.tree.leaves(info), *jax.tree.leaves(eqx.filter(new, eqx.is_array))):
        assert np.isfinite(value).all()
    assert all(value.shape == () for value in jax.tree.leaves(info))


@each_rule_with_advantages
def test_gain_has_the_standard_error_of_its_mean(rule, gaussian):
    new, _, info = take(rule, gaussian)
    batch, counted = gaussian.batch, slice(0, ROWS - PADDING)
    ratio = np.exp(np.asarray(log_ratio(action_distribution(new, batch.obs), batch), float))
    gains = ((ratio - 1) * np.asarray(batch.advantage))[counted]
    error = gains.std() / math.sqrt(len(gains))
    assert float(info.errors.surrogate_gain_se) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "float64", "float32 under x64"])
@each_rule
def test_keeps_the_precision_it_is_given(rule, name, precision):
    """Types, shapes and weak types of policy and state come out as they went in: no retrace, no promotion."""
    with jax.enable_x64(precision != "float32"):
        dtype = jnp.float32 if precision.startswith("float32") else jnp.float64
        convert = lambda x: jnp.asarray(x, dtype if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else int)  # noqa: E731
        policy, batch = jax.tree.map(convert, make_case(name))
        state = rule.init(policy)
        arrays = lambda tree: eqx.filter(tree, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))  # noqa: E731
        before = jax.tree.map(lambda x: (x.shape, x.dtype), arrays((policy, state)))
        new, new_state, info = eqx.filter_eval_shape(rule.step, jax.random.key(0), policy, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays((new, new_state))) == before
        assert not any(x.weak_type for x in jax.tree.leaves(arrays((new, new_state))))
        assert info.status.dtype == jnp.int32
        reported = jax.tree.leaves(eqx.tree_at(lambda i: i.status, info, None))
        assert {x.dtype for x in reported} == {jnp.dtype(dtype)}


@each_rule
def test_is_traced_once_in_ten_steps(rule, gaussian):
    """Ten steps as in training: a new batch of the same shape each time, `fraction_done` going on."""
    policy, state, before = gaussian.policy, rule.init(gaussian.policy), TRACES[rule]
    for k in range(10):
        batch = eqx.tree_at(lambda b: b.fraction_done, make_case("gaussian", k).batch, jnp.float32(k / 10))
        policy, state, _ = compiled(rule)(jax.random.key(k), policy, state, given(rule, batch))
    # Not even once when another test has already compiled it.
    assert TRACES[rule] - before <= 1
    assert moved(gaussian.policy, policy) > 1e-4


@each_rule_slowly
def test_jit_changes_nothing_but_speed(rule, table):
    policy, batch = table
    eager = rule.step(jax.random.key(0), policy, rule.init(policy), given(rule, batch))
    assert_close(eager, take(rule, table), rtol=1e-8, atol=1e-10)


@each_rule_slowly
def test_seeds_run_together_as_they_run_alone(rule, x64):
    cases = [make_case("table", seed) for seed in range(3)]
    static = eqx.partition(cases[0], eqx.is_array)[1]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(eqx.filter(case, eqx.is_array) for case in cases))

    @jax.jit
    @jax.vmap
    def step(key, arrays):
        case = eqx.combine(arrays, static)
        result = rule.step(key, case.policy, rule.init(case.policy), given(rule, case.batch))
        return eqx.filter(result, eqx.is_array)

    together = step(jax.vmap(jax.random.key)(jnp.arange(3)), stacked)
    for seed, case in enumerate(cases):
        alone = eqx.filter(take(rule, case, key=seed), eqx.is_array)
        assert_close(jax.tree.map(lambda x, k=seed: x[k], together), alone, rtol=1e-8, atol=1e-10)


@each_rule
def test_is_a_function_of_its_key(rule, case):
    first, again, other = (take(rule, case, key=key) for key in (5, 5, 6))
    assert_same_bits(first, again)
    if draws(rule):
        assert moved(first[0], other[0]) > 0
    else:
        assert_same_bits(first, other)


@each_rule_with_advantages
def test_no_advantage_means_no_movement(rule, case):
    """Not by one bit, from the start and with rounding noise for an adaptive optimiser to amplify."""
    batch = case.batch
    equal = jnp.full(batch.advantage.shape, 0.1, batch.advantage.dtype)
    for advantage in (jnp.zeros_like(equal), normalise(equal, batch.weight).advantage):
        still = Case(case.policy, eqx.tree_at(lambda b: b.advantage, batch, advantage))
        new, _, info = take(rule, still)
        assert_same_bits(new, case.policy)
        assert info.status in (Status.ACCEPTED, Status.NO_IMPROVEMENT)
        assert_stood_still(info)


def assert_stood_still(info: UpdateInfo) -> None:
    """The diagnostics of a policy that has not moved."""
    for field in ("kl_old_new", "kl_new_old", "kl_max", "tv_max"):
        assert getattr(info, field) == 0, field


JUNK = {
    "large": {"advantage": 1e6, "log_prob": -50.0, "obs": 1e3, "value_target": 1e6},
    "nan": {"advantage": np.nan, "log_prob": np.nan, "obs": np.nan, "value_target": np.nan},
    "infinite": {"advantage": np.inf, "log_prob": -np.inf, "obs": np.inf, "value_target": -np.inf},
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", [CATEGORICAL, "gaussian"], indirect=True)
@each_rule
def test_padding_has_no_say(rule, case, junk):
    spoilt = Case(case.policy, change(case.batch, slice(-PADDING, None), **JUNK[junk]))
    new, state, info = take(rule, spoilt)
    assert info.status == Status.ACCEPTED
    assert_same_bits((new, state, info), take(rule, case))


@over(lambda rule: not draws(rule))
def test_padding_might_as_well_be_left_out(rule, table):
    padded = change(table.batch, slice(-PADDING, None), weight=0.0)
    kept = jax.tree.map(lambda x: x[:-PADDING] if jnp.ndim(x) else x, table.batch)
    assert len(kept.weight) == len(padded.weight) - PADDING
    without, among = (take(rule, Case(table.policy, batch)) for batch in (kept, padded))
    assert_close(without, among, rtol=1e-8, atol=1e-10)
    assert moved(among[0], take(rule, table)[0]) > 1e-6


SPOILT = [("advantage", np.nan), ("advantage", -np.inf), ("log_prob", np.nan), ("log_prob", np.inf), ("obs", np.nan)]


@pytest.mark.parametrize(("column", "value"), SPOILT, ids=lambda x: str(x))
@each_rule
def test_a_batch_that_is_not_finite_is_rejected_whole(rule, name, case, column, value):
    """Status NONFINITE; the policy and the rule's state come back bit for bit."""
    if column == "obs" and name == "table":
        return  # state numbers are integers
    policy, state, _ = take(rule, case)  # a state that has something to lose
    spoilt = Case(policy, change(case.batch, 7, **{column: value}))
    new, new_state, info = take(rule, spoilt, state=state)
    assert Status(int(info.status)) is Status.NONFINITE
    assert "NaN" in Status(int(info.status)).message
    assert_same_bits((new, new_state), (policy, state))
    if column != "obs":
        assert_stood_still(info)


@pytest.mark.parametrize(
    "rule_class",
    [
        pytest.param(rule_class, marks=[] if rule_class is PPO else pytest.mark.slow)
        for rule_class in dict.fromkeys(map(type, RULES))
        if hasattr(rule_class, "learning_rate")
    ],
)
def test_a_policy_that_overflows_is_not_returned(rule_class, gaussian):
    """Parameters of 10⁴ are finite; a deviation of exp(10⁴) is not, nor is its divergence from the old policy."""
    rule = rule_class(learning_rate=1e4)
    new, state, info = take(rule, gaussian)
    assert Status(int(info.status)) is Status.NONFINITE
    assert_same_bits((new, state), (gaussian.policy, rule.init(gaussian.policy)))
    assert_stood_still(info)
    assert all(np.isfinite(value) for name, value in vars(info).items() if name not in ("errors", "extra"))
    assert all(np.isfinite(value) for value in vars(info.errors).values())


@over(lambda rule: hasattr(rule, "max_kl"))
def test_max_kl_is_enforced(rule, name):
    """On the policy returned, in the direction the rule names, from many starting points."""
    reached = []
    for seed in range(8):
        case = make_case(name, seed)
        new, _, info = take(rule, case)
        again = by_definition(case.policy, new, case.batch, rule.kl_direction)
        reached.append(again[f"kl_{rule.kl_direction}"] / rule.max_kl)
        assert info.status == Status.ACCEPTED
        assert again["surrogate_gain"] > 0
    assert max(reached) <= 1 + (1e-9 if name == "table" else 1e-4)
    assert min(reached) > 0.2  # the region is used


@pytest.mark.parametrize("name", ["table"], indirect=True)
@pytest.mark.parametrize("seed", range(3))
@each_rule
def test_the_first_step_goes_uphill_on_the_exact_objective(rule, name, seed):
    """⟨θ' − θ, ∇J⟩ > 0 with ∇J by autodiff through the policy's table, and J itself rises."""
    mdp, case = make_mdp(seed, STATES, ACTIONS), make_case("table", seed)
    objective = lambda policy: mdp.objective(jax.nn.softmax(policy.logits))  # noqa: E731
    gradient = jax.grad(objective)(case.policy).logits
    new, _, _ = take(rule, case)
    step = new.logits - case.policy.logits
    cosine = jnp.vdot(step, gradient) / (jnp.linalg.norm(step) * jnp.linalg.norm(gradient))
    assert cosine > 0.2
    assert objective(new) > objective(case.policy)


def off_by_default(rule_class: type) -> set[str]:
    """The schedules and other options of a rule that change nothing by their defaults."""
    names = {*SCHEDULES.values(), "ent_coef", "min_gain_share", "target_kl"}
    return names & {field.name for field in dataclasses.fields(rule_class)}


def test_every_option_that_is_off_by_default_is_turned_on_here():
    for rule_class in {type(rule) for rule in RULES}:
        default, rules = rule_class(), [rule for rule in OPTIONS if type(rule) is rule_class]
        for name in off_by_default(rule_class):
            assert any(getattr(rule, name) != getattr(default, name) for rule in rules), (rule_class, name)


@pytest.mark.parametrize("rule", slow_except([OPTIONS[8], OPTIONS[10]], OPTIONS), ids=rule_id)
def test_options_keep_to_the_contract(rule, gaussian):
    """The tests above in short, in the middle of a training, with one compilation for all of them."""
    before = TRACES[rule]
    case = Case(gaussian.policy, eqx.tree_at(lambda b: b.fraction_done, gaussian.batch, jnp.float32(0.5)))
    new, state, info = take(rule, case)
    assert info.status == Status.ACCEPTED
    for field, value in by_definition(case.policy, new, given(rule, case.batch), direction(rule)).items():
        np.testing.assert_allclose(getattr(info, field), value, rtol=1e-3, atol=2e-6, err_msg=field)
    assert moved(case.policy, new) > 1e-5
    if isinstance(rule, TRPO):
        assert getattr(info, f"kl_{rule.kl_direction}") <= info.extra["max_kl"] * (1 + 1e-4)
    # Metrics: of what has a schedule all, and nothing that the traits do not explain.
    scheduled = {name for name, schedule in SCHEDULES.items() if getattr(rule, schedule, "constant") != "constant"}
    assert scheduled <= info.extra.keys() <= traits_of(rule).metrics.keys()
    assert all(np.isfinite(value) for value in info.extra.values())
    # The same key gives the same bits, and padding has no say.
    spoilt = Case(case.policy, change(case.batch, slice(-PADDING, None), **JUNK["nan"]))
    assert_same_bits(take(rule, spoilt), (new, state, info))
    # What is not finite is rejected whole, with a state that has something to lose.
    broken = Case(new, change(case.batch, 7, advantage=np.nan))
    kept, kept_state, info = take(rule, broken, state=state)
    assert Status(int(info.status)) is Status.NONFINITE
    assert_same_bits((kept, kept_state), (new, state))
    # Later in the training, from a state as it comes out: no types have changed, so nothing is compiled again.
    later = Case(new, eqx.tree_at(lambda b: b.fraction_done, case.batch, jnp.float32(0.75)))
    assert moved(take(rule, later, state=state)[0], new) > 1e-6
    assert TRACES[rule] - before == 1
    config = RunConfig("CartPole-v1", rule, TrainOptions(critic_learning_rate_schedule="cosine"))
    assert RunConfig.from_toml(config.to_toml()) == config


# The batch that rules are given.


@pytest.mark.parametrize("env", [CartPole(), Pendulum()], ids=lambda env: env.id)
def test_ratios_are_one_on_what_was_just_collected(env):
    """Recomputed outside the collector, at the same parameters and with a normaliser that has seen observations."""
    size, actions = env.observation_space.shape[0], action_spec(env.action_space)
    policy = NetworkPolicy(size, actions, hidden=(8,), key=jax.random.key(0))
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + 0.3 * jax.random.normal(jax.random.key(1), theta.shape))
    seen = jax.random.normal(jax.random.key(2), (50, size)) * 3 + 1
    policy = eqx.tree_at(lambda p: p.encoder.normalizer, policy, policy.encoder.normalizer.update(seen, jnp.ones(50)))
    collector = CompiledCollector(env, num_envs=4, num_steps=32)
    _, rollout, _ = eqx.filter_jit(lambda key: collector.collect(key, policy, collector.init(key)))(jax.random.key(3))
    distribution = policy(rollout.obs)
    np.testing.assert_allclose(np.exp(distribution.log_prob(rollout.action) - rollout.log_prob), 1, rtol=0, atol=2e-6)
    forgetful = eqx.tree_at(lambda p: p.encoder.normalizer, policy, Normalizer.identity((size,)))
    wrong = np.exp(forgetful(rollout.obs).log_prob(rollout.action) - rollout.log_prob)
    assert np.abs(wrong - 1).max() > 1e-2


# Configuration.


def test_every_rule_of_the_command_line_is_here():
    # Guided policy search learns from whole episodes and takes samples of its own, which these batches are not:
    # tests/guided/test_importance_sampled.py, test_mirror_descent.py and test_search.py are its contract.
    assert {type(rule) for rule in RULES} == set(REGISTRY.values()) - {GuidedPolicySearch}


@each_rule
def test_configuration_survives_json_and_toml(rule):
    tree = json.loads(json.dumps(dataclasses.asdict(rule)))
    again = build(type(rule), tree)
    assert again == rule
    assert hash(again) == hash(rule)
    assert {name: type(value) for name, value in vars(again).items()} == {
        name: type(value) for name, value in vars(rule).items()
    }
    options = TrainOptions(hidden=(32, 16), gamma=0.995, critic_learning_rate=1e-5, normalize_advantage=False)
    config = RunConfig('odd "env"\\ \u00e9\n\x7f-v0', rule, options)
    assert RunConfig.from_toml(config.to_toml()) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config != RunConfig(config.env, rule, dataclasses.replace(options, seed=1))


def numbers(rule: Rule) -> list[str]:
    return [
        f.name for f in dataclasses.fields(rule) if isinstance(f.default, int | float) and type(f.default) is not bool
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "much"], ids=str)
@pytest.mark.parametrize("rule_class", REGISTRY.values(), ids=REGISTRY)
def test_no_number_may_be_nan_infinite_or_negative(rule_class, value):
    assert numbers(rule_class())
    for name in numbers(rule_class()):
        with pytest.raises(ConfigError, match=rf"^{name} = "):
            rule_class(**{name: value})
        with pytest.raises(ConfigError, match=rf"^{name} = "):
            dataclasses.replace(rule_class(), **{name: value})
        with pytest.raises(ConfigError, match=rf"^{name} = "):
            build(rule_class, {name: value})


ZERO = [(Reinforce, "learning_rate"), (TRPO, "max_kl"), (PPO, "learning_rate"), (PPO, "clip_eps"), (PPO, "target_kl")]
ZERO += [(TRPO, "cg_iterations"), (TRPO, "backtrack_factor"), (PPO, "epochs"), (PPO, "num_minibatches")]
ZERO += [(Reinforce, "max_grad_norm"), (PPO, "max_grad_norm"), (DualDescent, "epsilon"), (NaturalGradient, "epsilon")]
ZERO += [(OffPolicyGradient, "history"), (OffPolicyGradient, "gradient_steps"), (OffPolicyGradient, "max_weight")]
ZERO += [(KLPenalty, "learning_rate"), (NaturalGradient, "learning_rate"), (TRPO, "fisher_fraction")]
ZERO += [(DualDescent, "max_multiplier"), (BehaviourCloning, "minibatch_size"), (BehaviourCloning, "holdout_patience")]
ZERO += [(AWR, "temperature"), (AWR, "max_weight"), (REPS, "epsilon"), (VMPO, "epsilon"), (VMPO, "top_fraction")]
ZERO += [(ConservativePolicyIteration, "mixture"), (ConservativePolicyIteration, "temperature")]


@pytest.mark.parametrize(("rule_class", "field"), ZERO, ids=lambda x: getattr(x, "__name__", x))
def test_what_has_to_be_positive_may_not_be_zero(rule_class, field):
    with pytest.raises(ConfigError, match=rf"^{field} = 0: .*greater than"):
        build(rule_class, {field: 0})


def test_fractions_stay_below_one():
    for rule_class, field in (
        (TRPO, "backtrack_factor"),
        (PPO, "clip_eps"),
        (ConservativePolicyIteration, "mixture"),
    ):
        with pytest.raises(ConfigError, match=rf"^{field} = 1: .*less than 1"):
            build(rule_class, {field: 1})


@pytest.mark.parametrize("rule_class", REGISTRY.values(), ids=REGISTRY)
def test_unknown_fields_are_refused_by_name(rule_class):
    with pytest.raises(ConfigError, match=rf"^{rule_class.__name__} has no option 'learning_rat'"):
        rule_class(learning_rat=0.1)
    with pytest.raises(ConfigError, match=f"{rule_class.__name__} has no option 'colour'"):
        build(rule_class, {"colour": 1})


def test_a_misspelt_field_gets_the_right_one():
    with pytest.raises(ConfigError, match=r"TRPO has no option 'max_lk'; did you mean 'max_kl'\?"):
        build(TRPO, {"max_lk": 0.1})
    with pytest.raises(ConfigError, match=r"^kl_direction = 'forward': .*'old_new' or 'new_old'"):
        build(TRPO, {"kl_direction": "forward"})


def test_solvers_that_need_damping_say_so():
    for solver in ("woodbury", "dense"):
        with pytest.raises(ConfigError, match=rf"^solver = {solver} needs damping > 0: "):
            build(NaturalGradient, {"solver": solver, "damping": 0})


@each_rule
def test_rules_are_frozen(rule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, dataclasses.fields(rule)[0].name, 1.0)


def test_every_outcome_has_a_message_with_cause_and_remedy():
    messages = {status: status.message for status in Status}
    assert len(set(messages.values())) == len(Status)
    remedies = {
        "KL_TOO_LARGE": "raise",
        "NO_IMPROVEMENT": "larger",
        "NONFINITE": "lower",
        "CG_BREAKDOWN": "raise damping",
    }
    for name, remedy in remedies.items():
        assert remedy in Status[name].message
