"""Off-policy gradients by enumeration of a small finite-horizon MDP's trajectories, against autodiff of the exact J."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import klimb
from klimb import OffPolicyGradient, Rollout, TabularMDP
from klimb.estimate.estimator import Estimator
from klimb.estimate.importance import log_weights
from klimb.tabular.table import SoftmaxTable
from klimb.types import Batch, Mixture
from problems import make_mdp, take

S, A, T, GAMMA = 3, 2, 3, 0.8
COLUMNS = np.array(list(itertools.product(*[range(S), range(A)] * T)))  # s_0 a_0 s_1 a_1 …: every trajectory
STATES, ACTIONS = COLUMNS[:, 0::2].T, COLUMNS[:, 1::2].T  # [T, N]
N = len(COLUMNS)


class World(NamedTuple):
    mdp: TabularMDP
    target: SoftmaxTable
    behaviours: list[SoftmaxTable]


@pytest.fixture
def world(x64) -> World:
    rng = np.random.default_rng(3)
    mdp = make_mdp(rng, S, A, gamma=GAMMA, concentration=1.0)
    tables = [SoftmaxTable(jnp.asarray(rng.normal(size=(S, A)))) for _ in range(3)]
    return World(mdp, tables[0], tables[1:])


def log_probs(table: SoftmaxTable) -> np.ndarray:
    """log π(a_t|s_t) of every step of every trajectory, `[T, N]`."""
    return np.asarray(jax.nn.log_softmax(table.logits))[STATES, ACTIONS]


def chance(mdp: TabularMDP, table: SoftmaxTable) -> np.ndarray:
    """p_π(τ) from the definition, `[N]`."""
    p = np.asarray(mdp.initial)[STATES[0]] * np.exp(log_probs(table)).prod(0)
    for t in range(T - 1):
        p = p * np.asarray(mdp.transition)[STATES[t], ACTIONS[t], STATES[t + 1]]
    return p


def exact_gradient(world: World) -> np.ndarray:
    """∇J by autodiff of J = Σ_t γᵗ Σ p(s_t) π(a|s) r(s, a), which knows nothing of trajectories."""

    def objective(logits: Array) -> Array:
        pi = jax.nn.softmax(logits)
        marginals = world.mdp.state_marginals(pi, T)
        return jnp.einsum("t,ts,sa,sa->", GAMMA ** jnp.arange(T), marginals, pi, world.mdp.reward)

    return np.asarray(jax.grad(objective)(world.target.logits))


def enumerated(
    world: World, table: SoftmaxTable, chances: np.ndarray, *, kind="reward_to_go", value=None, mixture=None
) -> Batch:
    """Every trajectory once, weighted by its chance, with the log-probs of `table` as the behaviour's."""
    flags = jnp.zeros((T, N), bool)
    reward = jnp.asarray(np.asarray(world.mdp.reward)[STATES, ACTIONS])
    obs = jnp.asarray(STATES)
    value = jnp.zeros(S) if value is None else value
    rollout = Rollout(
        obs=obs,
        action=jnp.asarray(ACTIONS),
        log_prob=jnp.asarray(log_probs(table)),
        reward=reward,
        # The horizon is the end of the task: there is no value beyond.
        terminated=flags.at[-1].set(True),
        truncated=flags,
        successor=jnp.concatenate([obs[1:], obs[:1]]),
        valid=~flags,
        time=jnp.tile(jnp.arange(T)[:, None], (1, N)),
    )
    estimator = Estimator(gamma=GAMMA, gae_lambda=1.0, advantage=kind, discount_states=True, normalize_advantage=False)
    batch = estimator.estimate(rollout, value[obs], value[rollout.next_obs], fraction_done=jnp.zeros(()))
    weight = jnp.asarray(np.broadcast_to(chances, (T, N)).reshape(-1))
    where = lambda b: (b.weight, b.trajectory.mixture)  # noqa: E731
    return eqx.tree_at(where, batch, (weight, mixture), is_leaf=lambda leaf: leaf is None)


def estimate(world: World, batch: Batch, **options) -> np.ndarray:
    """The gradient that a plain step follows, as a sum over the trajectory: (θ' − θ)/α · T."""
    rule = OffPolicyGradient(
        optimizer="sgd", learning_rate=1.0, gradient_steps=1, max_grad_norm=None, min_ess=0.0, **options
    )
    new, _, info = take(rule, world.target, batch)
    assert info.status == klimb.Status.ACCEPTED
    return np.asarray(new.logits - world.target.logits) * T


def test_enumeration_is_complete(world):
    for table in (world.target, *world.behaviours):
        assert chance(world.mdp, table).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["total_return", "reward_to_go", "value_baseline", "gae"])
def test_trajectory_weights_are_unbiased_for_every_advantage(world, kind):
    beta, value = world.behaviours[0], jnp.asarray([0.3, -1.0, 0.7])
    value = value if kind in ("value_baseline", "gae") else None
    batch = enumerated(world, beta, chance(world.mdp, beta), kind=kind, value=value)
    np.testing.assert_allclose(
        estimate(world, batch, weighting="trajectory"), exact_gradient(world), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kind", ["reward_to_go", "value_baseline", "gae"])
def test_per_decision_weights_are_unbiased_with_and_without_a_baseline(world, kind):
    beta, value = world.behaviours[0], jnp.asarray([0.3, -1.0, 0.7])
    batch = enumerated(world, beta, chance(world.mdp, beta), kind=kind, value=value if kind != "reward_to_go" else None)
    np.testing.assert_allclose(
        estimate(world, batch, weighting="per_decision"), exact_gradient(world), rtol=0, atol=1e-10
    )


@pytest.mark.slow
def test_per_step_weights_are_biased_by_the_states(world):
    """They drop the ratio of the state marginals. On this MDP that costs 11 % of the gradient."""
    beta = world.behaviours[0]
    batch = enumerated(world, beta, chance(world.mdp, beta))
    exact = exact_gradient(world)
    error = np.linalg.norm(estimate(world, batch, weighting="per_step") - exact) / np.linalg.norm(exact)
    assert error == pytest.approx(0.1136, abs=1e-3)


def test_on_its_own_data_every_weighting_is_the_policy_gradient(world):
    batch = enumerated(world, world.target, chance(world.mdp, world.target))
    for weighting in ("trajectory", "per_decision", "per_step"):
        np.testing.assert_allclose(
            estimate(world, batch, weighting=weighting), exact_gradient(world), rtol=0, atol=1e-10
        )


def mixture_of(tables: list[SoftmaxTable]) -> Mixture:
    return Mixture(jnp.asarray(np.stack([log_probs(t) for t in tables])), jnp.full(len(tables), -np.log(len(tables))))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["trajectory", "per_decision"])
def test_the_mixture_of_whole_trajectories_is_an_unbiased_denominator(world, weighting):
    chances = np.mean([chance(world.mdp, table) for table in world.behaviours], axis=0)
    batch = enumerated(world, world.behaviours[0], chances, mixture=mixture_of(world.behaviours))
    options = {"weighting": weighting, "behaviour": "mixture", "history": 2}
    np.testing.assert_allclose(estimate(world, batch, **options), exact_gradient(world), rtol=0, atol=1e-10)
    # The recorded log-probs of one of the two are the wrong denominator for data of both.
    wrong = estimate(world, batch, weighting=weighting, behaviour="recorded")
    assert np.abs(wrong - exact_gradient(world)).max() > 1e-2


@pytest.mark.parametrize("weighting", ["trajectory", "per_decision"])
def test_recorded_log_probs_are_unbiased_for_each_policys_own_data(world, weighting):
    gradients = [
        estimate(world, enumerated(world, table, chance(world.mdp, table)), weighting=weighting)
        for table in world.behaviours
    ]
    np.testing.assert_allclose(np.mean(gradients, axis=0), exact_gradient(world), rtol=0, atol=1e-10)


def test_the_mixture_is_not_the_product_of_mixed_steps(world):
    mixture, ended = mixture_of(world.behaviours), jnp.zeros((T, N), bool).at[-1].set(True)
    weights = log_weights("trajectory", jnp.asarray(log_probs(world.target)), mixture, ended)
    each = np.exp([log_probs(table) for table in world.behaviours])
    right = np.exp(log_probs(world.target)).prod(0) / each.prod(1).mean(0)
    np.testing.assert_allclose(np.exp(weights), np.tile(right, (T, 1)), rtol=1e-12)
    wrong = np.exp(log_probs(world.target)).prod(0) / each.mean(0).prod(0)
    assert np.abs(wrong / right - 1).max() > 0.1
    chances = np.mean([chance(world.mdp, table) for table in world.behaviours], axis=0)
    assert chances @ right == pytest.approx(1, abs=1e-12)
    assert abs(chances @ wrong - 1) > 1e-3


@pytest.mark.slow
def test_variance_falls_with_causality_with_a_baseline_and_with_per_decision_weights(world):
    """The variance of one trajectory's estimate, exact by enumeration, summed over the parameters."""
    beta = world.behaviours[0]
    chances = chance(world.mdp, beta)
    start = world.mdp.state_values(jax.nn.softmax(world.target.logits))

    def variance(weighting: str, kind: str) -> float:
        batch = enumerated(world, beta, chances, kind=kind, value=start if kind == "value_baseline" else None)
        rule = OffPolicyGradient(weighting=weighting)

        def one(logits, n):
            only = eqx.tree_at(lambda b: b.weight, batch, (jnp.arange(T * N) % N == n).astype(float))
            return rule._objective(jax.vmap(SoftmaxTable(logits))(only.obs), only) * T

        rows = jax.vmap(jax.grad(one), (None, 0))(world.target.logits, jnp.arange(N)).reshape(N, -1)
        mean = chances @ rows
        return float(chances @ np.square(rows - mean).sum(1))

    spread = {
        case: variance(*case)
        for case in itertools.product(
            ("trajectory", "per_decision"), ("total_return", "reward_to_go", "value_baseline")
        )
    }
    assert spread["trajectory", "reward_to_go"] < spread["trajectory", "total_return"]
    assert spread["trajectory", "value_baseline"] < spread["trajectory", "reward_to_go"]
    for kind in ("reward_to_go", "value_baseline"):
        assert spread["per_decision", kind] < spread["trajectory", kind]


# Options.


@pytest.fixture
def off(world) -> Batch:
    """Data of a policy that is not the target."""
    return enumerated(world, world.behaviours[0], chance(world.mdp, world.behaviours[0]))


def info_of(world, batch, weighting, **numbers):
    rule = OffPolicyGradient(weighting=weighting, max_grad_norm=None)
    return take(rule, world.target, batch, **numbers)[2]


@pytest.mark.slow
def test_self_normalised_weights_do_not_care_for_their_scale(world, off):
    scaled = eqx.tree_at(lambda b: b.log_prob, off, off.log_prob + 1.0)
    for weighting in ("trajectory", "per_step"):
        options = {"weighting": weighting, "self_normalise": True}
        np.testing.assert_allclose(estimate(world, off, **options), estimate(world, scaled, **options), atol=1e-12)
        assert (
            np.abs(estimate(world, off, weighting=weighting) - estimate(world, scaled, weighting=weighting)).max()
            > 1e-2
        )


@pytest.mark.slow
def test_truncation_limits_every_weight(world, off):
    """At c below the smallest weight all weights are c: the gradient of unweighted data, c times."""
    unweighted = eqx.tree_at(lambda b: b.log_prob, off, jnp.asarray(log_probs(world.target).reshape(-1)))
    for weighting in ("trajectory", "per_step"):
        limited = estimate(world, off, weighting=weighting, max_weight=1e-3)
        np.testing.assert_allclose(limited, 1e-3 * estimate(world, unweighted, weighting=weighting), atol=1e-12)


def test_sample_size_and_largest_weight_are_those_of_the_trajectories(world, off):
    info = info_of(world, off, "trajectory", learning_rate=1e-12)
    chances = chance(world.mdp, world.behaviours[0])
    weight = np.exp((log_probs(world.target) - log_probs(world.behaviours[0])).sum(0))
    assert float(info.extra["weight_ess"]) == pytest.approx((chances @ weight) ** 2 / (chances @ weight**2), rel=1e-9)
    assert float(info.extra["largest_weight"]) == pytest.approx((chances * weight).max() / (chances @ weight), rel=1e-9)


@pytest.mark.slow
def test_steps_end_when_the_weights_are_worth_too_few_samples(world):
    batch = enumerated(world, world.target, chance(world.mdp, world.target))
    numbers = {"learning_rate": 0.3, "gradient_steps": 200}
    for weighting in ("trajectory", "per_decision", "per_step"):
        stopped = info_of(world, batch, weighting, min_ess=0.6, **numbers)
        assert 1 < float(stopped.extra["gradient_steps"]) < 200
        assert float(stopped.extra["weight_ess"]) < 0.6
        patient = info_of(world, batch, weighting, min_ess=0.0, **numbers)
        assert float(patient.extra["gradient_steps"]) == 200


def test_a_product_over_a_thousand_steps_stays_a_number(x64):
    """Products are sums of logarithms: 1000 ratios of e would overflow, and their weights among each other do not."""
    log_prob = jnp.full((1000, 2), -1.0)
    mixture = Mixture(jnp.stack([jnp.full((1000, 2), -2.0), jnp.full((1000, 2), -3.0)]), jnp.log(jnp.array([0.5, 0.5])))
    ended = jnp.zeros((1000, 2), bool)
    weight = log_weights("trajectory", log_prob, mixture, ended)
    np.testing.assert_allclose(weight, 1000 + np.log(2), rtol=1e-12)


@pytest.mark.slow
def test_rows_that_do_not_count_break_no_product(world, off):
    """A column's last row made invalid, with junk in it: the weights of the rest are those of a shorter trajectory."""
    last = jnp.arange(T * N) >= (T - 1) * N
    spoilt = eqx.tree_at(
        lambda b: (b.weight, b.log_prob, b.advantage),
        off,
        (
            jnp.where(last, 0, off.weight),
            jnp.where(last, jnp.nan, off.log_prob),
            jnp.where(last, jnp.nan, off.advantage),
        ),
    )
    rule = OffPolicyGradient(weighting="trajectory")
    distribution = jax.vmap(world.target)(spoilt.obs)
    weight = rule._log_weights(distribution.log_prob(spoilt.action), spoilt.blank_padding())
    expected = (log_probs(world.target) - log_probs(world.behaviours[0]))[:-1].sum(0)
    np.testing.assert_allclose(weight[:-1], np.tile(expected, (T - 1, 1)), rtol=1e-12)


def test_the_sample_size_of_demonstrations_is_that_of_their_columns_alone(world, off):
    """Every second column counts as a demonstration: by the definition, with weights of these trajectories only."""
    demonstrated = jnp.arange(N) % 2 == 0
    where = lambda b: b.trajectory.demonstrated  # noqa: E731
    marked = eqx.tree_at(where, off, demonstrated, is_leaf=lambda leaf: leaf is None)
    info = info_of(world, marked, "trajectory", learning_rate=1e-12)
    chances = np.where(demonstrated, chance(world.mdp, world.behaviours[0]), 0)
    weight = np.exp((log_probs(world.target) - log_probs(world.behaviours[0])).sum(0))
    expected = (chances @ weight) ** 2 / (chances.sum() * (chances @ weight**2))
    assert float(info.extra["demonstration_ess"]) == pytest.approx(expected, rel=1e-9)
    assert abs(expected - float(info.extra["weight_ess"])) > 1e-3
    assert "demonstration_ess" not in info_of(world, off, "trajectory", learning_rate=1e-12).extra
