"""Policies and critics with memory: cells against Equinox's, replay against stepping, and a class of one's own."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import Critic, NetworkPolicy, Rollout, Sequences
from klimb.errors import ConfigError, WrongObject
from klimb.estimate.values import remember, values
from klimb.policies.actions import Box, Discrete
from klimb.policies.memory import Memory, replay
from klimb.policies.normalizer import Rescaling
from klimb.policies.policy import action_distribution
from klimb.policies.recurrent import GRU, LSTM
from memory_tasks import Counting

FEATURES, SIZE, STEPS, COLUMNS = 3, 5, 12, 4


def like(tree, seed=0):
    """The same tree with other numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), tree)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def policy_of(kind="gru", actions=None, **options):
    actions = Discrete(3) if actions is None else actions
    policy = NetworkPolicy(FEATURES, actions, hidden=(6,), memory=kind, memory_size=SIZE, key=jax.random.key(0))
    return like(policy)


def critic_of(kind="gru"):
    critic = Critic(FEATURES, hidden=(6,), memory=kind, memory_size=SIZE, key=jax.random.key(1))
    return eqx.tree_at(lambda c: (c.memory, c.network), critic, like((critic.memory, critic.network)))


def make_rollout(policy, parts=1, seed=0):
    """Columns in which episodes of several lengths follow each other; the first one goes on from before."""
    rng = np.random.default_rng(seed)
    ended = rng.random((STEPS, COLUMNS)) < 0.25
    time = np.zeros((STEPS, COLUMNS), np.int32)
    time[0] = rng.integers(1, 4, COLUMNS) * (np.arange(COLUMNS) > 0)
    for t in range(1, STEPS):
        time[t] = np.where(ended[t - 1], 0, time[t - 1] + 1)
    rollout = Rollout(
        obs=normal(STEPS, COLUMNS, FEATURES, seed=seed),
        action=jnp.asarray(rng.integers(0, 3, (STEPS, COLUMNS)), jnp.int32),
        log_prob=jnp.zeros((STEPS, COLUMNS)),
        reward=normal(STEPS, COLUMNS, seed=seed + 1),
        terminated=jnp.asarray(ended & (rng.random((STEPS, COLUMNS)) < 0.5)),
        truncated=jnp.asarray(ended),
        successor=normal(STEPS, COLUMNS, FEATURES, seed=seed + 2),
        valid=jnp.ones((STEPS, COLUMNS), bool),
        time=jnp.asarray(time),
    )
    rollout = dataclasses.replace(rollout, truncated=rollout.truncated & ~rollout.terminated)
    carry = normal(COLUMNS, policy.carry_size, seed=seed + 3)
    memory = Memory(policy.carry_size, STEPS // parts)
    return memory.replayed(policy, rollout, carry), carry


def stepped(step, rollout, carry):
    """What `step` makes of every row, one after the other and column by column, and what is remembered after each."""
    made, remembered = [], []
    for n in range(COLUMNS):
        now = carry[n]
        for t in range(STEPS):
            now = jnp.zeros_like(now) if int(rollout.time[t, n]) == 0 else now
            answer, now = step(rollout.obs[t, n], now)
            made.append(answer)
            remembered.append(now)

    def in_order(rows):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(COLUMNS, STEPS, *x.shape[1:]), 0, 1), stacked)

    return in_order(made), in_order(remembered)


def test_a_gru_is_that_of_equinox(x64):
    layer, cell = (
        like(GRU(FEATURES, SIZE, key=jax.random.key(0))),
        eqx.nn.GRUCell(FEATURES, SIZE, key=jax.random.key(1)),
    )
    cell = eqx.tree_at(
        lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n),
        cell,
        (layer.input_weight.T, layer.recurrent_weight.T, layer.bias, layer.reset_bias),
    )
    x, h = normal(FEATURES), normal(SIZE, seed=1)
    np.testing.assert_allclose(layer(x, h), cell(x, h), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(layer.units(h), h)


def test_an_lstm_is_that_of_equinox(x64):
    layer = like(LSTM(FEATURES, SIZE, key=jax.random.key(0)))
    cell = eqx.nn.LSTMCell(FEATURES, SIZE, key=jax.random.key(1))
    cell = eqx.tree_at(
        lambda c: (c.weight_ih, c.weight_hh, c.bias),
        cell,
        (layer.input_weight.T, layer.recurrent_weight.T, layer.bias),
    )
    x, carry = normal(FEATURES), normal(2 * SIZE, seed=1)
    h, c = cell(x, (carry[:SIZE], carry[SIZE:]))
    np.testing.assert_allclose(layer(x, carry), jnp.concatenate([h, c]), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(layer.units(carry), carry[:SIZE])


def test_little_is_forgotten_at_first():
    lstm, gru = (layer(FEATURES, SIZE, key=jax.random.key(0)) for layer in (LSTM, GRU))
    np.testing.assert_array_equal(lstm.bias, np.repeat([0, 1, 0, 0], SIZE))
    np.testing.assert_array_equal(gru.bias, np.repeat([0, 1, 0], SIZE))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_first_layer_absorbs_a_rescaling(kind, x64):
    policy, critic = policy_of(kind), critic_of(kind)
    x, rescaling = normal(FEATURES), Rescaling(jnp.array([2.0, 0.5, 3.0]), jnp.array([1.0, -1.0, 0.3]), jnp.bool_(True))
    old = (x - 0.0) * rescaling.scale + rescaling.shift
    for network in (policy, critic):
        carry = normal(network.carry_size, seed=1)
        after = network.absorb(rescaling).memory(x, carry)
        np.testing.assert_allclose(after, network.memory(old, carry), rtol=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_sequences_are_parts_of_columns(parts):
    rows = jnp.arange(STEPS * COLUMNS)
    sequences = Sequences(rows, rows % 2 == 0, normal(parts, COLUMNS, SIZE), normal(parts, COLUMNS, 2))
    assert (sequences.count, sequences.steps) == (parts * COLUMNS, STEPS // parts)
    ordered = sequences.in_order(rows)
    by_hand = np.asarray(rows).reshape(STEPS, COLUMNS)
    for part in range(parts):
        for column in range(COLUMNS):
            own = by_hand[part * sequences.steps : (part + 1) * sequences.steps, column]
            np.testing.assert_array_equal(ordered[:, part * COLUMNS + column], own)
    np.testing.assert_array_equal(sequences.in_rows(ordered), rows)
    chosen = jnp.array([parts * COLUMNS - 1, 1, 2])
    some = sequences.take(sequences.rows_of(chosen))
    assert (some.count, some.steps) == (3, sequences.steps)
    np.testing.assert_array_equal(some.in_order(some.obs), ordered[:, chosen])
    np.testing.assert_array_equal(some.begins, some.obs % 2 == 0)
    np.testing.assert_array_equal(some.carry[0], sequences.carry.reshape(-1, SIZE)[chosen])
    np.testing.assert_array_equal(some.critic_carry[0], sequences.critic_carry.reshape(-1, 2)[chosen])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_replay_is_stepping(kind, parts, x64):
    """Also with parts, at whose start the memory is what the steps before have left."""
    policy = policy_of(kind)
    rollout, carry = make_rollout(policy, parts)
    assert rollout.carry.shape == (parts, COLUMNS, policy.carry_size)
    expected, remembered = stepped(policy.step, rollout, carry)
    distribution, carries = replay(policy, rollout.inputs)
    np.testing.assert_allclose(distribution.logits, expected.logits.reshape(-1, 3), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        rollout.inputs.in_rows(carries).reshape(remembered.shape), remembered, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(rollout.log_prob, expected.log_prob(rollout.action), rtol=1e-12, atol=1e-14)
    for part in range(1, parts):
        np.testing.assert_allclose(rollout.carry[part], remembered[part * STEPS // parts - 1], rtol=1e-12, atol=1e-14)


def test_derivatives_flow_through_a_part_and_not_beyond(x64):
    """That of the last row's log-prob in the first row's observation."""
    policy = policy_of()

    def derivative(parts):
        rollout, _ = make_rollout(policy, parts)
        rollout = dataclasses.replace(rollout, time=rollout.time + 1)  # one episode

        def last(obs):
            inputs = dataclasses.replace(rollout, obs=obs).inputs
            return action_distribution(policy, inputs).entropy()[-1]

        return np.abs(jax.grad(last)(rollout.obs)[:, -1]).max(-1)

    assert (derivative(1) > 0).all()
    flows = derivative(3)
    assert (flows[-STEPS // 3 :] > 0).all()
    assert not flows[: -STEPS // 3].any()


@pytest.mark.parametrize("parts", [1, 3])
def test_values_are_those_of_stepping_and_of_successors_after_it(parts, x64):
    policy, critic = policy_of(), critic_of()
    rollout, _ = make_rollout(policy, parts)
    carry = normal(COLUMNS, critic.carry_size, seed=9)
    held, end = remember(critic, rollout, carry)
    value, next_value = values(critic, held)
    expected, remembered = stepped(critic.step, rollout, carry)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(end, remembered[-1], rtol=1e-12, atol=1e-14)
    of_successors, _ = critic.step(rollout.successor, remembered)
    ended = np.asarray(rollout.terminated | rollout.truncated)
    cut = np.asarray(rollout.truncated) | (np.arange(STEPS) == STEPS - 1)[:, None]
    np.testing.assert_allclose(next_value[cut], of_successors[cut], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(next_value[:-1][~ended[:-1]], value[1:][~ended[:-1]], rtol=1e-12, atol=1e-14)
    # With only some successors kept.
    step = np.full((STEPS, COLUMNS), STEPS, np.int32)
    successor = np.zeros((STEPS, COLUMNS, FEATURES))
    for n in range(COLUMNS):
        kept = np.concatenate([[STEPS - 1], np.flatnonzero(ended[:-1, n])])
        step[: len(kept), n], successor[: len(kept), n] = kept, np.asarray(rollout.successor)[kept, n]
    sparse = dataclasses.replace(held, successor=jnp.asarray(successor), successor_step=jnp.asarray(step))
    _, of_kept = values(critic, sparse)
    np.testing.assert_allclose(of_kept[cut], next_value[cut], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(of_kept[:-1][~ended[:-1]], value[1:][~ended[:-1]], rtol=1e-12, atol=1e-14)


def test_a_critic_without_memory_reads_rows_of_sequences():
    policy, critic = policy_of(), Critic(FEATURES, hidden=(4,), key=jax.random.key(2))
    rollout, _ = make_rollout(policy)
    held, end = remember(critic, rollout, ())
    assert end == ()
    inputs = critic.inputs(held.inputs)
    np.testing.assert_allclose(
        critic.scaled_rows(inputs) * critic.target_scale + critic.target.mean,
        jax.vmap(critic)(held.inputs.obs),
        rtol=1e-6,
    )


def test_a_class_of_ones_own_needs_no_more_than_a_step():
    policy = Counting(jnp.asarray(0.5))
    rollout, carry = make_rollout(policy)
    distribution = action_distribution(policy, rollout.inputs)
    expected = np.zeros((STEPS, COLUMNS))
    for n in range(COLUMNS):
        steps = float(carry[n, 0])
        for t in range(STEPS):
            steps = 1.0 if int(rollout.time[t, n]) == 0 else steps + 1
            expected[t, n] = 0.5 * steps
    relative = (distribution.logits[:, 1] - distribution.logits[:, 2]).reshape(STEPS, COLUMNS)
    np.testing.assert_allclose(relative, expected, rtol=1e-6)


def test_observations_without_their_memory_are_refused():
    with pytest.raises(WrongObject, match=r"NetworkPolicy has memory.*policy\.step\(obs, carry\)"):
        klimb.action_distribution(policy_of(), jnp.zeros((2, FEATURES)))


def test_called_alone_a_policy_is_at_the_start_of_an_episode():
    policy, obs = policy_of("lstm"), normal(FEATURES)
    distribution, _ = policy.step(obs, policy.initial_carry)
    np.testing.assert_array_equal(policy(obs).logits, distribution.logits)
    critic = critic_of("lstm")
    value, _ = critic.step(obs, jnp.zeros(critic.carry_size))
    np.testing.assert_array_equal(critic(obs), value)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_acting_is_stepping(lead):
    policy, obs = policy_of("lstm"), np.asarray(normal(*lead, FEATURES), np.float32)
    carry, expected = None, jnp.zeros((*lead, policy.carry_size))
    for _ in range(3):
        action, carry = policy.act_with_memory(obs, carry)
        distribution, expected = policy.step(jnp.asarray(obs), expected)
        np.testing.assert_array_equal(action, distribution.mode())
        np.testing.assert_allclose(carry, expected, rtol=1e-6, atol=1e-7)


def test_acting_says_what_is_missing():
    policy, plain = policy_of(), NetworkPolicy(FEATURES, Discrete(3), key=jax.random.key(0))
    obs = np.zeros(FEATURES, np.float32)
    with pytest.raises(WrongObject, match=r"has memory: action, carry = klimb\.act_with_memory"):
        klimb.act(policy, obs)
    with pytest.raises(WrongObject, match="has no memory"):
        plain.act_with_memory(obs, None)
    with pytest.raises(ConfigError, match=r"the carry has the shape \(4,\), and the policy remembers 5 numbers"):
        policy.act_with_memory(obs, np.zeros(4))
    with pytest.raises(ConfigError, match=r"for each of observations of shape \(8,\)"):
        policy.act_with_memory(np.zeros((8, FEATURES), np.float32), np.zeros(5))


def test_noise_that_is_held_does_not_go_with_memory():
    box = Box((-1.0,), (1.0,))
    with pytest.raises(ConfigError, match="exploration = gsde makes noise from what the policy sees"):
        NetworkPolicy(FEATURES, box, exploration="gsde", memory="gru", key=jax.random.key(0))
