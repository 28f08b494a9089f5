"""The rule of mirror-descent guided policy search: what it learns, what it ignores, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.errors import ConfigError
from klimb.guided.kl_constrained_lqr import DualStatus
from klimb.guided.mirror_descent import EPSILON_RANGE, MirrorDescent, MirrorState
from klimb.policies.actions import Box, Discrete
from klimb.policies.networks import NetworkPolicy
from klimb.policies.parameters import flatten
from klimb.types import Batch, Rollout, Status, UpdateInfo
from linear_quadratic_task import ENVS, STEPS, batch_of, collect, policy_of, returns, step

RULE = MirrorDescent(initial_epsilon=0.1, epochs=10, minibatch_size=120, learning_rate=3e-3)


@pytest.fixture(scope="module")
def first() -> tuple[NetworkPolicy, Batch, NetworkPolicy, MirrorState, UpdateInfo]:
    """A policy, its batch, and what the first step makes of them."""
    policy = policy_of(0)
    batch = batch_of(collect(jax.random.key(0), policy))
    return policy, batch, *step(RULE, policy, RULE.init(policy), batch)


@pytest.mark.slow
def test_a_few_steps_raise_the_return() -> None:
    policy = policy_of(0)
    assert returns(policy, 100) < -100
    state = RULE.init(policy)
    for i in range(8):
        policy, state, info = step(RULE, policy, state, batch_of(collect(jax.random.key(i), policy)))
        assert info.status == Status.ACCEPTED
        assert info.extra["dual_status"] == DualStatus.CONVERGED
    # The best feedback earns −3.4 without noise.
    assert returns(policy, 100) > -8


@pytest.mark.slow
def test_what_it_says_of_a_step(first: tuple) -> None:
    policy, _, improved, state, info = first
    extra = {name: float(value) for name, value in info.extra.items()}
    assert all(np.isfinite(value) for value in extra.values())
    assert extra["model_r2"] > 0.999
    assert extra["reward_r2"] > 0.999
    assert extra["local_kl"] == pytest.approx(0.1, rel=0.11)
    assert 0 < extra["projection_kl"] < extra["local_kl"]
    assert extra["promised_improvement"] > 0
    assert extra["epsilon"] == pytest.approx(0.1)
    assert info.kl_old_new > 1e-3
    assert state.begun
    assert float(state.promised) == extra["promised_improvement"]
    assert float(jnp.max(jnp.abs(flatten(improved).theta - flatten(policy).theta))) > 0


@pytest.mark.slow
def test_promises_are_kept(first: tuple) -> None:
    policy, _, improved, state, _ = first
    realised = (returns(improved, 50) - returns(policy, 50)) / STEPS
    assert realised == pytest.approx(float(state.promised), rel=0.5)


def test_padding_plays_no_part(first: tuple) -> None:
    policy, batch, *_ = first
    rollout = batch.trajectory.rollout
    hole = jnp.zeros((STEPS, ENVS), bool).at[3, 1].set(True).at[:, 5].set(True)

    def with_holes(value: float) -> Batch:
        def fill(x: jax.Array) -> jax.Array:
            return jnp.where(hole.reshape(hole.shape + (1,) * (x.ndim - 2)), value, x)

        parts = lambda r: (r.obs, r.action, r.reward, r.successor, r.log_prob)  # noqa: E731
        filled = eqx.tree_at(parts, rollout, tuple(map(fill, parts(rollout))))
        return batch_of(eqx.tree_at(lambda r: r.valid, filled, ~hole))

    a, b = (step(RULE, policy, RULE.init(policy), with_holes(value)) for value in (0.0, jnp.nan))
    assert b[2].status == Status.ACCEPTED
    for x, y in zip(jax.tree.leaves(eqx.filter(a, eqx.is_array)), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_batch_that_is_not_finite_is_rejected(first: tuple) -> None:
    policy, batch, *_ = first
    rollout = batch.trajectory.rollout
    broken = eqx.tree_at(lambda r: r.reward, rollout, rollout.reward.at[2, 2].set(jnp.nan))
    before = RULE.init(policy)
    same, state, info = step(RULE, policy, before, batch_of(broken))
    assert info.status == Status.NONFINITE
    np.testing.assert_array_equal(flatten(same).theta, flatten(policy).theta)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_types_are_kept(first: tuple) -> None:
    policy, _, improved, state, _ = first
    for before, after in ((policy, improved), (RULE.init(policy), state)):
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            if eqx.is_array(a):
                assert (a.dtype, a.shape, False) == (b.dtype, b.shape, b.weak_type)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_single_precision_stays_single_beside_double() -> None:
    policy = policy_of(0)
    policy = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, policy)
    rng = np.random.default_rng(0)
    obs, after, action = (jnp.asarray(rng.normal(size=(4, 3, 2)), jnp.float32) for _ in range(3))
    flag, number = jnp.zeros((4, 3), bool), jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    batch = batch_of(Rollout(obs, action, number, number, flag, flag, after, ~flag))
    batch = dataclasses.replace(batch, fraction_done=jnp.zeros((), jnp.float32))
    state = RULE.init(policy)
    shapes = eqx.filter_eval_shape(RULE.step, jax.random.key(0), policy, state, batch)
    for before, after_ in zip(jax.tree.leaves((policy, state)), jax.tree.leaves(shapes[:2]), strict=True):
        if eqx.is_array(before):
            assert before.dtype == after_.dtype


def test_epsilon_follows_how_promises_are_kept() -> None:
    state = RULE.init(policy_of(0))
    state = state._replace(promised=jnp.float32(0.2), reward=jnp.float32(-1.0), begun=jnp.bool_(True))

    def after(gain: float, se: float = 0.0, epsilon: float = 0.4) -> float:
        now = state._replace(epsilon=jnp.float32(epsilon))
        return float(RULE._adapted(now, jnp.float32(gain - 1.0), jnp.float32(se)))

    assert after(0.1) == pytest.approx(0.4)  # half of it kept: as large a step as pays
    assert after(0.2) == pytest.approx(0.8)
    assert after(0.3) == pytest.approx(0.8)
    assert after(-0.5) == pytest.approx(0.2)
    assert after(0.2, se=0.4) == pytest.approx(0.2)  # nobody can tell
    assert after(0.12) == pytest.approx(0.5, rel=1e-4)
    smallest, largest = EPSILON_RANGE
    assert after(0.2, epsilon=0.1 * largest) == pytest.approx(0.1 * largest)
    assert after(-0.5, epsilon=0.1 * smallest) == pytest.approx(0.1 * smallest)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_epsilon_is_adapted_to_the_step_between_the_last_two_batches(overlap: bool) -> None:
    """With overlap batch i is of policy i − 1, so that the rewards of i and i − 1 differ by step i − 2."""
    rule, policies = dataclasses.replace(RULE, overlap=overlap), [policy_of(0)]
    state, epsilon, promised, reward = rule.init(policies[0]), [], [], 0.0
    kept = {0: 0.0, 1: 0.75, 2: 0.7, 3: 0.6, 4: 0.2}
    for i in range(5):
        rollout = collect(jax.random.key(i), policies[max(i - overlap, 0)])
        before = i - 1 - overlap
        if before >= 0:
            reward += kept[i] * promised[before]
        # Without noise: the mean reward of every column rises by this share of what that step has promised.
        noise = jnp.mean(rollout.reward, axis=0) - reward
        batch = batch_of(eqx.tree_at(lambda r: r.reward, rollout, rollout.reward - noise))
        policy, state, info = step(rule, policies[i], state, batch)
        policies.append(policy)
        epsilon.append(float(info.extra["epsilon"]))
        promised.append(float(info.extra["promised_improvement"]))
        assert promised[i] > 0
        expected = RULE.initial_epsilon if before < 0 else epsilon[before] * min(0.5 / (1 - kept[i]), 2)
        assert epsilon[i] == pytest.approx(max(expected, RULE.initial_epsilon), rel=1e-2)


@pytest.mark.slow
def test_seeds_side_by_side_and_one_after_another_agree(first: tuple) -> None:
    policies, batch = [policy_of(0), policy_of(1)], first[1]
    together = jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *policies)
    arrays, static = eqx.partition(together, eqx.is_array)

    def one(arrays: Any) -> tuple[jax.Array, jax.Array]:
        policy = eqx.combine(arrays, static)
        improved, _, info = RULE.step(jax.random.key(1), policy, RULE.init(policy), batch)
        return flatten(improved).theta, info.extra["eta"]

    found = jax.jit(jax.vmap(one))(arrays)
    mapped = jax.eval_shape(lambda a: jax.lax.map(one, a), arrays)
    assert [x.shape for x in mapped] == [x.shape for x in found]
    for i, policy in enumerate(policies):
        improved, _, info = step(RULE, policy, RULE.init(policy), batch)
        np.testing.assert_allclose(found[0][i], flatten(improved).theta, atol=2e-3)
        assert float(found[1][i]) == pytest.approx(float(info.extra["eta"]), rel=1e-3)


def test_what_it_refuses(first: tuple) -> None:
    policy, batch, *_ = first
    state = RULE.init(policy)
    with pytest.raises(ConfigError, match="this batch has none"):
        RULE.step(jax.random.key(0), policy, state, dataclasses.replace(batch, trajectory=None))
    discrete = NetworkPolicy(2, Discrete(2), hidden=(16,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match=r"is for continuous actions .* is a Categorical"):
        RULE.step(jax.random.key(0), discrete, state, batch)
    flag = jnp.zeros((2, 2), bool)
    wide = Rollout(
        jnp.zeros((2, 2, 50)),
        *(jnp.zeros((2, 2, *s)) for s in ((2,), (), ())),
        flag,
        flag,
        jnp.zeros((2, 2, 50)),
        ~flag,
    )
    large = NetworkPolicy(50, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(4,), key=jax.random.key(0))
    with pytest.raises(
        ConfigError, match=r"at most 44 coordinates, 8 of them .* observations are \[50\] and actions \[2\]"
    ):
        RULE.step(jax.random.key(0), large, state, batch_of(wide))
