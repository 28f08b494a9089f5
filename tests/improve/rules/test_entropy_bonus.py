"""The entropy bonus of every rule that has one, against its gradient in closed form and against linear algebra."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klimb import (
    AWR,
    REPS,
    TRPO,
    VMPO,
    ConservativePolicyIteration,
    DualDescent,
    KLPenalty,
    NaturalGradient,
    OffPolicyGradient,
    Status,
)
from klimb.rules import RULES
from problems import GAMMA, A, S, batch_on_table, make_mdp, make_table, probabilities, slow_except, take

COEF = 0.3
ONE = {"epochs": 1, "num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """An MDP, a policy, its batch of exact expectations, and the gradient of its mean entropy in the logits."""
    mdp, policy = make_mdp(0), make_table(1)
    pi = np.asarray(probabilities(policy))
    d = np.asarray(mdp.state_distribution(jnp.asarray(pi)))[:, None]
    entropy = -np.sum(pi * np.log(pi), axis=1, keepdims=True)
    return mdp, policy, batch_on_table(mdp, policy), d * -pi * (np.log(pi) + entropy)


def first_gradient(state) -> np.ndarray:
    """The gradient that Adam has seen in its first step: its mean of gradients is a tenth of it."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = (node for node in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(node))
    return np.asarray(adam.mu).reshape(S, A) * 10


ADAM = [
    KLPenalty(**ONE),
    DualDescent(**ONE),
    OffPolicyGradient(gradient_steps=1, max_grad_norm=None),
    REPS(**ONE),
    VMPO(**ONE),
    AWR(**ONE),
]


@pytest.mark.parametrize("rule", slow_except([ADAM[0], ADAM[-1]], ADAM), ids=lambda rule: type(rule).__name__)
def test_the_gradient_is_that_of_the_objective_with_the_bonus(problem, rule):
    """g + c ∇H, ∂H/∂logit_a = −d(s) π_a (log π_a + H): the part of the surrogate is tested without a bonus."""
    _, policy, batch, bonus = problem
    _, state, info = take(dataclasses.replace(rule, ent_coef=COEF), policy, batch)
    without = first_gradient(take(rule, policy, batch)[1])
    assert np.abs(without).max() > 1e-3
    np.testing.assert_allclose(first_gradient(state), without + COEF * bonus, rtol=0, atol=1e-10)
    assert float(info.extra["grad_norm"]) == pytest.approx(np.linalg.norm(without + COEF * bonus), rel=1e-9)


@pytest.mark.slow
def test_the_better_policy_of_conservative_policy_iteration_has_the_bonus(problem):
    """Adam's first step on mean w log π + c H, w ∝ e^{A/λ}; the mixture of tables is a table, from which π' follows."""
    mdp, policy, batch, bonus = problem
    rule = ConservativePolicyIteration(
        mixture=0.5, learning_rate=0.01, ent_coef=COEF, damping=0.0, projection_steps=6, cg_iterations=30, **ONE
    )
    new, _, info = take(rule, policy, batch)
    assert info.status == Status.ACCEPTED
    pi, d = np.asarray(probabilities(policy)), np.asarray(batch.weight).reshape(S, A).sum(1, keepdims=True)
    d = d / d.sum()
    weight = np.exp(np.asarray(mdp.advantages(jnp.asarray(pi))))
    weight /= (d * pi * weight).sum()
    gradient = d * pi * (weight - (pi * weight).sum(1, keepdims=True)) + COEF * bonus
    better = np.asarray(jax.nn.softmax(policy.logits + 0.01 * gradient / (np.abs(gradient) + 1e-5)))
    np.testing.assert_allclose(2 * np.asarray(probabilities(new)) - pi, better, rtol=0, atol=1e-7)
    assert np.abs(better - pi).max() > 1e-3


def fisher_matrix(problem) -> np.ndarray:
    """d(s) (diag π − π πᵀ) in the block of every state."""
    mdp, policy, *_ = problem
    pi = np.asarray(probabilities(policy))
    d = np.asarray(mdp.state_distribution(jnp.asarray(pi)))
    matrix = np.zeros((S * A, S * A))
    for s in range(S):
        rows = slice(s * A, (s + 1) * A)
        matrix[rows, rows] = d[s] * (np.diag(pi[s]) - np.outer(pi[s], pi[s]))
    return matrix


def natural_direction(problem, damping: float) -> np.ndarray:
    """(F + ηI)⁻¹ (∇J + c ∇H), J by autodiff of the exact objective."""
    mdp, policy, _, bonus = problem
    gradient = (1 - GAMMA) * jax.grad(lambda logits: mdp.objective(jax.nn.softmax(logits)))(policy.logits)
    matrix = fisher_matrix(problem) + damping * np.eye(S * A)
    return np.linalg.solve(matrix, (np.asarray(gradient) + COEF * bonus).ravel()).reshape(S, A)


@pytest.mark.parametrize("solver", slow_except({"dense"}, ("dense", "woodbury", "cg")))
def test_the_natural_gradient_solves_for_both(problem, solver):
    _, policy, batch, _ = problem
    rule = NaturalGradient(
        solver=solver,
        learning_rate=0.7,
        ent_coef=COEF,
        damping=0.1,
        cg_iterations=60,
        cg_tolerance=1e-12,
        cg_min_progress=0,
    )
    new, *_ = take(rule, policy, batch)
    np.testing.assert_allclose(new.logits - policy.logits, 0.7 * natural_direction(problem, 0.1), rtol=0, atol=1e-8)


def test_trpo_searches_along_the_same_direction_and_accepts_the_same_objective(problem):
    _, policy, batch, _ = problem
    rule = TRPO(ent_coef=COEF, cg_iterations=60, cg_tolerance=1e-12, cg_min_progress=0)
    new, _, info = take(rule, policy, batch, max_kl=1e-4)
    step, direction = np.asarray(new.logits - policy.logits), natural_direction(problem, 0.1)
    assert info.status == Status.ACCEPTED
    np.testing.assert_allclose(step, float(info.extra["step_size"]) * direction, rtol=0, atol=1e-9)
    # Advantages against the bonus and far smaller: the surrogate falls, and what is accepted is the entropy's rise.
    pi = np.asarray(probabilities(policy))
    entropy = lambda p: -np.sum(p * np.log(p), axis=1)  # noqa: E731
    against = eqx.tree_at(lambda b: b.advantage, batch, 0.01 * COEF * (batch.log_prob - batch.log_prob.mean()))
    new, _, info = take(rule, policy, against, max_kl=0.01)
    d = np.asarray(batch.weight).reshape(S, A).sum(1)
    rise = float(d @ (entropy(np.asarray(probabilities(new))) - entropy(pi)) / d.sum())
    assert info.status == Status.ACCEPTED
    assert info.surrogate_gain < 0 < float(info.surrogate_gain) + COEF * rise
    flat = eqx.tree_at(lambda b: b.advantage, batch, jnp.zeros_like(batch.advantage))
    assert take(rule, policy, flat, max_kl=0.01)[2].status == Status.ACCEPTED
    still, _, info = take(TRPO(), policy, flat, max_kl=0.01)
    assert info.status == Status.NO_IMPROVEMENT
    np.testing.assert_array_equal(still.logits, policy.logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [KLPenalty(**ONE), DualDescent(**ONE), AWR(**ONE)], ids=lambda rule: type(rule).__name__
)
def test_without_advantages_the_bonus_moves_what_has_no_weights(problem, rule):
    """A fit to equal weights would follow the noise of the sampled actions, and stays where it is."""
    _, policy, batch, _ = problem
    flat = eqx.tree_at(lambda b: b.advantage, batch, jnp.zeros_like(batch.advantage))
    new, _, info = take(dataclasses.replace(rule, ent_coef=COEF), policy, flat)
    before = float(take(rule, policy, flat)[2].entropy)
    if isinstance(rule, AWR):
        np.testing.assert_array_equal(new.logits, policy.logits)
    else:
        assert float(info.entropy) > before + 1e-4


def test_every_rule_that_improves_on_advantages_has_a_bonus():
    """All but behaviour cloning, which has no advantages, and guided search, whose objectives are its own."""
    without = {name for name, rule in RULES.items() if not hasattr(rule, "ent_coef")}
    assert without == {"behaviour-cloning", "guided"}
