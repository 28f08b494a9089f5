"""The last K rollouts: a ring, and what every policy of it says of every action."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import NetworkPolicy, OffPolicyGradient
from klimb.collect.compiled import CompiledCollector
from klimb.collect.history import History
from klimb.environments.control.cartpole import CartPole
from klimb.estimate.importance import mixture_by_shares
from klimb.policies.actions import Discrete

K, T, N = 3, 5, 2


@pytest.fixture(scope="module")
def collected():
    """Five policies, and what each has collected."""
    collector = CompiledCollector(CartPole(), num_envs=N, num_steps=T)
    policies = [NetworkPolicy(4, Discrete(2), hidden=(3,), key=jax.random.key(k)) for k in range(5)]
    # Away from the symmetric start, where all policies say the same.
    policies = [eqx.tree_at(lambda p: p.network.weights[-1], p, 50 * p.network.weights[-1]) for p in policies]
    collect = eqx.filter_jit(lambda key, policy: collector.collect(key, policy, collector.init(key))[1])
    return policies, [collect(jax.random.key(9 + k), policy) for k, policy in enumerate(policies)]


def pushed(collected, count: int, *, keeps_policies: bool = True) -> History:
    policies, rollouts = collected
    arrays, static = zip(*(eqx.partition(policy, eqx.is_array) for policy in policies), strict=True)
    history = History.empty(K, rollouts[0], arrays[0], keeps_policies=keeps_policies)
    push = eqx.filter_jit(History.push)
    for k in range(count):
        history = push(history, rollouts[k], arrays[k], static[0])
    return history


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_keeps_the_last_rollouts_side_by_side(collected, count):
    _, rollouts = collected
    merged = pushed(collected, count, keeps_policies=False).merged()
    assert merged.reward.shape == (T, K * N)
    kept = {np.asarray(r.obs).tobytes() for r in rollouts[max(0, count - K) : count]}
    slots = [jax.tree.map(lambda x, j=j: x[:, j * N : (j + 1) * N], merged) for j in range(K)]
    assert {np.asarray(slot.obs).tobytes() for slot in slots if slot.valid.all()} == kept
    assert sum(bool(slot.valid.all()) for slot in slots) == min(count, K)
    assert all(slot.valid.all() or not slot.valid.any() for slot in slots)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_mixture_asks_every_policy_about_every_action(collected, count):
    """Incrementally kept log-probs are those of asking anew. Empty slots have no share, others equal ones."""
    policies, _ = collected
    history = pushed(collected, count)
    merged = history.merged()
    collected_by, ended = jnp.repeat(jnp.arange(K), N), merged.terminated | merged.truncated
    mixture = mixture_by_shares(history.merged_log_prob(), collected_by, merged.valid, ended)
    last = range(max(0, count - K), count)
    for k in last:
        expected = policies[k](merged.obs).log_prob(merged.action)
        np.testing.assert_allclose(
            np.where(merged.valid, mixture.log_prob[k % K], 0),
            np.where(merged.valid, expected, 0),
            rtol=1e-5,
            atol=1e-6,
        )
        own = slice((k % K) * N, (k % K + 1) * N)
        np.testing.assert_allclose(mixture.log_prob[k % K, :, own], merged.log_prob[:, own], rtol=1e-5, atol=1e-6)
    for shares in (np.exp(mixture.log_share), np.exp(mixture.log_row_share)):
        assert shares.sum() == pytest.approx(1)
        assert sorted(shares)[-len(last) :] == pytest.approx([1 / len(last)] * len(last))
    assert history.count == count


def test_memory_is_bounded(collected):
    sizes = [sum(x.size for x in jax.tree.leaves(pushed(collected, count))) for count in (1, 5)]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "behaviour"),
    [
        ("CartPole-v1", "mixture"),
        pytest.param("gymnasium:CartPole-v1", "recorded", marks=pytest.mark.slow),
        pytest.param("CartPole-v1", "recorded", marks=pytest.mark.slow),
        pytest.param("gymnasium:CartPole-v1", "mixture", marks=pytest.mark.slow),
    ],
)
def test_runs_learn_from_several_batches_on_the_device_and_on_the_host(env, behaviour):
    """The newest batch is part of it: on the first step all weights are 1, later ones are not."""
    rule = OffPolicyGradient(history=3, behaviour=behaviour, gradient_steps=1, learning_rate=0.01)
    run = klimb.train(env, rule, env_steps=5 * 128, num_envs=4, num_steps=32, hidden=(8,), num_seeds=2)
    ess = np.array([record["weight_ess"] for record in run.history])
    assert (ess > 0.2).all()
    assert (ess[0] > 0.99).all()
    assert (ess[-1] < 0.9999).all()
    assert np.isfinite([record["kl_old_new"] for record in run.history]).all()
    assert run.state.history.rollouts.reward.shape == (2, 3, 32, 4)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, pytest.param(True, id="overlap")])
def test_the_policy_of_a_slot_is_the_one_that_collected_it(overlap):
    """Also where it acted during the update before: its log-probs of its own actions are those recorded."""
    rule = OffPolicyGradient(history=3, behaviour="mixture", learning_rate=0.03)
    options = dict(env_steps=5 * 128, num_envs=4, num_steps=32, hidden=(8,), workers=0, overlap=overlap)
    history = klimb.train("gymnasium:Pendulum-v1", rule, **options).state.history
    for slot in range(3):
        own = history.log_prob[0, slot, slot]
        np.testing.assert_allclose(own, history.rollouts.log_prob[0, slot], rtol=1e-4, atol=1e-5)
        other = history.log_prob[0, (slot + 1) % 3, slot]
        assert np.abs(other - own).max() > 1e-2
