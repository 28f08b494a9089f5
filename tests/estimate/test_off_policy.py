"""Off-policy estimators against exact values of finite problems, of which every episode is enumerated."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from klimb import TabularMDP
from klimb.estimate import fitted_q
from klimb.estimate.fitted_q import Steps, cross_fitted
from klimb.estimate.off_policy import (
    ESTIMATORS,
    Episodes,
    behaviour_return,
    doubly_robust,
    effective_episodes,
    importance_sampling,
    per_decision,
    weighted_doubly_robust,
    weighted_importance_sampling,
    weighted_per_decision,
    with_intervals,
)
from klimb.estimate.recorded_decisions import Decisions
from klimb.theory.enumeration import Trajectories

S, A, H, GAMMA = 2, 2, 3, 0.9
UNBIASED = [name for name in ESTIMATORS if "weighted" not in name]


class Problem:
    """All episodes of H steps, their probabilities under two policies, and the exact value of each policy."""

    def __init__(self, deterministic: bool = False, horizon: int = H) -> None:
        rng = np.random.default_rng(0)
        transition, reward = rng.dirichlet(np.ones(S), (S, A)), rng.normal(size=(S, A))
        initial = rng.dirichlet(np.ones(S))
        if deterministic:
            transition, initial = np.eye(S)[np.array([[0, 1], [1, 0]])], np.eye(S)[0]
        self.mdp = TabularMDP.finite_horizon(transition, reward, initial, horizon, GAMMA)
        tables = rng.dirichlet(np.ones(A), (2, self.mdp.num_states))
        self.behaviour, self.policy = (jnp.asarray(table) for table in tables)
        self.all = Trajectories.of(self.mdp, max_length=horizon, max_count=4096)
        happens = np.asarray(self.all.chance) > 0
        self.state, self.action = (np.asarray(x)[:, happens] for x in (self.all.state, self.all.action))
        self.probability = np.asarray(self.all.probability(self.behaviour))[happens]
        self.value, self.behaviour_value = (float(self.mdp.objective(pi)) for pi in (self.policy, self.behaviour))

    def episodes(self, q: np.ndarray, policy=None) -> Episodes:
        """The episodes with a table of Q, `[S, A]`, as the model."""
        pi = np.asarray(self.policy if policy is None else policy)
        at = self.state, self.action
        v = (pi * q).sum(axis=1)
        log_ratio = np.log(pi / np.asarray(self.behaviour))[at]
        return Episodes(np.asarray(self.mdp.reward)[at], log_ratio, q[at], v[self.state], GAMMA)

    @property
    def exact_q(self) -> np.ndarray:
        return np.asarray(self.mdp.action_values(self.policy))


@pytest.fixture
def problem(x64) -> Problem:
    return Problem()


def some_q(problem: Problem) -> np.ndarray:
    """A wrong table."""
    return np.random.default_rng(5).normal(size=problem.mdp.reward.shape)


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("model", ["wrong", "exact"])
def test_the_expectation_over_all_episodes_is_the_exact_value(problem, name, model):
    np.testing.assert_allclose(problem.probability.sum(), 1, rtol=1e-12)
    assert abs(problem.value - problem.behaviour_value) > 0.05
    episodes = problem.episodes(some_q(problem) if model == "wrong" else problem.exact_q)
    assert abs(float(ESTIMATORS[name](episodes, problem.probability)) - problem.value) < 1e-10
    assert abs(float(behaviour_return(episodes, problem.probability)) - problem.behaviour_value) < 1e-10


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if "weighted" in name])
def test_self_normalised_estimates_are_consistent_and_biased(problem, name):
    """With every episode counted as often as it happens they are exact; of one episode alone they are not."""
    episodes = problem.episodes(some_q(problem))
    assert abs(float(ESTIMATORS[name](episodes, problem.probability)) - problem.value) < 1e-10
    alone = ESTIMATORS[name](episodes, np.eye(len(problem.probability)))
    assert abs(problem.probability @ alone - problem.value) > 1e-3


def test_doubly_robust_is_the_recursion_and_without_a_model_it_is_per_decision(problem):
    episodes, once = problem.episodes(some_q(problem)), np.eye(len(problem.probability))
    value = np.zeros(len(problem.probability))
    for t in range(H - 1, -1, -1):
        ratio = np.exp(episodes.log_ratio[t])
        value = episodes.v[t] + ratio * (episodes.reward[t] + GAMMA * value - episodes.q[t])
    np.testing.assert_allclose(doubly_robust(episodes, once), value, rtol=1e-12)
    without = problem.episodes(np.zeros_like(some_q(problem)))
    np.testing.assert_allclose(doubly_robust(without, once), per_decision(without, once), rtol=1e-12)
    many = np.random.default_rng(0).multinomial(50, problem.probability, size=3).astype(float)
    np.testing.assert_allclose(weighted_doubly_robust(without, many), weighted_per_decision(without, many), rtol=1e-12)


def test_weighted_per_decision_divides_the_weights_of_every_step(problem):
    """Against the sums written out."""
    episodes = problem.episodes(some_q(problem))
    chosen = np.random.default_rng(1).integers(len(problem.probability), size=6)
    count = np.bincount(chosen, minlength=len(problem.probability)).astype(float)
    ratio, expected = np.exp(episodes.log_ratio), 0.0
    for t in range(H):
        weight = [float(np.prod(ratio[: t + 1, n])) for n in chosen]
        rewards = [float(episodes.reward[t, n]) for n in chosen]
        expected += GAMMA**t * sum(w * r for w, r in zip(weight, rewards, strict=True)) / sum(weight)
    np.testing.assert_allclose(weighted_per_decision(episodes, count), expected, rtol=1e-12)


def test_on_policy_all_weights_are_1(problem):
    zero = np.zeros(problem.mdp.reward.shape)
    episodes = problem.episodes(zero, policy=problem.behaviour)
    count = np.random.default_rng(0).multinomial(40, problem.probability, size=5).astype(float)
    for estimator in (importance_sampling, weighted_importance_sampling, per_decision, weighted_per_decision):
        np.testing.assert_allclose(estimator(episodes, count), behaviour_return(episodes, count), rtol=1e-12)
    number = len(problem.probability)
    np.testing.assert_allclose(effective_episodes(episodes.log_weight), np.full(H, number), rtol=1e-12)


def test_with_the_exact_q_actions_of_a_deterministic_problem_add_no_variance(x64):
    """Every episode gives the exact value, whatever was done in it; without a model they differ."""
    problem = Problem(deterministic=True)
    once = np.eye(len(problem.probability))
    episodes = problem.episodes(problem.exact_q)
    np.testing.assert_allclose(doubly_robust(episodes, once), problem.value, rtol=1e-12)
    assert np.std(per_decision(episodes, once)) > 0.1


def test_the_effective_number_of_episodes():
    assert effective_episodes(np.log([3.0, 1.0])) == pytest.approx(16 / 10)
    # Weights whose squares are no numbers in double precision.
    np.testing.assert_allclose(effective_episodes(np.array([[900.0, 900.0, -900.0], [5.0, -np.inf, -np.inf]])), [2, 1])
    assert effective_episodes(np.full(3, -np.inf)) == 0


def test_the_cross_fitted_estimate_is_unbiased_over_all_pairs_of_episodes(x64, monkeypatch):
    """A model that is fitted to the other episode only; fitted to both of them it would be biased."""
    problem = Problem(horizon=2)
    number, policy = len(problem.probability), np.asarray(problem.policy)
    blank = problem.episodes(np.zeros(problem.mdp.reward.shape))

    def estimate(pair: tuple[int, int], fit) -> float:
        chosen = list(pair)
        state, action = problem.state[:, chosen].T.ravel(), problem.action[:, chosen].T.ravel()
        taken = np.eye(A)[action]
        made = Decisions(np.zeros(4), taken, np.eye(A)[:, None], policy[state].T)
        reward = np.asarray(problem.mdp.reward)[state, action]
        steps = Steps(np.eye(policy.shape[0])[state], np.array([0, 1, 0, 1]), reward, np.array([0, 1, 0, 1]) > 0, made)
        q, v = (x.reshape(2, 2).T for x in fit(steps))
        episodes = Episodes(blank.reward[:, chosen], blank.log_ratio[:, chosen], q, v, GAMMA)
        return float(doubly_robust(episodes, np.ones(2)))

    def to_the_same(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
        return fitted_q.LinearQ.fitted(steps, GAMMA).values(steps)

    monkeypatch.setattr(fitted_q, "NUM_FEATURES", 8)
    bias = {}
    for name, fit in {"other": lambda steps: cross_fitted(steps, gamma=GAMMA, seed=0), "same": to_the_same}.items():
        total = sum(
            problem.probability[i] * problem.probability[j] * estimate((i, j), fit)
            for i, j in itertools.product(range(number), repeat=2)
        )
        bias[name] = abs(total - problem.value)
    assert bias["other"] < 1e-10
    assert bias["same"] > 1e-3


def test_the_model_has_the_values_of_the_evaluated_policy(x64):
    """Fitted to many episodes of another policy, it is near the exact Q, and makes the estimate more precise."""
    problem = Problem()
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(problem.probability), p=problem.probability, size=600)
    state, action = problem.state[:, chosen].T.ravel(), problem.action[:, chosen].T.ravel()
    policy = np.asarray(problem.policy)
    made = Decisions(np.zeros(len(state)), np.eye(A)[action], np.eye(A)[:, None], policy[state].T)
    time = np.tile(np.arange(H), 600)
    reward = np.asarray(problem.mdp.reward)[state, action]
    steps = Steps(np.eye(policy.shape[0])[state], time, reward, time == H - 1, made)
    q, v = cross_fitted(steps, gamma=GAMMA, seed=0)
    exact = problem.exact_q
    assert np.corrcoef(q, exact[state, action])[0, 1] > 0.95
    np.testing.assert_allclose(np.abs(v - (policy * exact).sum(1)[state]).mean(), 0, atol=0.1)
    blank = problem.episodes(np.zeros_like(exact))
    q, v = (x.reshape(600, H).T for x in (q, v))
    episodes = Episodes(blank.reward[:, chosen], blank.log_ratio[:, chosen], q, v, GAMMA)
    once = np.eye(600)
    assert np.std(doubly_robust(episodes, once)) < 0.7 * np.std(per_decision(episodes, once))


def test_the_interval_covers_at_about_its_level(problem):
    """300 data sets of 60 episodes: the share that contains the exact value is within 3 standard errors of 95 %, minus
    the 4 % that a percentile interval of skewed weights may lack."""
    rng, covered, repeats = np.random.default_rng(0), 0, 300
    blank = problem.episodes(problem.exact_q)
    for seed in range(repeats):
        chosen = rng.choice(len(problem.probability), p=problem.probability, size=60)
        episodes = Episodes(*(np.asarray(x)[:, chosen] for x in blank[:4]), GAMMA)
        interval = with_intervals(episodes, {"per_decision": per_decision}, resamples=200, seed=seed, confidence=0.95)[
            "per_decision"
        ]
        covered += interval.low <= problem.value <= interval.high
    assert (
        0.95 - 0.04 - 3 * np.sqrt(0.05 * 0.95 / repeats) < covered / repeats < 0.95 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    )
