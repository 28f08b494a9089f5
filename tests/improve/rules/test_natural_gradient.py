"""The natural gradient against exact linear algebra on tables, and the plain gradient that it is compared with."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import NaturalGradient, Status
from klimb.tabular.table import SoftmaxTable
from problems import A, S, batch_on_table, make_mdp, make_table, mean_kl, probabilities, slow_except, take


@pytest.fixture
def world(x64):
    mdp, policy = make_mdp(1), make_table(2)
    return mdp, policy, batch_on_table(mdp, policy)


def centred(table) -> np.ndarray:
    """A direction in the logits, up to a constant in every state, of length 1."""
    table = np.asarray(table) - np.asarray(table).mean(axis=1, keepdims=True)
    return table / np.linalg.norm(table)


SOLVERS = {
    "cg": {"solver": "cg", "damping": 0.0, "cg_iterations": 60, "cg_tolerance": 1e-10, "cg_min_progress": 0.0},
    "woodbury": {"solver": "woodbury", "damping": 1e-9},
    "dense": {"solver": "dense", "damping": 1e-9},
}
each_solver = pytest.mark.parametrize("solver", SOLVERS)


@each_solver
@pytest.mark.parametrize("fisher", slow_except({"exact"}, ("exact", "empirical")))
def test_is_the_advantage_up_to_a_constant_in_every_state(world, solver, fisher):
    """F⁻¹∇J of a softmax table is A^π(s, ·) + c(s): no trace of how often states occur (Kakade 2001)."""
    mdp, policy, batch = world
    new, _, info = take(NaturalGradient(fisher=fisher, **SOLVERS[solver]), policy, batch, epsilon=1e-6)
    assert info.status == Status.ACCEPTED
    advantage = mdp.advantages(probabilities(policy))
    np.testing.assert_allclose(centred(new.logits - policy.logits), centred(advantage), rtol=0, atol=1e-5)
    plain, _, _ = take(NaturalGradient(normalised=True), policy, batch, epsilon=1e-6)
    assert np.abs(centred(plain.logits - policy.logits) - centred(advantage)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "damping", [pytest.param(1e-3, marks=pytest.mark.slow), 0.1, pytest.param(1.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_solvers_agree(world, damping, fisher):
    _, policy, batch = world
    cg = SOLVERS["cg"] | {"damping": damping, "cg_tolerance": 1e-13}
    steps = [
        take(NaturalGradient(fisher=fisher, **options), policy, batch)[0].logits
        for options in (cg, {"solver": "woodbury", "damping": damping}, {"solver": "dense", "damping": damping})
    ]
    for other in steps[1:]:
        np.testing.assert_allclose(other, steps[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("damping", slow_except({0.1}, (1e-9, 1e-3, 0.1, 1.0)))
@each_solver
def test_kl_reached_tends_to_the_one_aimed_at(world, solver, damping):
    """KL / ε → 1 as ε → 0 with slope 1: log KL over log ε, for every damping and solver; off by O(√ε)."""
    mdp, policy, batch = world
    d = mdp.state_distribution(probabilities(policy))
    reached, epsilons = [], (1e-3, 1e-5, 1e-7, 1e-9)
    for epsilon in epsilons:
        rule = NaturalGradient(**SOLVERS[solver] | {"damping": damping})
        new, _, info = take(rule, policy, batch, epsilon=epsilon)
        reached.append(mean_kl(probabilities(policy), probabilities(new), d))
        assert float(info.kl_old_new) == pytest.approx(reached[-1], rel=1e-5)
    errors = np.abs(np.array(reached) / epsilons - 1)
    slope = np.polyfit(np.log(epsilons), np.log(reached), 1)[0]
    assert slope == pytest.approx(1, abs=0.01)
    assert errors[-1] < 1e-3
    assert errors[2] / errors[0] == pytest.approx(0.01, rel=0.5)


@pytest.mark.slow
def test_a_fixed_step_is_that_many_times_the_direction(world):
    _, policy, batch = world
    options = {"damping": 0.1, "solver": "dense"}
    scaled, _, info = take(NaturalGradient(**options), policy, batch)
    direction = (scaled.logits - policy.logits) / float(info.extra["step_size"])
    for alpha in (0.01, 0.3):
        new, _, info = take(NaturalGradient(learning_rate=alpha, **options), policy, batch)
        np.testing.assert_allclose(new.logits, policy.logits + alpha * direction, rtol=0, atol=1e-12)
        assert float(info.extra["step_size"]) == pytest.approx(alpha)


@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_normalised_is_the_plain_gradient_on_the_ball(world, epsilon):
    """‖θ' − θ‖² = ε exactly, along ∇J by autodiff of the exact J."""
    mdp, policy, batch = world
    new, _, info = take(NaturalGradient(normalised=True), policy, batch, epsilon=epsilon)
    step = np.asarray(new.logits - policy.logits)
    assert np.square(step).sum() == pytest.approx(epsilon, rel=1e-10)
    gradient = np.asarray(jax.grad(lambda logits: mdp.objective(jax.nn.softmax(logits)))(policy.logits))
    np.testing.assert_allclose(step / np.linalg.norm(step), gradient / np.linalg.norm(gradient), rtol=0, atol=1e-10)
    assert info.extra["cg_iterations"] == 0


def test_the_natural_step_gains_more_for_the_same_kl(world):
    """At equal KL the natural direction's surrogate gain is the larger one: it is the best to first order."""
    _, policy, batch = world
    _, _, info = take(NaturalGradient(**SOLVERS["cg"]), policy, batch, epsilon=1e-6)
    _, _, plain = take(NaturalGradient(normalised=True), policy, batch, epsilon=1e-4)
    gain_for_root_kl = lambda x: float(x.surrogate_gain / jnp.sqrt(x.kl_old_new))  # noqa: E731
    assert gain_for_root_kl(info) > 1.02 * gain_for_root_kl(plain)


def test_a_direction_of_no_curvature_is_refused(world):
    """A policy that is sure of itself in every state has F = 0; the gradient of what it never does is not 0."""
    _, _, batch = world
    sure = SoftmaxTable(jnp.zeros((S, A)).at[:, 0].set(2000.0))
    rare = (jnp.ones_like(batch.action), jax.vmap(sure)(batch.obs).log_prob(jnp.ones_like(batch.action)))
    spoilt = eqx.tree_at(lambda b: (b.action, b.log_prob), batch, rare)
    new, _, info = take(NaturalGradient(damping=0.0), sure, spoilt)
    assert Status(int(info.status)) is Status.CG_BREAKDOWN
    assert np.array_equal(new.logits, sure.logits)
    assert info.extra["step_size"] == 0
