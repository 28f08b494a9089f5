"""Behaviour cloning: maximum likelihood with an answer known in closed form, held-out episodes, early stopping."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import Batch, BehaviourCloning, Rollout, Status
from klimb.improve.rules.behaviour_cloning import CloningState
from klimb.tabular.table import SoftmaxTable
from klimb.types import Trajectory
from problems import A, S, take

ROWS = 240


def demonstrated(policy: SoftmaxTable, episode_lengths, *, seed: int = 0, columns: int = 1) -> Batch:
    """Rows drawn from a demonstrator who prefers action s mod A in state s; one column of episodes after episodes."""
    rng = np.random.default_rng(seed)
    rows = sum(episode_lengths)
    state = rng.integers(S, size=rows)
    action = np.where(rng.random(rows) < 0.7, state % A, rng.integers(A, size=rows))
    ended = np.zeros(rows, bool)
    ended[np.cumsum(episode_lengths) - 1] = True
    shape = (rows // columns, columns)
    arranged = lambda x: jnp.asarray(x.reshape(columns, -1).T)  # noqa: E731
    flags, zeros = arranged(ended), jnp.zeros(shape)
    states, actions = arranged(state), arranged(action)
    rollout = Rollout(
        states[..., None].astype(float), actions, zeros, zeros, flags, jnp.zeros(shape, bool),
        states[..., None].astype(float), jnp.ones(shape, bool),
    )  # fmt: skip
    flat_state, flat_action = states.reshape(-1), actions.reshape(-1)
    return Batch(
        obs=flat_state,
        action=flat_action,
        log_prob=jax.vmap(policy)(flat_state).log_prob(flat_action),
        advantage=jnp.zeros(rows),
        value_target=jnp.zeros(rows),
        weight=jnp.ones(rows),
        trajectory=Trajectory(rollout),
        fraction_done=jnp.zeros(()),
    )


@pytest.fixture
def policy(x64):
    return SoftmaxTable(jnp.zeros((S, A)))


def train(rule: BehaviourCloning, policy: SoftmaxTable, batch: Batch, epochs: int):
    """Epochs until the rule has had enough: the policy, its state, all infos."""
    state, infos = rule.init(policy), []
    for k in range(epochs):
        policy, state, info = take(rule, policy, batch, state, key=k)
        infos.append(info)
        if rule.finished(state):
            break
    return policy, state, infos


def test_converges_to_the_frequencies_of_the_demonstrations(policy):
    """The maximum-likelihood softmax table is the table of counts."""
    batch = demonstrated(policy, [ROWS])
    rule = BehaviourCloning(holdout=0.0, learning_rate=0.1, minibatch_size=ROWS)
    cloned, _, infos = train(rule, policy, batch, 400)
    counts = np.zeros((S, A))
    np.add.at(counts, (np.asarray(batch.obs), np.asarray(batch.action)), 1)
    np.testing.assert_allclose(jax.nn.softmax(cloned.logits), counts / counts.sum(1, keepdims=True), rtol=0, atol=1e-3)
    best = (counts * np.log(counts / counts.sum(1, keepdims=True))).sum() / ROWS
    assert float(infos[-1].extra["log_likelihood"]) == pytest.approx(best, abs=1e-5)
    assert float(infos[0].extra["log_likelihood"]) < best - 0.1


def held_rows(rule: BehaviourCloning, batch: Batch) -> np.ndarray:
    return np.asarray(rule._held_out(batch))


@pytest.mark.parametrize("columns", [1, 2])
def test_whole_episodes_are_held_out(policy, columns):
    batch = demonstrated(policy, [12] * 20, columns=columns)
    held = held_rows(BehaviourCloning(holdout=0.1), batch).reshape(-1, columns).T.reshape(20, 12)
    assert (held.all(1) | ~held.any(1)).all()
    assert held.all(1).sum() == 2


@pytest.mark.parametrize(
    ("lengths", "share"), [([60, 180], (0.2, 0.8)), ([240], (0.09, 0.11)), ([24] * 10, (0.1, 0.1))]
)
def test_there_is_always_something_held_out_and_something_left(policy, lengths, share):
    held = held_rows(BehaviourCloning(holdout=0.1), demonstrated(policy, lengths))
    assert share[0] <= held.mean() <= share[1]


def test_nothing_is_held_out_when_nothing_is_asked_to_be(policy):
    assert not held_rows(BehaviourCloning(holdout=0.0), demonstrated(policy, [24] * 10)).any()


def test_what_is_held_out_is_not_learned(policy):
    """Another action in the held-out episodes changes nothing of where training goes."""
    batch = demonstrated(policy, [12] * 20)
    rule = BehaviourCloning(learning_rate=0.05, minibatch_size=ROWS)
    held = held_rows(rule, batch)
    other = eqx.tree_at(lambda b: b.action, batch, jnp.where(held, (batch.action + 1) % A, batch.action))
    states = [take(rule, policy, b)[1] for b in (batch, other)]
    np.testing.assert_array_equal(states[0].theta, states[1].theta)
    assert np.abs(states[0].theta).max() > 0.01


def test_only_gains_on_the_held_out_episodes_are_kept_and_patience_ends_it(policy):
    """Few demonstrations, a big table to overfit: held-out likelihood rises, then falls; the best is returned."""
    batch = demonstrated(policy, [4] * 10, seed=4)
    rule = BehaviourCloning(learning_rate=0.3, holdout=0.3, holdout_patience=5, minibatch_size=40)
    best, state, infos = train(rule, policy, batch, 200)
    held = [float(info.extra["held_out_log_likelihood"]) for info in infos]
    assert rule.finished(state)
    assert len(infos) < 200
    assert (np.diff(held) >= 0).all()
    assert held[-1] > held[0]
    assert [Status(int(info.status)) for info in infos[-5:]] == [Status.NO_IMPROVEMENT] * 5
    assert infos[-1].kl_old_new == 0
    # Training itself has gone past it.
    assert np.abs(np.asarray(state.theta) - np.asarray(best.logits).reshape(-1)).max() > 0.1


def test_a_spoilt_epoch_is_thrown_away_whole(policy):
    batch = demonstrated(policy, [12] * 20)
    rule = BehaviourCloning(minibatch_size=ROWS)
    state = rule.init(policy)
    spoilt = eqx.tree_at(lambda b: b.log_prob, batch, batch.log_prob.at[3].set(jnp.nan))
    new, after, info = take(rule, policy, spoilt, state)
    assert Status(int(info.status)) is Status.NONFINITE
    assert np.array_equal(new.logits, policy.logits)
    assert isinstance(after, CloningState)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert np.array_equal(x, y)
