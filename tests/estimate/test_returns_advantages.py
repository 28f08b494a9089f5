"""Returns and advantages against plain Python, over every combination of both flags at every step.

A horizon of four with two flags a step has 4⁴ = 256 combinations; each is one column. The oracles follow the
definitions forwards, step after step, and share nothing with the backward recursions under test.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.estimate.advantages import (
    discount_from_start,
    estimate_advantages,
    gae,
    normalise,
    td_residual,
)
from klimb.estimate.estimator import Estimator
from klimb.estimate.returns import n_step_returns, rewards_to_go, total_returns
from klimb.types import Rollout

T, N = 4, 4**4
GAMMA, LAMBDA = 0.9, 0.7


@pytest.fixture(scope="module")
def data():
    """Flags of every combination; `next_value` is the next row's value, except where an episode has ended."""
    rng = np.random.default_rng(0)
    flags = np.array(list(itertools.product(itertools.product([False, True], repeat=2), repeat=T)))  # [N, T, 2]
    terminated, truncated = np.moveaxis(flags, (0, 1, 2), (2, 1, 0))
    reward, value, next_value = rng.normal(size=(3, T, N))
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1][goes_on] = value[1:][goes_on]
    return dict(reward=reward, value=value, next_value=next_value, terminated=terminated, truncated=truncated)


def on(data, *names):
    return [jnp.asarray(data[name]) for name in names]


FIVE = ("reward", "value", "next_value", "terminated", "truncated")
THREE = ("reward", "terminated", "truncated")


def walk(data, visit):
    """`visit(t, n, steps, last)` for every row: `steps` are t … the row `last` where its episode or the data ends."""
    ended = data["terminated"] | data["truncated"]
    out = np.zeros((T, N))
    for t, n in np.ndindex(T, N):
        last = next((u for u in range(t, T) if ended[u, n]), T - 1)
        out[t, n] = visit(t, n, range(t, last + 1), last)
    return out


def brute_gae(data, gamma, gae_lambda):
    """Σ_l (γλ)ˡ δ_{t+l} up to the end of the episode; no value after a termination."""
    r, v, w, term = (data[k] for k in ("reward", "value", "next_value", "terminated"))

    def visit(t, n, steps, last):
        return sum(
            (gamma * gae_lambda) ** (u - t) * (r[u, n] + (0 if term[u, n] else gamma * w[u, n]) - v[u, n])
            for u in steps
        )

    return walk(data, visit)


def brute_to_go(data, gamma, bootstrap, n_step=T):
    """Σ γˡ r over at most `n_step` steps, then γˡ V of the true successor unless the episode terminated there."""
    r, w, term = (data[k] for k in ("reward", "next_value", "terminated"))

    def visit(t, n, steps, last):
        steps = steps[:n_step]
        total = sum(gamma ** (u - t) * r[u, n] for u in steps)
        tail = 0 if term[steps[-1], n] or not bootstrap else w[steps[-1], n]
        return total + gamma ** len(steps) * tail

    return walk(data, visit)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(GAMMA, LAMBDA), (1.0, 1.0), (0.9, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_equals_its_definition(x64, data, gamma, gae_lambda):
    advantage = gae(*on(data, *FIVE), gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantage, brute_gae(data, gamma, gae_lambda), atol=1e-13)


def test_gae_has_monte_carlo_and_one_step_at_its_ends(x64, data):
    to_go = brute_to_go(data, GAMMA, bootstrap=True)
    monte_carlo = gae(*on(data, *FIVE), gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(monte_carlo, to_go - data["value"], atol=1e-13)
    one_step = gae(*on(data, *FIVE), gamma=GAMMA, gae_lambda=0.0)
    np.testing.assert_allclose(one_step, brute_to_go(data, GAMMA, bootstrap=True, n_step=1) - data["value"], atol=1e-13)
    residual = td_residual(*on(data, *FIVE[:4]), gamma=GAMMA)
    np.testing.assert_allclose(residual, one_step, atol=1e-14)


@pytest.mark.parametrize("kind", ["gae", "to_go", "n_step"])
def test_nothing_leaks_across_the_end_of_an_episode(x64, data, kind):
    """Where an episode ends, by either flag, what happens afterwards changes nothing before (MATH §8.9)."""

    def estimate(d):
        if kind == "gae":
            return gae(*on(d, *FIVE), gamma=GAMMA, gae_lambda=LAMBDA)
        if kind == "to_go":
            return rewards_to_go(*on(d, *THREE), gamma=GAMMA, bootstrap_value=jnp.asarray(d["next_value"]))
        return n_step_returns(*on(d, *FIVE), gamma=GAMMA, n_step=3)

    before = np.asarray(estimate(data))
    changed = {name: x.copy() for name, x in data.items()}
    changed["reward"][2:] += 1e6
    changed["value"][2:] -= 1e6
    changed["next_value"][2:] *= -1e6
    after = np.asarray(estimate(changed))
    cut = (data["terminated"] | data["truncated"])[1]
    np.testing.assert_array_equal(after[:2, cut], before[:2, cut])
    assert (after[1, ~cut] != before[1, ~cut]).all()


def test_a_time_limit_is_not_a_termination(x64):
    """Reward 1 for ever has V = 1/(1 − γ), and with it every advantage is 0, also where a time limit cuts.

    Treating the limit as a termination is a different, wrong number: −γᵏ⁺¹ V.
    """
    value = np.full((T, 2), 1 / (1 - GAMMA))
    truncated = np.zeros((T, 2), bool)
    truncated[2, 0] = True
    nothing = np.zeros_like(truncated)
    arrays = [jnp.asarray(x) for x in (np.ones((T, 2)), value, value)]
    right = gae(*arrays, jnp.asarray(nothing), jnp.asarray(truncated), gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(right, 0, atol=1e-13)
    wrong = gae(*arrays, jnp.asarray(truncated), jnp.asarray(nothing), gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(wrong[:3, 0], -(GAMMA ** np.array([3, 2, 1])) / (1 - GAMMA), atol=1e-12)
    to_go = rewards_to_go(
        arrays[0], jnp.asarray(nothing), jnp.asarray(truncated), gamma=GAMMA, bootstrap_value=arrays[2]
    )
    np.testing.assert_allclose(to_go, value, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.9, 1.0, 0.0])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_rewards_to_go_equal_their_definition(x64, data, gamma, bootstrap):
    value = jnp.asarray(data["next_value"]) if bootstrap else None
    actual = rewards_to_go(*on(data, *THREE), gamma=gamma, bootstrap_value=value)
    np.testing.assert_allclose(actual, brute_to_go(data, gamma, bootstrap), atol=1e-13)


@pytest.mark.parametrize("n_step", [1, 2, 3, T, 50])
def test_n_step_returns_equal_their_definition(x64, data, n_step):
    """n = 1 is the target of λ = 0; n beyond the horizon is the reward-to-go with its bootstrap."""
    actual = n_step_returns(*on(data, *FIVE), gamma=GAMMA, n_step=n_step)
    np.testing.assert_allclose(actual, brute_to_go(data, GAMMA, True, n_step), atol=1e-13)


def brute_totals(data, to_go):
    """For every row the reward-to-go of the first row of its episode."""
    ended = data["terminated"] | data["truncated"]
    totals = np.empty((T, N))
    for t, n in np.ndindex(T, N):
        first = max((u + 1 for u in range(t) if ended[u, n]), default=0)
        totals[t, n] = to_go[first, n]
    return totals


def test_total_returns_are_the_return_of_the_whole_episode(x64, data):
    to_go = brute_to_go(data, GAMMA, bootstrap=False)
    actual = total_returns(jnp.asarray(to_go), *on(data, "terminated", "truncated"))
    np.testing.assert_array_equal(actual, brute_totals(data, to_go))


def rollout_of(data, **changes):
    reward, terminated, truncated = on(data, *THREE)
    nothing = jnp.zeros((T, N, 1))
    fields = dict(obs=nothing, action=jnp.zeros((T, N), int), log_prob=reward, reward=reward, terminated=terminated)
    fields |= dict(truncated=truncated, successor=nothing, valid=jnp.ones((T, N), bool))
    return Rollout(**(fields | changes))


KINDS = ("total_return", "reward_to_go", "reward_to_go_average", "value_baseline", "gae", "n_step")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_advantage(x64, data, kind):
    valid = np.random.default_rng(1).random((T, N)) < 0.8
    value = data["value"]
    to_go = brute_to_go(data, GAMMA, bootstrap=True)
    advantage, target = {
        "total_return": lambda: (brute_totals(data, to_go), to_go),
        "reward_to_go": lambda: (to_go, to_go),
        "reward_to_go_average": lambda: (to_go - to_go[valid].mean(), to_go),
        "value_baseline": lambda: (to_go - value, to_go),
        "gae": lambda: (brute_gae(data, GAMMA, LAMBDA), brute_gae(data, GAMMA, LAMBDA) + value),
        "n_step": lambda: (brute_to_go(data, GAMMA, True, 2) - value, brute_to_go(data, GAMMA, True, 2)),
    }[kind]()
    rollout = rollout_of(data, valid=jnp.asarray(valid))
    values = on(data, "value", "next_value")
    actual = estimate_advantages(kind, rollout, *values, gamma=GAMMA, gae_lambda=LAMBDA, n_step=2)
    np.testing.assert_allclose(actual.advantage, advantage, atol=1e-13)
    np.testing.assert_allclose(actual.value_target, target, atol=1e-13)


@pytest.mark.parametrize("known", [False, True], ids=["counted", "given"])
def test_discount_from_start(x64, data, known):
    """γᵗ from the recorded time; without it, counted from the start of the rollout and anew after every end."""
    ended = data["terminated"] | data["truncated"]
    time = np.zeros((T, N), int)
    if known:
        time[0] = np.arange(N) % 7  # episodes that began before the rollout did
    for t in range(1, T):
        time[t] = np.where(ended[t - 1], 0, time[t - 1] + 1)
    rollout = rollout_of(data, time=jnp.asarray(time) if known else None)
    np.testing.assert_allclose(discount_from_start(rollout, GAMMA), GAMMA**time, rtol=1e-13)
    np.testing.assert_array_equal(discount_from_start(rollout, 0.0), time == 0)  # 0⁰ = 1


normalised = jax.jit(normalise)


def test_normalise_equals_numpy_over_the_rows_that_count():
    rng = np.random.default_rng(2)
    advantage, weight = rng.normal(5, 3, 100).astype(np.float32), np.ones(100, np.float32)
    advantage[::4], weight[::4] = 1e6, 0
    advantage[4] = np.nan  # a row of weight 0 has no say, whatever it holds
    kept = advantage[weight > 0].astype(float)
    actual, scale = normalised(jnp.asarray(advantage), jnp.asarray(weight))
    np.testing.assert_allclose(actual[weight > 0], (kept - kept.mean()) / kept.std(), atol=1e-5)
    np.testing.assert_allclose(scale, kept.std(), rtol=1e-5)


def test_what_has_no_baseline_is_not_centred(x64, data):
    """Subtracting the batch's mean is a baseline: two of the six advantages would be one."""
    rollout, values = rollout_of(data), on(data, "value", "next_value")
    batches = {
        kind: Estimator(gamma=GAMMA, gae_lambda=LAMBDA, advantage=kind).estimate(rollout, *values, fraction_done=0.0)
        for kind in KINDS
    }
    for kind, batch in batches.items():
        plain = Estimator(gamma=GAMMA, gae_lambda=LAMBDA, advantage=kind, normalize_advantage=False)
        raw = np.asarray(plain.estimate(rollout, *values, fraction_done=0.0).advantage)
        centred = kind not in ("total_return", "reward_to_go")
        mean, scale = (raw.mean(), raw.std()) if centred else (0, np.sqrt(np.mean(raw**2)))
        np.testing.assert_allclose(batch.advantage, (raw - mean) / scale, atol=1e-12)
        np.testing.assert_allclose(batch.advantage_scale, scale, rtol=1e-12)
        minibatch = batch.take(jnp.arange(2))
        assert (minibatch.gamma, minibatch.advantage_scale) == (GAMMA, batch.advantage_scale)
    difference = batches["reward_to_go"].advantage - batches["reward_to_go_average"].advantage
    assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6 / 7, 1e-20])
@pytest.mark.parametrize("rows", [8, 100_000])
def test_equal_advantages_become_exactly_zero(rows, value):
    """Rounding noise divided by its own deviation would be a full step out of nothing (MATH §8.13)."""
    advantage, weight = np.full(rows, value, np.float32), np.ones(rows, np.float32)
    advantage[3], weight[3] = 1e6, 0
    actual, scale = normalised(jnp.asarray(advantage), jnp.asarray(weight))
    np.testing.assert_array_equal(actual, 0)
    assert scale == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_advantage_comes_through(bad):
    """For the rule to reject and name it: turning it into 0 would hide it."""
    advantage = jnp.arange(8.0).at[2].set(bad)
    actual, _ = normalised(advantage, jnp.ones(8))
    assert not np.isfinite(actual[2])
