"""TRPO against exact linear algebra on tables: step length, direction, line search, outcomes."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jaxtyping import Array, Float

from klimb import TRPO, Batch, Categorical, DiagGaussian, Status
from klimb.improve.line_search import backtrack, grow
from klimb.policies.parameters import flatten
from klimb.tabular.table import SoftmaxTable
from problems import A, S, batch_on_table, make_mdp, mean_kl, take


def probabilities(policy) -> Array:
    return jax.vmap(policy)(jnp.arange(S)).probs


class Pinned(eqx.Module):
    """A softmax table whose last logit is 0: no redundant parameter, a regular Fisher matrix."""

    free: Float[Array, "S A-1"]

    def __call__(self, state: Array) -> Categorical:
        return Categorical(logits=jnp.append(self.free[state], 0.0))


class Normal(eqx.Module):
    """One Gaussian action, whatever is observed. In (μ/σ, log σ) the Fisher matrix is diag(1, 2)."""

    mean: Float[Array, "1"]
    log_std: Float[Array, "1"]

    def __call__(self, obs: Array) -> DiagGaussian:
        return DiagGaussian(mean=self.mean, log_std=self.log_std)


def pinned_fisher(pi: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Block-diagonal: d(s) (diag π − π πᵀ) over the A − 1 free logits of each state."""
    size = S * (A - 1)
    matrix = np.zeros((size, size))
    for s in range(S):
        p, rows = pi[s, :-1], slice(s * (A - 1), (s + 1) * (A - 1))
        matrix[rows, rows] = d[s] * (np.diag(p) - np.outer(p, p))
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.1, 1.0])
def test_damping_does_not_shorten_the_step(x64, damping):
    """KL reached / max_kl → 1 like √max_kl for every damping; the damped length would stay below 1.

    To 0.002: a full step that is outside by a hair is shortened by a thousandth at least.
    """
    mdp = make_mdp(0)
    policy = Pinned(jax.random.normal(jax.random.key(1), (S, A - 1)))
    pi = np.asarray(probabilities(policy))
    d = np.asarray(mdp.state_distribution(jnp.asarray(pi)))
    theta, _ = flatten(policy)
    rule = TRPO(cg_iterations=100, cg_tolerance=1e-12, cg_min_progress=0)
    batch, errors = batch_on_table(mdp, policy), []
    for max_kl in (1e-4, 1e-6, 1e-8):
        new, _, info = take(rule, policy, batch, max_kl=max_kl, damping=damping)
        assert info.status == Status.ACCEPTED
        reached = mean_kl(pi, probabilities(new), d)
        assert info.extra["backtracks"] <= 1
        assert reached <= max_kl
        errors.append(1 - reached / max_kl)
    step = flatten(new).theta - theta
    assert errors[0] < 0.05
    assert max(errors[1:]) < 0.005
    assert errors[2] < 0.0021

    fisher = pinned_fisher(pi, d)
    gradient = (d[:, None] * pi * np.asarray(mdp.advantages(jnp.asarray(pi))))[:, :-1].reshape(-1)
    damped = fisher + damping * np.eye(len(fisher))
    x = np.linalg.solve(damped, gradient)
    direction = np.asarray(step) / np.linalg.norm(step)
    np.testing.assert_allclose(direction, x / np.linalg.norm(x), rtol=0, atol=1e-6)
    # √(2 max_kl / xᵀ(F + ηI)x), the length that some implementations take, uses this fraction of the region.
    share = (x @ fisher @ x) / (x @ damped @ x)
    if damping >= 0.1:
        assert share < 0.5
    assert damping == 0 or abs(share - 1) > 10 * errors[-1]


@pytest.mark.slow
def test_direction_on_a_softmax_table_is_the_advantage(x64):
    """F⁻¹∇J of a softmax table is A^π up to a constant in each state: no trace of how often states occur."""
    mdp, policy = make_mdp(1), SoftmaxTable(jax.random.normal(jax.random.key(2), (S, A)))
    rule = TRPO(max_kl=1e-6, damping=0, cg_iterations=60, cg_tolerance=1e-9, cg_min_progress=0)
    new, _, info = take(rule, policy, batch_on_table(mdp, policy))
    assert info.status == Status.ACCEPTED
    advantage = np.asarray(mdp.advantages(probabilities(policy)))
    moved = np.asarray(new.logits - policy.logits)
    expected = advantage - advantage.mean(axis=1, keepdims=True)
    moved = moved - moved.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(moved / np.linalg.norm(moved), expected / np.linalg.norm(expected), rtol=0, atol=1e-6)
    # The plain gradient is something else.
    d = np.asarray(mdp.state_distribution(probabilities(policy)))
    plain = d[:, None] * np.asarray(probabilities(policy)) * advantage
    assert np.abs(plain / np.linalg.norm(plain) - expected / np.linalg.norm(expected)).max() > 0.1


def test_residual_reported_is_that_of_the_damped_system(x64):
    mdp, policy = make_mdp(2), Pinned(jax.random.normal(jax.random.key(3), (S, A - 1)))
    pi = probabilities(policy)
    d = np.asarray(mdp.state_distribution(pi))
    fisher = pinned_fisher(np.asarray(pi), d)
    gradient = (d[:, None] * np.asarray(pi) * np.asarray(mdp.advantages(pi)))[:, :-1].reshape(-1)
    rule = TRPO(cg_iterations=2, cg_tolerance=0, cg_min_progress=0, damping=0.05)
    new, _, info = take(rule, policy, batch_on_table(mdp, policy))
    # The step is x times a number: with x = t·step, the t is known from the step size reported.
    x = np.asarray(flatten(new).theta - flatten(policy).theta) / float(info.extra["step_size"])
    residual = np.linalg.norm((fisher + 0.05 * np.eye(len(fisher))) @ x - gradient) / np.linalg.norm(gradient)
    assert float(info.extra["cg_residual"]) == pytest.approx(residual, rel=1e-9)
    assert residual > 1e-3
    assert info.extra["cg_iterations"] == 2


def shrinking(kl_direction: str, **fields) -> tuple[TRPO, Normal, Batch]:
    """A batch that asks for a smaller σ, where the quadratic model sees far too little of KL(π_old‖π_new)."""
    return TRPO(kl_direction=kl_direction, **fields), *normal_batch(lambda z: 1 - jnp.square(z))


def normal_batch(advantage) -> tuple[Normal, Batch]:
    """Actions of mean 0 and deviation 1 under a standard normal policy, and advantages as a function of them."""
    policy = Normal(jnp.zeros(1), jnp.zeros(1))
    quantiles = scipy.stats.norm.ppf((np.arange(64) + 0.5) / 64)
    noise = jnp.asarray(quantiles / quantiles.std())[:, None]
    batch = Batch(
        obs=jnp.zeros((len(noise), 1)),
        action=noise,
        log_prob=policy(noise).log_prob(noise),
        advantage=advantage(noise[:, 0]),
        value_target=jnp.zeros(len(noise)),
        weight=jnp.ones(len(noise)),
    )
    return policy, batch


def normal_kl(p: Normal, q: Normal) -> float:
    """KL(p‖q) of two Gaussians."""
    mean_p, sd_p, mean_q, sd_q = (float(x[0]) for x in (p.mean, jnp.exp(p.log_std), q.mean, jnp.exp(q.log_std)))
    return np.log(sd_q / sd_p) + (sd_p**2 + (mean_p - mean_q) ** 2) / (2 * sd_q**2) - 0.5


def test_backtracks_are_counted_and_the_first_step_that_fits_is_taken(x64):
    rule, policy, batch = shrinking("old_new", max_kl=1.0)
    new, _, info = take(rule, policy, batch)
    # The direction is log σ alone (the batch is symmetric), so the full step is −√max_kl there.
    scale, backtracks = 1.0, 0
    while (kl := normal_kl(policy, Normal(jnp.zeros(1), jnp.array([-scale])))) > 1:
        scale, backtracks = scale * min(max(1 / kl, 0.8), 0.999), backtracks + 1
    assert info.status == Status.ACCEPTED
    assert info.extra["backtracks"] == backtracks > 0
    np.testing.assert_allclose(new.log_std, [-scale], rtol=1e-9)
    assert float(info.kl_old_new) == pytest.approx(normal_kl(policy, new), rel=1e-9)


def test_the_direction_of_the_kl_is_the_one_asked_for(x64):
    """The same full step is inside the region by KL(π_new‖π_old) and outside it by KL(π_old‖π_new)."""
    taken, _, full_info = take(*shrinking("new_old", max_kl=1.0))
    assert full_info.extra["backtracks"] == 0
    start = Normal(jnp.zeros(1), jnp.zeros(1))
    assert normal_kl(taken, start) <= 1 < normal_kl(start, taken)
    assert float(full_info.kl_max) == pytest.approx(normal_kl(taken, start), rel=1e-9)
    shorter, _, short_info = take(*shrinking("old_new", max_kl=1.0))
    assert short_info.extra["backtracks"] > 0
    assert normal_kl(start, shorter) <= 1
    assert float(short_info.kl_max) == pytest.approx(normal_kl(start, shorter), rel=1e-9)


def kl_too_large():
    return shrinking("old_new", max_kl=1.0, max_backtracks=0)


def no_improvement():
    """All advantages are positive and the step throws the policy past all its samples: every ratio falls to 0."""
    return TRPO(max_kl=50, backtrack_factor=0.95, max_backtracks=2), *normal_batch(lambda z: 3 + z)


def no_curvature():
    """A policy so sure of itself that its Fisher matrix is 0, and a sample of what it never does."""
    policy = SoftmaxTable(jnp.array([[2000.0, 0.0]]))
    state, action = jnp.zeros(1, int), jnp.ones(1, int)
    batch = Batch(
        obs=state,
        action=action,
        log_prob=jax.vmap(policy)(state).log_prob(action),
        advantage=jnp.ones(1),
        value_target=jnp.zeros(1),
        weight=jnp.ones(1),
    )
    return TRPO(damping=0), policy, batch


OUTCOMES = [
    (kl_too_large, Status.KL_TOO_LARGE, "raise max_backtracks"),
    (no_improvement, Status.NO_IMPROVEMENT, "no step tried improved the surrogate"),
    (no_curvature, Status.CG_BREAKDOWN, "raise damping"),
]


@pytest.mark.parametrize(("case", "status", "message"), OUTCOMES, ids=lambda x: getattr(x, "__name__", ""))
def test_rejected_steps_say_why_and_change_nothing(x64, case, status, message):
    rule, policy, batch = case()
    new, _, info = take(rule, policy, batch)
    assert Status(int(info.status)) is status
    assert message in Status(int(info.status)).message
    for before, after in zip(jax.tree.leaves(policy), jax.tree.leaves(new), strict=True):
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    for name in ("surrogate_gain", "kl_old_new", "kl_new_old", "kl_max", "tv", "tv_max"):
        assert getattr(info, name) == 0, name
    assert info.ess == 1
    assert info.extra["step_size"] == 0


@pytest.mark.parametrize("line_search", ["backtracking", "growing"])
def test_a_rejected_step_says_what_the_last_try_would_have_done(x64, line_search):
    rule, policy, batch = kl_too_large()
    _, _, info = take(dataclasses.replace(rule, line_search=line_search), policy, batch)
    assert info.status == Status.KL_TOO_LARGE
    assert info.extra["tried_kl"] > rule.max_kl
    rule, policy, batch = no_improvement()
    _, _, info = take(dataclasses.replace(rule, line_search=line_search), policy, batch)
    assert info.status == Status.NO_IMPROVEMENT
    assert info.extra["tried_gain"] <= 0


@pytest.mark.parametrize("line_search", ["backtracking", "growing"])
def test_of_a_step_that_is_taken_the_numbers_tried_are_its_own(x64, line_search):
    _, policy, batch = no_improvement()
    _, _, info = take(TRPO(max_kl=50, max_backtracks=40, line_search=line_search), policy, batch)
    assert info.status == Status.ACCEPTED
    np.testing.assert_allclose(info.extra["tried_kl"], info.kl_old_new, rtol=1e-9)
    np.testing.assert_allclose(info.extra["tried_gain"], info.surrogate_gain, rtol=1e-9)


def test_a_longer_search_takes_the_batch_that_was_rejected(x64):
    """The rejection above is about the steps that were tried, not about the data."""
    _, policy, batch = no_improvement()
    new, _, info = take(TRPO(max_kl=50, max_backtracks=40), policy, batch)
    assert info.status == Status.ACCEPTED
    assert info.extra["backtracks"] > 2
    assert float(new.mean[0]) > 0.1


def test_saturated_policies_have_a_direction_again_with_damping(x64):
    _, policy, batch = no_curvature()
    rule = TRPO(damping=0.1)
    *_, info = take(rule, policy, batch)
    # F is still 0, so no length can be read off it: rejected, but no longer for want of a direction.
    assert Status(int(info.status)) is Status.NO_IMPROVEMENT
    assert info.extra["cg_residual"] < 1e-5


SEARCHES = {
    "full step": (lambda v: (v, v**2), 1.0, 10, 0, Status.ACCEPTED),
    "the limit itself is inside": (lambda v: (v, v), 0.25, 10, 2, Status.ACCEPTED),
    "kl": (lambda v: (v, v**2), 0.1, 10, 2, Status.ACCEPTED),
    "gain": (lambda v: (v * (0.2 - v), v), 9.0, 10, 3, Status.ACCEPTED),
    "gain of exactly 0 is none": (lambda v: (v * (0.25 - v), v), 9.0, 10, 3, Status.ACCEPTED),
    "both": (lambda v: (v * (0.6 - v), v**2), 0.1, 10, 2, Status.ACCEPTED),
    "past a NaN": (lambda v: (jnp.where(v > 0.3, jnp.nan, v), v), 9.0, 10, 2, Status.ACCEPTED),
    "past an infinite KL": (lambda v: (v, jnp.where(v > 0.3, jnp.inf, v)), 9.0, 10, 2, Status.ACCEPTED),
    "first that fits, not the best": (lambda v: (v * (1.2 - v), v), 9.0, 10, 0, Status.ACCEPTED),
    "just in time": (lambda v: (v, v), 0.125, 3, 3, Status.ACCEPTED),
    "one try too few": (lambda v: (v, v), 0.126, 2, 2, Status.KL_TOO_LARGE),
    "one try": (lambda v: (v, v), 0.5, 0, 0, Status.KL_TOO_LARGE),
    "never improves": (lambda v: (-v, v), 0.5, 4, 4, Status.NO_IMPROVEMENT),
    "flat": (lambda v: (0 * v, v), 0.5, 4, 4, Status.NO_IMPROVEMENT),
    "neither at the last try": (lambda v: (-v, 10 + v), 0.5, 4, 4, Status.KL_TOO_LARGE),
    "never finite": (lambda v: (jnp.nan * v, v), 0.5, 4, 4, Status.NONFINITE),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_line_search_halving(case):
    evaluate, max_kl, max_backtracks, backtracks, status = SEARCHES[case]
    found = backtrack(
        lambda v: evaluate(v[0]),
        jnp.zeros(1),
        jnp.ones(1),
        max_kl=max_kl,
        factor=0.5,
        max_backtracks=max_backtracks,
    )
    assert Status(int(found.status)) is status
    assert found.backtracks == backtracks
    assert found.theta[0] == 0.5**backtracks
    np.testing.assert_array_equal([found.gain, found.kl], evaluate(found.theta[0]))


@pytest.mark.parametrize(
    ("max_kl", "scales"),
    [
        (0.9, [0.9]),  # KL 1 is outside by a tenth, so the next try is inside by a tenth: 0.9² = 0.81
        (0.99999, [0.999]),  # by a hair: a thousandth shorter
        (0.5, [0.8, 0.8]),  # far outside: by the factor, twice
    ],
)
def test_a_step_just_outside_is_shortened_only_as_much_as_it_takes(x64, max_kl, scales):
    def evaluate(v):
        return v[0], v[0] ** 2

    found = backtrack(evaluate, jnp.zeros(1), jnp.ones(1), max_kl=max_kl, factor=0.8, max_backtracks=10)
    assert found.status == Status.ACCEPTED
    assert found.backtracks == len(scales)
    np.testing.assert_allclose(found.scale, np.prod(scales), rtol=1e-12)
    np.testing.assert_allclose(found.theta, [found.scale], rtol=1e-12)


GROWTHS = {
    # evaluate, max_kl, range of the scale that has to be found
    "the model is right": (lambda v: (v, v**2), 1.0, (0.99, 1.0)),
    "twice too cautious": (lambda v: (v, v**2 / 4), 1.0, (1.98, 2.0)),
    "a hundred times": (lambda v: (v, v**2 / 1e4), 1.0, (99, 100)),
    "a little too bold": (lambda v: (v, v**2), 0.9, (0.98 * 0.9**0.5, 0.9**0.5)),
    "far too bold": (lambda v: (v, v**2), 0.01, (0.098, 0.1)),
    "a wall of the gain": (lambda v: (jnp.where(v > 3, -1.0, v), v**2 / 100), 1.0, (2.9, 3.0)),
    "a wall of the KL": (lambda v: (v, jnp.where(v > 3, 9.0, v**2 / 100)), 1.0, (2.9, 3.0)),
    "past a NaN": (lambda v: (jnp.where(v > 0.3, jnp.nan, v), v**2 / 100), 1.0, (0.28, 0.3)),
}


@pytest.mark.parametrize("case", GROWTHS)
def test_growing_search_finds_the_largest_good_step(x64, case):
    evaluate, max_kl, (low, high) = GROWTHS[case]
    found = grow(lambda v: evaluate(v[0]), jnp.zeros(1), jnp.ones(1), max_kl=max_kl, factor=0.8, max_backtracks=25)
    assert found.status == Status.ACCEPTED
    assert low <= float(found.scale) <= high
    assert found.theta[0] == found.scale
    gain, kl = evaluate(found.theta[0])
    assert gain > 0
    assert kl <= max_kl


@pytest.mark.parametrize(
    ("evaluate", "status"),
    [
        (lambda v: (-v, v), Status.NO_IMPROVEMENT),
        (lambda v: (v, 10 + v), Status.KL_TOO_LARGE),
        (lambda v: (jnp.nan * v, v), Status.NONFINITE),
    ],
)
def test_growing_search_says_what_the_last_try_lacked(evaluate, status):
    found = grow(lambda v: evaluate(v[0]), jnp.zeros(1), jnp.ones(1), max_kl=0.5, factor=0.5, max_backtracks=4)
    assert Status(int(found.status)) is status
    assert found.backtracks == 4


# Gains of 1 − 0.95 s times what the slope of 1 predicts for a step s.
SHARES = {0.0: 0, 0.05: 0, 0.1: 1, 0.5: 1, 0.6: 2, 0.99: 7}
"""Minimum share ↦ halvings until it is reached."""


def bent(v):
    return v[0] * (1 - 0.95 * v[0]), v[0] ** 2 / 100


@pytest.mark.parametrize("share", SHARES)
def test_a_try_has_to_gain_its_share_of_what_the_slope_predicts(x64, share):
    """The share counts for the step that is tried: its prediction shrinks with it."""
    options = {"max_kl": 1.0, "factor": 0.5, "max_backtracks": 10, "min_gain": jnp.array(share)}
    found = backtrack(bent, jnp.zeros(1), jnp.ones(1), **options)
    assert found.status == Status.ACCEPTED
    assert found.backtracks == SHARES[share]
    few = backtrack(bent, jnp.zeros(1), jnp.ones(1), **(options | {"max_backtracks": 0}))
    assert few.status == (Status.NO_IMPROVEMENT if SHARES[share] else Status.ACCEPTED)
    # The longest step with the share of its prediction: s with 1 − 0.95 s = share.
    longest = (1 - share) / 0.95
    grown = grow(bent, jnp.zeros(1), jnp.ones(1), **(options | {"max_backtracks": 40}))
    assert grown.status == Status.ACCEPTED
    assert 0.999 * longest <= float(grown.scale) <= longest


def test_a_share_of_a_loss_is_no_gain(x64):
    """Where the model predicts a loss, a smaller loss is not accepted."""
    for search in (backtrack, grow):
        found = search(
            lambda v: (-0.5 * v[0], v[0] ** 2),
            jnp.zeros(1),
            jnp.ones(1),
            max_kl=1.0,
            factor=0.5,
            max_backtracks=3,
            min_gain=jnp.array(-0.9),
        )
        assert found.status == Status.NO_IMPROVEMENT


@pytest.mark.parametrize("line_search", ["backtracking", "growing"])
def test_the_share_is_of_the_gain_along_the_exact_gradient(x64, line_search):
    """gᵀ(θ' − θ) by autodiff of J, with the entropy's: the accepted step has its share, and without one has less."""
    mdp, policy = make_mdp(0), SoftmaxTable(2 * jax.random.normal(jax.random.key(1), (S, A)))
    batch = batch_on_table(mdp, policy)
    d = jnp.asarray(batch.weight).reshape(S, A).sum(1) / jnp.sum(batch.weight)

    def bonused(logits):
        """(1 − γ) J's surrogate: gains of the policy over the states of the old one, plus the entropy bonus."""
        pi, log_pi = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
        advantage = mdp.advantages(jax.nn.softmax(policy.logits))
        return d @ jnp.sum(pi * (advantage - 0.1 * log_pi), axis=1)

    gradient = jax.grad(bonused)(policy.logits)
    shares = []
    for share in (0.0, 0.9):
        rule = TRPO(
            max_kl=1.0, damping=1e-3, ent_coef=0.1, line_search=line_search, min_gain_share=share, max_backtracks=30
        )
        new, _, info = take(rule, policy, batch)
        assert info.status == Status.ACCEPTED
        predicted = jnp.vdot(gradient, new.logits - policy.logits)
        shares.append(float((bonused(new.logits) - bonused(policy.logits)) / predicted))
    assert shares[0] < 0.85
    assert 0.9 <= shares[1] < 0.99


@pytest.mark.parametrize("seed", range(4))
def test_growing_uses_the_region_that_backtracking_leaves(x64, seed):
    """With a far too short full step (a hundred times the Fisher matrix of the KL) the search makes up for it."""
    mdp, policy = make_mdp(seed), SoftmaxTable(jax.random.normal(jax.random.key(seed), (S, A)))
    batch, used = batch_on_table(mdp, policy), {}
    for search in ("backtracking", "growing"):
        # One product in a badly conditioned solve: a poor direction and a length that fits nothing else.
        rule = TRPO(max_kl=0.3, cg_iterations=1, line_search=search, max_backtracks=20)
        *_, info = take(rule, policy, batch)
        assert info.status == Status.ACCEPTED
        assert info.kl_old_new <= 0.3
        assert info.surrogate_gain > 0
        used[search] = float(info.kl_old_new) / 0.3
    assert used["growing"] > 0.97
    assert used["growing"] >= used["backtracking"] - 0.03


def test_fisher_of_a_part_and_a_search_on_the_whole(x64):
    """The direction changes with the part drawn; the limit holds on the whole batch."""
    mdp, policy = make_mdp(0), SoftmaxTable(jax.random.normal(jax.random.key(1), (S, A)))
    batch = batch_on_table(mdp, policy)
    rule = TRPO(fisher_fraction=0.4, max_kl=0.05)
    steps = []
    for key in range(3):
        new, _, info = eqx.filter_jit(rule.step)(jax.random.key(key), policy, (), batch)
        assert info.status == Status.ACCEPTED
        assert mean_kl(probabilities(policy), probabilities(new), mdp.state_distribution(probabilities(policy))) <= 0.05
        steps.append(np.asarray(new.logits - policy.logits))
    assert np.abs(steps[0] - steps[1]).max() > 1e-3


def test_empirical_fisher_is_the_exact_one_on_exact_expectations(x64):
    """E_a[∇log π ∇log πᵀ] over all actions is the same matrix; so is the step."""
    mdp, policy = make_mdp(0), SoftmaxTable(jax.random.normal(jax.random.key(1), (S, A)))
    batch = batch_on_table(mdp, policy)
    exact, empirical = (take(TRPO(fisher=kind), policy, batch)[0].logits for kind in ("exact", "empirical"))
    np.testing.assert_allclose(empirical, exact, rtol=0, atol=1e-10)
