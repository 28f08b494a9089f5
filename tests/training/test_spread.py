"""One seed on two devices, with its environments or its rows spread over them, against the same on one."""

from __future__ import annotations

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import klimb
from klimb import PPO, TRPO, BehaviourCloning, ConfigError, RunConfig, TrainOptions
from klimb.improve.fisher import fisher_vector_product
from klimb.improve.objectives import surrogate_gain
from klimb.mesh import gather_environments, gather_rows, spread_environments, spread_rows
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.training.devices import Layout
from klimb.training.program import Program
from klimb.training.spread import WORTHWHILE, WORTHWHILE_BETWEEN_PROCESSES, Spread, spread_of
from problems import slow_except
from test_contract import RULES, make_case, rule_id

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
COLLECTIVE = re.compile(r"\b(?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(")

pytestmark = [
    pytest.mark.usefixtures("two_devices"),
    pytest.mark.filterwarnings("ignore:Some donated buffers were not usable"),
]


def compiled(function, *arguments, rows=True):
    """A function of one copy, over two devices: the compiled program."""
    layout = Layout(1, jax.local_devices(), Spread(2, rows=rows))
    one = lambda *rows: jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], rows)))  # noqa: E731
    program = layout.compile(one, by_seed=[True] * len(arguments))
    return program.lower(*jax.tree.map(lambda x: jnp.asarray(x)[None], arguments)).compile()


def spread_result(function, *arguments):
    program = compiled(function, *arguments)
    made = program(*jax.tree.map(lambda x: jnp.asarray(x)[None], arguments))
    return jax.tree.map(lambda x: np.asarray(x[0]), made), COLLECTIVE.findall(program.as_text())


def in_double_precision(x):
    return x.astype(jnp.float64) if eqx.is_inexact_array(x) else x


def test_gradients_and_fisher_products_are_those_of_one_device():
    policy, batch = make_case("gaussian")
    theta, rebuild = flatten(policy)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=theta.shape), theta.dtype)

    def both(theta, direction, batch):
        batch = batch.spread()
        gain = lambda v: surrogate_gain(action_distribution(rebuild(v), batch.obs), batch)  # noqa: E731
        product = fisher_vector_product(rebuild(theta), batch.obs, batch.weight)
        return jax.grad(gain)(theta), product(direction)

    expected = jax.jit(both)(theta, direction, batch)
    found, collectives = spread_result(both, theta, direction, batch)
    for x, y in zip(found, expected, strict=True):
        assert np.linalg.norm(x - y) <= 1e-6 * np.linalg.norm(y)
    assert collectives, "each device has computed everything"


@pytest.mark.parametrize(
    "rule",
    slow_except([TRPO(), PPO()], [rule for rule in RULES if not isinstance(rule, BehaviourCloning)]),
    ids=lambda rule: rule_id(rule),
)
def test_a_step_is_that_of_one_device(rule, x64):
    """In double precision: conjugate gradient makes the last digits of a sum the first ones of what is left over."""
    policy, batch = jax.tree.map(in_double_precision, make_case("gaussian"))
    arrays, static = eqx.partition(policy, eqx.is_array)

    def step(arrays, batch):
        policy = eqx.combine(arrays, static)
        new, _, info = rule.step(jax.random.key(3), policy, rule.init(policy), batch.spread())
        return eqx.filter(new, eqx.is_array), info.status, info.kl_old_new

    expected = jax.jit(step)(arrays, batch)
    (found, status, kl), _ = spread_result(step, arrays, batch)
    before, after, spread = (np.asarray(ravel_pytree(tree)[0]) for tree in (arrays, expected[0], found))
    assert int(status) == int(expected[1])
    assert float(kl) == pytest.approx(float(expected[2]), rel=1e-6)
    step_size = np.linalg.norm(after - before)
    assert step_size > 1e-3
    assert np.linalg.norm(spread - after) <= 1e-6 * step_size


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["rows", "environments"])
@pytest.mark.parametrize("env", ["CartPole-v1", "gymnasium:CartPole-v1"])
def test_a_training_is_that_on_one_device(env, spread):
    options = dict(SMALL, env_steps=3 * 128, workers=0)
    alone = klimb.train(env, TRPO(), cores=1, **options)
    both = klimb.train(env, TRPO(), learn_on=2, spread=spread, **options)
    x, y = (np.asarray(ravel_pytree(run.state.policy)[0]) for run in (alone, both))
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
    for one, other in zip(alone.history, both.history, strict=True):
        assert one["episode_return"] == pytest.approx(other["episode_return"], nan_ok=True)
        assert one["status"] == other["status"]


@pytest.mark.slow
def test_two_seeds_of_two_devices_each_are_the_seeds_alone():
    options = dict(SMALL, env_steps=3 * 128, learn_on=2, spread="rows")
    together = klimb.train("CartPole-v1", TRPO(), num_seeds=2, **options)
    for seed in range(2):
        alone = klimb.train("CartPole-v1", TRPO(), seed=seed, **options)
        x, y = (np.asarray(ravel_pytree(run)[0]) for run in (alone.policy, together.policies[seed]))
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    options = dict(SMALL, env_steps=3 * 128, run_dir=tmp_path / "run")
    klimb.train("CartPole-v1", TRPO(), learn_on=2, **options)
    run = klimb.resume(tmp_path / "run", env_steps=5 * 128, learn_on=1, cores=1)
    assert run.history[-1]["iteration"] == 5


def test_each_device_has_its_share():
    """And learns from all of them where only the environments are spread."""

    def collected(x):
        x = spread_environments(x * 2, axis=1)
        return gather_rows(spread_rows(gather_environments(x), axis=1).sum(1))

    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    for rows, kind in ((True, "all-reduce"), (False, "all-gather")):
        program = compiled(collected, x, rows=rows)
        np.testing.assert_allclose(program(x[None])[0], 2 * x.sum(1))
        assert kind in program.as_text()


def test_without_a_mesh_nothing_is_spread():
    tree = {"x": jnp.ones(3), "none": None}
    for function in (spread_environments, gather_environments, spread_rows, gather_rows):
        assert function(tree) is tree
        assert "sharding" not in str(jax.make_jaxpr(function)(tree["x"]))


def test_rows_that_can_not_be_shared_out_stay():
    np.testing.assert_array_equal(spread_result(lambda x: spread_rows(x) + 1, np.ones(3, np.float32))[0], 2)


def resolved(learn_on=None, spread="auto", **changes):
    given = {"devices": 8, "seeds": 1, "processes": 1, "num_envs": 16, "compiled": True, "work": 0}
    return spread_of(learn_on, spread, **{**given, **changes})


def test_what_the_options_come_to():
    assert resolved() is None
    assert resolved(1) is None
    assert resolved(4) == Spread(4, rows=False)
    assert resolved(4, work=WORTHWHILE) == resolved(4, "rows") == Spread(4, rows=True)
    assert resolved(4, "environments", work=WORTHWHILE) == Spread(4, rows=False)
    assert resolved(8, processes=2, work=WORTHWHILE) == Spread(8, rows=False)
    assert resolved(8, processes=2, work=WORTHWHILE_BETWEEN_PROCESSES) == Spread(8, rows=True)
    # Several processes: all devices, or as many seeds beside each other as there is room for.
    assert resolved(processes=2) == Spread(8, rows=False)
    assert resolved(processes=2, seeds=4) == Spread(2, rows=False)
    assert resolved(processes=2, seeds=8) is None
    assert resolved(processes=2, seeds=3) == Spread(4, rows=False)


@pytest.mark.parametrize(("learn_on", "seeds"), [(1, 1), (3, 8), (2, 3)])
def test_no_process_is_left_without_a_device(learn_on, seeds):
    with pytest.raises(ConfigError, match="of the 2 processes without work: choose learn_on = "):
        resolved(learn_on, processes=2, seeds=seeds)


@pytest.mark.parametrize(
    ("env", "rule", "options", "message"),
    [
        ("CartPole-v1", TRPO(), {"learn_on": 16}, "learn_on = 16, but JAX has 2 devices"),
        ("CartPole-v1", TRPO(), {"learn_on": 2, "num_envs": 5}, r"num_envs = 5 .* choose num_envs = 4"),
        ("CartPole-v1", TRPO(), {"learn_on": 2, "cores": 1}, "learn_on = 2, but JAX has 1 device:"),
    ],
)
def test_mistakes_are_named(env, rule, options, message):
    with pytest.raises(ConfigError, match=message):
        Program(RunConfig(env, rule, TrainOptions(**{**SMALL, **options})), klimb.make(env))
