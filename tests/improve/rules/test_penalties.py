"""KL penalty, dual descent and PPO's adaptive penalty, against the closed forms of their inner problems."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import klimb
from klimb import PPO, DualDescent, KLPenalty, Status
from klimb.errors import ConfigError
from klimb.fields import build
from klimb.improve.dual import MIN_POSITIVE_MULTIPLIER, adapt, dual_ascent
from problems import batch_on_table, make_mdp, make_table, mean_kl, probabilities, slow_except, take

FULL = {"num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """A policy, its batch of exact expectations, its probabilities, advantages and states."""
    mdp, policy = make_mdp(0), make_table(1)
    pi = np.asarray(probabilities(policy))
    d = np.asarray(mdp.state_distribution(jnp.asarray(pi)))
    return policy, batch_on_table(mdp, policy), pi, np.asarray(mdp.advantages(jnp.asarray(pi))), d


def best_penalised(pi: np.ndarray, advantage: np.ndarray, penalty: float, direction: str) -> np.ndarray:
    """argmax over π' of Σ_a π' A − λ KL, state by state: π e^{A/λ}/Z, or λ π/(ν − A) with ν from Σ π' = 1."""
    if direction == "new_old":
        weights = pi * np.exp(advantage / penalty)
        return weights / weights.sum(1, keepdims=True)
    rows = []
    for p, a in zip(pi, advantage, strict=True):
        excess = lambda nu, p=p, a=a: (penalty * p / (nu - a)).sum() - 1  # noqa: E731
        nu = scipy.optimize.brentq(excess, a.max() + 1e-9 * penalty, a.max() + 100 * penalty, xtol=1e-14)
        rows.append(penalty * p / (nu - a))
    return np.array(rows)


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_fixed_penalty_converges_to_the_closed_form(problem, direction, penalty):
    policy, batch, pi, advantage, _ = problem
    rule = KLPenalty(kl_direction=direction, learning_rate=0.02, epochs=3000, **FULL)
    new, _, info = take(rule, policy, batch, kl_coef=penalty)
    expected = best_penalised(pi, advantage, penalty, direction)
    np.testing.assert_allclose(probabilities(new), expected, rtol=0, atol=2e-4)
    assert np.abs(expected - pi).max() > 0.05
    assert float(info.extra["multiplier"]) == penalty
    other = best_penalised(pi, advantage, penalty, {"old_new": "new_old", "new_old": "old_new"}[direction])
    assert np.abs(other - expected).max() > 2e-3


@pytest.mark.slow
def test_a_higher_price_buys_a_smaller_move(problem):
    policy, batch, *_ = problem
    rule = KLPenalty(epochs=200, **FULL)
    kl = [float(take(rule, policy, batch, kl_coef=c)[2].kl_old_new) for c in (0.0, 1.0, 10.0, 1000.0)]
    assert kl == sorted(kl, reverse=True)
    assert kl[-1] < 1e-3 * kl[0]


LIMITS = {"kl_old_new": 0.02, "kl_new_old": 0.02, "tv": 0.05}


@pytest.mark.parametrize("log_multiplier", [False, True])
@pytest.mark.parametrize("kind", slow_except({"kl_old_new"}, LIMITS))
def test_dual_descent_finds_the_multiplier_of_the_limit(problem, kind, log_multiplier):
    """With rounds enough on one batch: D = ε, slackness 0, and λ the price at which the closed form moves by ε."""
    policy, batch, pi, advantage, d = problem
    epsilon = LIMITS[kind]
    rule = DualDescent(
        epsilon=epsilon,
        divergence=kind,
        rounds=300,
        epochs=30,
        learning_rate=1e-3,
        multiplier_learning_rate=2.0 if kind == "tv" else 20.0,
        log_multiplier=log_multiplier,
        **FULL,
    )
    new, state, info = take(rule, policy, batch)
    after = np.asarray(probabilities(new))
    reached = {
        "kl_old_new": mean_kl(pi, after, d),
        "kl_new_old": mean_kl(after, pi, d),
        "tv": float(d @ np.abs(after - pi).sum(1)) / 2,
    }[kind]
    # With TV the inner problem is linear: at the right λ it does not care where it is, and D swings around ε.
    assert reached == pytest.approx(epsilon, rel=0.2 if kind == "tv" else 0.03)
    assert float(info.extra["constraint_violation"]) == pytest.approx(reached - epsilon, abs=1e-9)
    assert abs(float(info.extra["complementary_slackness"])) < 0.2 * float(info.surrogate_gain)
    if kind != "tv":

        def excess(penalty: float) -> float:
            best = best_penalised(pi, advantage, penalty, kind.removeprefix("kl_"))
            return (mean_kl(pi, best, d) if kind == "kl_old_new" else mean_kl(best, pi, d)) - epsilon

        assert float(state.multiplier) == pytest.approx(scipy.optimize.brentq(excess, 0.1, 100), rel=0.05)


@pytest.mark.slow
def test_a_limit_that_does_not_bind_has_no_price(problem):
    """ε above anything two steps can move: λ falls to exactly 0, and slackness with it; in log space to its floor."""
    policy, batch, *_ = problem
    state = None
    options = {"epsilon": 5.0, "epochs": 2, **FULL}
    for _ in range(6):
        _, state, info = take(DualDescent(**options), policy, batch, state)
    assert state.multiplier == 0
    assert info.extra["complementary_slackness"] == 0
    assert float(info.extra["constraint_violation"]) == pytest.approx(-5, abs=0.1)
    _, state, _ = take(DualDescent(log_multiplier=True, **options), policy, batch)
    assert float(state.multiplier) == pytest.approx(MIN_POSITIVE_MULTIPLIER)


def test_the_multiplier_survives_and_follows_the_violation(problem):
    """λ_{k+1} = max(0, λ_k + α (D_k − ε)) from one step to the next, D_k that of the policy returned."""
    policy, batch, *_ = problem
    rule, state = DualDescent(epsilon=1e-4, epochs=3, **FULL), None
    expected = 1.0
    for _ in range(3):
        policy, state, info = take(rule, policy, batch, state)
        assert float(info.extra["multiplier"]) == pytest.approx(expected, rel=1e-12)
        expected = max(0.0, expected + 20.0 * float(info.extra["constraint_violation"]))
        assert float(state.multiplier) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_passes_end_when_the_policy_has_moved_far_enough(problem):
    """Without a price (λ = 0) and with passes for a long way: D ends one pass past `enough` ε, not where they lead."""
    policy, batch, *_ = problem
    moved = [
        float(
            take(DualDescent(max_overshoot=enough, initial_multiplier=0, epochs=500, **FULL), policy, batch)[
                2
            ].kl_old_new
        )
        for enough in (1.0, 2.0, 1e6)
    ]
    assert 0.01 < moved[0] < 0.012
    assert 0.02 < moved[1] < 0.023
    assert moved[2] > 0.07


def test_a_rejected_step_leaves_the_multiplier_alone(problem):
    policy, batch, *_ = problem
    rule = DualDescent(**FULL)
    state = rule.init(policy)
    spoilt = eqx.tree_at(lambda b: b.advantage, batch, batch.advantage.at[0].set(jnp.nan))
    _, after, info = take(rule, policy, spoilt, state)
    assert Status(int(info.status)) is Status.NONFINITE
    assert after.multiplier == state.multiplier == 1


def test_multiplier_updates(x64):
    one = jnp.ones(())

    def up(multiplier, violation, **options):
        options = {"learning_rate": 2.0, "log_space": False, "largest": 100.0} | options
        return float(dual_ascent(multiplier * one, violation * one, **options))

    assert up(1, 0.25) == 1.5
    assert up(1, -0.25) == 0.5
    assert up(1, -10) == 0
    assert up(99, 10) == 100
    assert up(0, 0.1) == pytest.approx(0.2)
    assert up(1, 0.25, log_space=True) == pytest.approx(np.exp(0.5))
    assert up(1, -1e3, log_space=True) == MIN_POSITIVE_MULTIPLIER
    assert up(1, 1e6, log_space=True) == 100
    assert up(0, 1, log_space=True) > 0
    for violation in (np.inf, 1e300):
        assert up(1, violation) == up(1, violation, log_space=True) == 100


def test_adaptive_coefficient_doubles_and_halves_within_its_bounds(x64):
    bounds = (0.1, 50.0)
    for kl, factor in ((0.016, 2), (0.0149, 1), (0.01, 1), (0.0067, 1), (0.0066, 0.5), (0.0, 0.5), (np.inf, 2)):
        assert float(adapt(jnp.ones(()), jnp.array(kl), 0.01, bounds)) == factor
    assert float(adapt(jnp.array(40.0), jnp.array(1.0), 0.01, bounds)) == 50
    assert float(adapt(jnp.array(0.15), jnp.array(0.0), 0.01, bounds)) == 0.1


@pytest.mark.slow
def test_ppo_adapts_its_penalty_from_batch_to_batch(problem):
    policy, batch, *_ = problem
    rule = PPO(penalty="kl", target_kl=1e-9, learning_rate=0.05, epochs=5, **FULL)
    _, state, info = take(rule, policy, batch)
    assert float(info.extra["multiplier"]) == 1
    assert info.kl_old_new > 1.5e-9
    assert state.multiplier == 2
    for _ in range(20):  # it stops at its upper end, and everything stays a number
        _, state, info = take(rule, policy, batch, state)
    assert state.multiplier == 1000
    assert np.isfinite([float(x) for x in jax.tree.leaves(info)]).all()
    lazy = PPO(penalty="kl", target_kl=100.0, learning_rate=0.05, epochs=5, **FULL)
    state = None
    for _ in range(14):
        _, state, _ = take(lazy, policy, batch, state)
    assert state.multiplier == pytest.approx(1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_ppo_with_a_penalty_climbs_what_the_fixed_penalty_climbs(problem, direction):
    policy, batch, *_ = problem
    options = {"kl_direction": direction, "learning_rate": 0.02, "epochs": 40, **FULL}
    by_ppo = take(PPO(penalty="kl", kl_coef=2.0, **options), policy, batch)[0]
    by_penalty = take(KLPenalty(kl_coef=2.0, **options), policy, batch)[0]
    np.testing.assert_allclose(by_ppo.logits, by_penalty.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "fields", "line"),
    [
        (KLPenalty, {"kl_coef": -1}, "kl_coef = -1: .*greater than or equal to 0"),
        (DualDescent, {"epsilon": 0}, "epsilon = 0: .*greater than 0"),
        (DualDescent, {"epsilon": -0.1}, "epsilon = -0.1: .*greater than 0"),
        (DualDescent, {"initial_multiplier": -1}, "initial_multiplier = -1: .*greater than or equal to 0"),
        (DualDescent, {"divergence": "js"}, "divergence = 'js': .*'kl_old_new', 'kl_new_old' or 'tv'"),
        (PPO, {"penalty": "l2"}, "penalty = 'l2': .*'clip' or 'kl'"),
        (PPO, {"kl_coef_range": (10.0, 1.0)}, "kl_coef_range = 10 1 is not a range: give the smaller number first"),
        (PPO, {"kl_coef_range": (0.0, 1.0)}, "kl_coef_range.0 = 0.0: .*greater than 0"),
    ],
)
def test_wrong_values_get_one_clear_line(rule, fields, line):
    with pytest.raises(ConfigError, match=line):
        build(rule, fields)


@pytest.mark.slow
def test_mean_divergence_settles_at_its_limit_over_a_run():
    """On sampled CartPole: after the first quarter, wherever λ > 0, the mean KL is within 20 % of ε."""
    run = klimb.train(
        "CartPole-v1", DualDescent(learning_rate=3e-3), env_steps=100_000, num_envs=16, num_steps=64, hidden=(32,)
    )
    rows = [record for record in run.history[len(run.history) // 4 :] if record["multiplier"] > 0]
    assert len(rows) > 30
    mean = np.mean([record["kl_old_new"] for record in rows])
    assert mean == pytest.approx(0.01, rel=0.2)
    assert all(record["multiplier"] >= 0 for record in run.history)
