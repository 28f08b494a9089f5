"""Where problems come from: Gymnasium's tables, chains, horizons, lists of successors; and what is best in them."""

from __future__ import annotations

import itertools

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import TabularMDP
from klimb.errors import ConfigError
from klimb.estimate.bounds import conservative_step, mixture_bound
from klimb.tabular.table import SoftmaxTable
from klimb.tabular.transitions import SparseTransition
from klimb.theory.exact_gradient import fisher_matrix, policy_gradient
from problems import slow_except

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")


def value_iteration(name: str, gamma: float, sweeps: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """(V*, first states) straight from Gymnasium's table, with nothing after a terminated step."""
    env = gym.make(name).unwrapped
    width = max(len(env.P[s][a]) for s in env.P for a in env.P[s])
    table = np.array(
        [[env.P[s][a] + [(0.0, 0, 0.0, True)] * (width - len(env.P[s][a])) for a in env.P[s]] for s in env.P]
    )
    probability, successor, reward, terminated = np.moveaxis(table, -1, 0)
    value = np.zeros(len(env.P))
    for _ in range(sweeps):
        going_on = np.where(terminated > 0, 0.0, value[successor.astype(int)])
        value = (probability * (reward + gamma * going_on)).sum(-1).max(-1)
    return value, np.asarray(env.initial_state_distrib)


@pytest.mark.parametrize("name", slow_except({"CliffWalking-v1"}, TOY_TEXT))
def test_gymnasium_tables_have_their_optimal_value(x64, name):
    value, initial = value_iteration(name, 0.97)
    mdp = TabularMDP.from_gymnasium(name, 0.97)
    assert mdp.num_states == len(value)
    best = mdp.optimal_policy()
    assert float(mdp.objective(best)) == pytest.approx(float(initial @ value), abs=1e-9)
    reached = (np.asarray(mdp.occupancy(best)) > 1e-12) & ~np.asarray(mdp.absorbing)
    np.testing.assert_allclose(mdp.state_values(best)[reached], value[reached], rtol=0, atol=1e-9)


def test_the_shortest_way_past_the_cliff_is_thirteen_steps(x64):
    mdp = TabularMDP.from_gymnasium("CliffWalking-v1", 1.0)
    assert float(mdp.objective(mdp.optimal_policy())) == pytest.approx(-13, abs=1e-12)


def test_a_state_that_ends_one_episode_and_serves_another_gets_an_end_of_its_own(x64):
    """From 0 to 1 and on to 0 again, where half of the episodes end with reward 1."""

    class Ring(gym.Env):
        observation_space = action_space = gym.spaces.Discrete(2)
        initial_state_distrib = np.array([1.0, 0.0])
        P = {0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(0.5, 0, 1.0, True), (0.5, 0, 0.0, False)]}}  # noqa: RUF012

    mdp = TabularMDP.from_gymnasium(Ring(), 0.9)
    assert mdp.num_states == 3
    np.testing.assert_array_equal(mdp.absorbing, [False, False, True])
    # V(0) = γ V(1), V(1) = ½ + ½ γ V(0).
    assert float(mdp.objective(jnp.ones((3, 1)))) == pytest.approx(0.9 * 0.5 / (1 - 0.5 * 0.81), abs=1e-12)


@pytest.mark.parametrize("env", ["CartPole-v1", "Blackjack-v1"])
def test_environments_without_a_table_are_refused(env):
    with pytest.raises(ConfigError, match=f"{env} has no table of transitions.*FrozenLake-v1"):
        TabularMDP.from_gymnasium(env, 0.9)


def test_the_best_policy_is_the_best_of_all_deterministic_ones(x64):
    mdp = TabularMDP.random(3, 4, 3, 0.9)
    values = []
    for choice in itertools.product(range(3), repeat=4):
        values.append(mdp.state_values(jax.nn.one_hot(np.array(choice), 3)))
    best = mdp.optimal_policy()
    np.testing.assert_allclose(mdp.state_values(best), np.max(values, axis=0), rtol=0, atol=1e-10)
    assert set(np.unique(best)) == {0.0, 1.0}


def test_a_chain_that_never_slips_pays_after_its_length(x64):
    mdp = TabularMDP.chain(6, 0.9, slip=0.0)
    right = jnp.tile(jnp.array([1.0, 0.0]), (6, 1))
    assert float(mdp.objective(right)) == pytest.approx(0.9**5 / (1 - 0.9), abs=1e-12)
    assert float(mdp.objective(right[:, ::-1])) == pytest.approx(0.1 / (1 - 0.9), abs=1e-12)


def gambler(p: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A walk between 0 and `size`, both absorbing, that pays 1 on arrival at the far end. Action 1 stays."""
    transition = np.zeros((size + 1, 2, size + 1))
    for s in range(1, size):
        transition[s, 0, s + 1], transition[s, 0, s - 1], transition[s, 1, s] = p, 1 - p, 1.0
    transition[0, :, 0] = transition[size, :, size] = 1
    reward = np.zeros((size + 1, 2))
    reward[size - 1, 0] = p
    return transition, reward, np.eye(size + 1)[2]


@pytest.mark.parametrize("sparse", [False, True])
def test_without_discount_a_gambler_is_ruined_as_often_as_he_should_be(x64, sparse):
    """V(s) = (1 − (q/p)^s)/(1 − (q/p)^n), and the visits before the end sum to the length of the game."""
    p, size = 0.4, 5
    transition, reward, initial = gambler(p, size)
    if sparse:
        transition = SparseTransition(np.broadcast_to(np.arange(size + 1), transition.shape).copy(), transition)
    mdp = TabularMDP(transition, reward, initial, 1.0)
    pi = jnp.tile(jnp.array([0.7, 0.3]), (size + 1, 1))  # waiting changes nothing but the time
    odds = (1 - p) / p
    exact = (1 - odds ** np.arange(size + 1)) / (1 - odds**size)
    np.testing.assert_allclose(mdp.state_values(pi)[:-1], exact[:-1], rtol=0, atol=1e-12)
    length = (2 - size * exact[2]) / (1 - 2 * p) / 0.7
    assert float(jnp.sum(mdp.occupancy(pi))) == pytest.approx(length, abs=1e-10)
    assert float(jnp.sum(mdp.state_distribution(pi))) == pytest.approx(1, abs=1e-12)
    assert np.asarray(mdp.occupancy(pi))[[0, size]].tolist() == [0, 0]


def test_without_discount_a_policy_that_never_ends_is_named(x64):
    mdp = TabularMDP(*gambler(0.4, 5), 1.0)
    waits = jnp.tile(jnp.array([1.0, 0.0]), (6, 1)).at[3].set(jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="from state 3 this one never does"):
        mdp.objective(waits)


def test_a_horizon_is_backward_induction(x64):
    base, horizon = TabularMDP.random(1, 4, 3, 0.9), 5
    mdp = TabularMDP.finite_horizon(base.transition, base.reward, base.initial, horizon, 0.9)
    value = np.zeros(4)
    pi = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    best = np.zeros(4)
    for _ in range(horizon):
        value = (pi * (base.reward + 0.9 * np.asarray(base.transition) @ value)).sum(-1)
        best = np.asarray(base.reward + 0.9 * np.asarray(base.transition) @ best).max(-1)
    everywhere = jnp.concatenate([jnp.tile(jnp.asarray(pi), (horizon, 1)), jnp.full((1, 3), 1 / 3)])
    assert float(mdp.objective(everywhere)) == pytest.approx(float(base.initial @ value), abs=1e-12)
    assert float(mdp.objective(mdp.optimal_policy())) == pytest.approx(float(base.initial @ best), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("states", [6, 700])
def test_a_list_of_successors_is_the_same_problem_as_its_table(x64, states):
    """The small one is factorised, the large one iterated; both agree with the dense table, and so do gradients."""
    rng = np.random.default_rng(0)
    successor = rng.integers(states, size=(states, 2, 3)).astype(np.int32)
    probability = rng.dirichlet(np.ones(3), size=(states, 2))
    table = np.zeros((states, 2, states))
    np.add.at(table, (*np.indices(successor.shape)[:2], successor), probability)
    reward, initial = rng.normal(size=(states, 2)), rng.dirichlet(np.ones(states))
    short = TabularMDP(SparseTransition(successor, probability), reward, initial, 0.95)
    full = TabularMDP(table, reward, initial, 0.95)
    logits = jnp.asarray(rng.normal(size=(states, 2)))
    pi = jax.nn.softmax(logits)
    for name in ("state_values", "action_values", "advantages", "occupancy", "state_distribution", "state_transition"):
        np.testing.assert_allclose(getattr(short, name)(pi), getattr(full, name)(pi), rtol=0, atol=1e-10)
    np.testing.assert_allclose(short.state_marginals(pi, 4), full.state_marginals(pi, 4), rtol=0, atol=1e-14)
    gradients = [jax.jit(jax.grad(lambda x, m=m: m.objective(jax.nn.softmax(x))))(logits) for m in (short, full)]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-10)


def test_a_list_of_successors_works_in_single_precision():
    mdp = TabularMDP.random(0, 200, 2, 0.9, successors=2)
    assert isinstance(mdp.transition, SparseTransition)
    assert mdp.reward.dtype == jnp.float32
    pi = jnp.full((200, 2), 0.5)
    bellman = jnp.sum(pi * mdp.action_values(pi), axis=1)
    np.testing.assert_allclose(mdp.state_values(pi), bellman, rtol=0, atol=1e-5)


BAD_LISTS = {
    "no state": ({"successor": [[[0, 5]]]}, r"successor\[0, 0, 1\] = 5 is not a state: there are 1"),
    "a row that sums to 0.7": ({"probability": [[[0.5, 0.2]]]}, r"transition\[0, 0\].*sum is 0\.7"),
    "too many rows": (
        {"successor": [[[0, 0]] * 2], "probability": [[[0.5, 0.5]] * 2]},
        r"successor \(1, 2, 2\), probability \(1, 2, 2\), reward \(1, 1\).*\[S, A, K\]",
    ),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_lists_that_are_no_distribution_are_refused(case):
    spoilt, message = BAD_LISTS[case]
    parts = {"successor": [[[0, 0]]], "probability": [[[0.5, 0.5]]], **spoilt}
    lists = SparseTransition(np.array(parts["successor"]), np.array(parts["probability"]))
    with pytest.raises(ValueError, match=message):
        TabularMDP(lists, np.zeros((1, 1)), np.ones(1), 0.9)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"slip = 1\.5 is outside"):
        TabularMDP.chain(3, 0.9, slip=1.5)
    with pytest.raises(ValueError, match="successors = 9 has to be between 1 and the number of states, 4"):
        TabularMDP.random(0, 4, 2, 0.9, successors=9)
    with pytest.raises(ValueError, match="horizon = 0"):
        TabularMDP.finite_horizon(np.ones((1, 1, 1)), np.zeros((1, 1)), np.ones(1), 0)


@pytest.mark.slow
def test_gradient_and_fisher_matrix_against_differences_and_scores(x64):
    mdp = TabularMDP.random(5, 4, 3, 0.9)
    policy = SoftmaxTable(jax.random.normal(jax.random.key(0), (4, 3)))
    gradient, step = policy_gradient(mdp, policy), 1e-5
    for i in range(12):
        ends = [mdp.objective(jax.nn.softmax(policy.logits.ravel().at[i].add(x).reshape(4, 3))) for x in (step, -step)]
        assert float(gradient[i]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), abs=1e-8)
    pi, states = jax.nn.softmax(policy.logits), mdp.state_distribution(jax.nn.softmax(policy.logits))
    expected = np.zeros((12, 12))
    for s in range(4):
        for a in range(3):
            score = np.zeros((4, 3))
            score[s] = np.eye(3)[a] - np.asarray(pi[s])
            expected += float(states[s] * pi[s, a]) * np.outer(score, score)
    np.testing.assert_allclose(fisher_matrix(mdp, policy), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("mean", "worst", "gamma"), [(0.3, 0.5, 0.9), (0.01, 2.0, 0.99), (0.5, 0.5, 0.3)])
def test_the_conservative_step_is_where_the_bound_is_highest(x64, mean, worst, gamma):
    alphas = np.linspace(0, 1, 100_001)
    best = alphas[np.argmax(mixture_bound(mean, worst, alphas, gamma))]
    assert float(conservative_step(mean, worst, gamma)) == pytest.approx(best, abs=1e-4)
    assert float(conservative_step(-mean, worst, gamma)) == 0


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_conservative_step_at_the_ends_of_the_discount(x64, gamma):
    assert float(conservative_step(0.1, 0.5, gamma)) == 1 - gamma
    assert float(conservative_step(-0.1, 0.5, gamma)) == float(conservative_step(0.0, 0.5, gamma)) == 0
