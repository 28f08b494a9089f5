"""Batches of whole trajectories: what a step follows is ∇J on average over every batch that can be drawn, exactly.

Two states, two actions, episodes that end by chance and after two steps at the latest: all batches of two trajectories
are enumerated, and ∇J is autodiff of J, which knows nothing of trajectories.
"""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import OffPolicyGradient, Reinforce, Rollout
from klimb.estimate.advantages import mean_length
from klimb.estimate.estimator import Estimator
from klimb.tabular.table import SoftmaxTable
from problems import slow_except

S, A, T, GAMMA = 2, 2, 2, 0.8
RNG = np.random.default_rng(0)
INITIAL = np.array([0.3, 0.7])
GOES_ON = RNG.dirichlet(np.ones(S + 1), size=(S, A))[..., :S]
"""p(s'|s, a) of the steps after which the episode is not over."""
REWARD = RNG.normal(size=(S, A))
LOGITS = {"target": RNG.normal(size=(S, A)), "behaviour": RNG.normal(size=(S, A))}


def table(name: str) -> SoftmaxTable:
    return SoftmaxTable(jnp.asarray(LOGITS[name]))


def trajectories() -> list[list[tuple[int, int, bool]]]:
    """Every trajectory: its (state, action, whether the episode ends) of one step or two."""
    first = itertools.product(range(S), range(A), (True, False))
    found = []
    for state, action, ends in first:
        if ends:
            found.append([(state, action, True)])
        else:
            found += [[(state, action, False), (s, a, False)] for s in range(S) for a in range(A)]
    return found


ALL = trajectories()
PAIRS = np.array(list(itertools.product(range(len(ALL)), repeat=2)))


def chances(policy: SoftmaxTable) -> np.ndarray:
    """The probability of every trajectory, from the definition."""
    pi, each = np.asarray(jax.nn.softmax(policy.logits)), []
    for steps in ALL:
        p = INITIAL[steps[0][0]]
        for i, (state, action, ends) in enumerate(steps):
            p *= pi[state, action]
            if ends:
                p *= 1 - GOES_ON[state, action].sum()
            elif i + 1 < len(steps):
                p *= GOES_ON[state, action, steps[i + 1][0]]
        each.append(p)
    return np.array(each)


def columns(behaviour: SoftmaxTable) -> Rollout:
    """All trajectories as columns, `[T, M]`; rows that are no steps hold numbers that must have no say."""
    shape = (T, len(ALL))
    state, action = RNG.integers(S, size=shape), RNG.integers(A, size=shape)
    terminated, truncated, valid = (np.zeros(shape, bool) for _ in range(3))
    for n, steps in enumerate(ALL):
        for t, row in enumerate(steps):
            state[t, n], action[t, n], terminated[t, n] = row
            valid[t, n] = True
        truncated[len(steps) - 1, n] = not terminated[len(steps) - 1, n]
    reward = np.where(valid, REWARD[state, action], 100 * RNG.normal(size=shape))
    log_prob = jnp.where(valid, jax.nn.log_softmax(behaviour.logits)[state, action], 50.0)
    flags = (jnp.asarray(x) for x in (terminated, truncated))
    obs, time = jnp.asarray(state), jnp.tile(jnp.arange(T)[:, None], (1, shape[1]))
    # Behaviour and target are tables, so what the successors are has no say without a critic.
    return Rollout(
        obs, jnp.asarray(action), log_prob, jnp.asarray(reward), *flags, obs, jnp.asarray(valid), time, None, True
    )


def exact_gradient() -> np.ndarray:
    def objective(logits):
        pi, alive, total = jax.nn.softmax(logits), jnp.asarray(INITIAL), 0.0
        for t in range(T):
            total += GAMMA**t * jnp.einsum("s,sa,sa->", alive, pi, REWARD)
            alive = jnp.einsum("s,sa,sak->k", alive, pi, GOES_ON)
        return total

    return np.asarray(jax.grad(objective)(table("target").logits))


def expected_step(rule, kind, behaviour: str = "target") -> np.ndarray:
    """The mean over all batches of two trajectories of what a plain step of size 1 adds to the logits."""
    estimator = Estimator(gamma=GAMMA, advantage=kind, bootstrap=None, discount_states=True, normalize_advantage=False)
    assert not estimator.uses_critic
    policy = table("target")
    every, unknown = columns(table(behaviour)), jnp.full((T, 2), jnp.nan)

    @eqx.filter_jit
    @jax.vmap
    def change(pair):
        rollout = jax.tree.map(lambda x: x[:, pair], every)
        batch = estimator.estimate(rollout, unknown, unknown, fraction_done=0.0)
        return rule.step(jax.random.key(0), policy, rule.init(policy), batch)[0].logits - policy.logits

    p = chances(table(behaviour))
    return np.einsum("p,pij->ij", p[PAIRS].prod(1), np.asarray(change(jnp.asarray(PAIRS))))


def test_all_trajectories_are_there(x64):
    for name in LOGITS:
        assert chances(table(name)).sum() == pytest.approx(1, abs=1e-12)


UNBIASED = ("total_return", "reward_to_go", "leave_one_out", "time_baseline")


@pytest.mark.parametrize("kind", slow_except({"leave_one_out", "time_baseline"}, UNBIASED))
def test_reinforce_without_a_critic_follows_the_policy_gradient(x64, kind):
    step = expected_step(Reinforce(learning_rate=1.0, optimizer="sgd"), kind)
    np.testing.assert_allclose(step, exact_gradient(), rtol=0, atol=1e-12)


def test_the_average_of_the_same_batch_is_no_unbiased_baseline(x64):
    step = expected_step(Reinforce(learning_rate=1.0, optimizer="sgd"), "reward_to_go_average")
    assert np.abs(step - exact_gradient()).max() > 0.01


@pytest.mark.parametrize("weighting", ["trajectory", "per_decision"])
def test_weights_of_whole_trajectories_are_unbiased(x64, weighting):
    rule = OffPolicyGradient(
        weighting, optimizer="sgd", learning_rate=1.0, gradient_steps=1, max_grad_norm=None, min_ess=0.0
    )
    np.testing.assert_allclose(expected_step(rule, "reward_to_go", "behaviour"), exact_gradient(), rtol=0, atol=1e-12)


def test_the_mean_length_is_that_of_the_trajectories_that_are_there():
    valid = jnp.array([[True, True, False], [True, False, False]])
    rollout = eqx.tree_at(lambda r: r.valid, jax.tree.map(lambda x: x[:, :3], columns(table("target"))), valid)
    assert float(mean_length(rollout)) == 1.5
    nothing = eqx.tree_at(lambda r: r.valid, rollout, jnp.zeros_like(valid))
    assert float(mean_length(nothing)) == 1


def test_baselines_of_others(x64):
    """Returns to go: 5 and 3 of the first trajectory, 2 of the second, which has one step, 7 and 1 of the third."""
    reward, valid = jnp.array([[2.0, 2.0, 6.0], [3.0, 9.0, 1.0]]), jnp.array([[1, 1, 1], [1, 0, 1]], bool)
    truncated = jnp.array([[0, 1, 0], [1, 0, 1]], bool)
    zeros = jnp.zeros((2, 3))
    rollout = Rollout(
        zeros, zeros.astype(int), zeros, reward, jnp.zeros_like(valid), truncated, zeros, valid, None, None, True
    )
    expected = {
        "leave_one_out": [[5 - 10 / 3, 2 - 16 / 4, 7 - 10 / 3], [3 - 10 / 3, None, 1 - 10 / 3]],
        "time_baseline": [[5 - 4.5, 2 - 6.0, 7 - 3.5], [3 - 1.0, None, 1 - 3.0]],
    }
    for kind, rows in expected.items():
        estimator = Estimator(gamma=1.0, advantage=kind, bootstrap=None, normalize_advantage=False)
        batch = estimator.estimate(rollout, zeros, zeros, fraction_done=0.0)
        found = np.asarray(batch.advantage).reshape(2, 3) / (5 / 3)
        for t, n in itertools.product(range(2), range(3)):
            if rows[t][n] is not None:
                assert found[t, n] == pytest.approx(rows[t][n]), (kind, t, n)
