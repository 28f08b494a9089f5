"""§3: the performance difference, the surrogate, the shift of the state distribution, and guaranteed improvement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb.estimate import bounds
from klimb.improve.divergences import kl_divergence, total_variation, total_variation_bound
from klimb.policies.distributions import Categorical
from klimb.theory.statements.statement import Problem, Section, Sides
from klimb.theory.surrogate import state_variation, surrogate

IMPROVEMENT = Section("3")
HORIZON = 50
TIME = np.arange(1, HORIZON)
"""From 1, because at t = 0 all state distributions are the initial one."""
ALPHAS = (0.01, 0.1, 0.3, 0.6, 1.0)


@IMPROVEMENT.equal("performance difference", "J(π') = J(π) + E_{τ∼π'}[Σ_t γᵗ A^π(s_t, a_t)]")
def performance_difference_lemma(p: Problem) -> Sides:
    gained = p.new_occupancy @ p.gains
    return p.mdp.objective(p.new), p.objective + gained


@IMPROVEMENT.equal("surrogate at π", "J(π) + Ā(π) = J(π): Σ_t γᵗ E_{p_t, π}[A^π] = 0")
def surrogate_at_old_policy(p: Problem) -> Sides:
    values, objective = p.values, p.objective
    advantage = jnp.sum(p.pi * p.action_values, axis=1) - values
    return objective + p.occupancy @ advantage, objective


@IMPROVEMENT.equal("surrogate's gradient", "∇Ā(θ') = ∇J(θ') at θ' = θ")
def surrogate_gradient(p: Problem) -> Sides:
    slope = jax.grad(lambda logits: surrogate(p.mdp, p.pi, jax.nn.softmax(logits)))(p.logits)
    return slope, p.slope


@IMPROVEMENT.at_most("state mismatch", "TV(p_π'^t, p_π^t) ≤ 1 − (1 − ε)ᵗ for every t")
def state_mismatch(p: Problem) -> Sides:
    return _marginal_variation(p), bounds.state_mismatch_bound(_epsilon(p), TIME)


@IMPROVEMENT.at_most("state mismatch, linear", "1 − (1 − ε)ᵗ ≤ ε t")
def state_mismatch_linear(p: Problem) -> Sides:
    return bounds.state_mismatch_bound(_epsilon(p), TIME), bounds.linear_mismatch_bound(_epsilon(p), TIME)


@IMPROVEMENT.at_most("expectations", "|E_p'[f] − E_p[f]| ≤ 2 TV(p', p) max|f|")
def expectation_difference(p: Problem) -> Sides:
    functions = jnp.stack([jnp.sum(p.pi * p.mdp.reward, axis=1), p.values])
    old, new = (p.mdp.state_marginals(pi, HORIZON)[1:] for pi in (p.pi, p.new))
    left = jnp.abs((new - old) @ functions.T)
    return left, 2 * _marginal_variation(p)[:, None] * jnp.max(jnp.abs(functions), axis=1)


@IMPROVEMENT.at_most("discounted mismatch", "TV(d^π', d^π) ≤ γε/(1 − γ(1 − ε))", needs_discount=True)
def discounted_state_mismatch(p: Problem) -> Sides:
    return _discounted_variation(p), bounds.discounted_mismatch_bound(_epsilon(p), p.mdp.gamma)


@IMPROVEMENT.at_most("average mismatch", "TV(d^π', d^π) ≤ γ/(1 − γ) E_{s∼d^π}[TV]", needs_discount=True)
def average_state_mismatch(p: Problem) -> Sides:
    mean = p.states @ state_variation(p.pi, p.new)
    return _discounted_variation(p), bounds.average_mismatch_bound(mean, p.mdp.gamma)


@IMPROVEMENT.equal("closed form", "Σ_t γᵗ (1 − (1 − ε)ᵗ) = γε/((1 − γ)(1 − γ(1 − ε)))", needs_discount=True)
def discounted_mismatch_closed_form(p: Problem) -> Sides:
    gamma, epsilon, time = p.mdp.gamma, _epsilon(p), jnp.arange(HORIZON)
    first_terms = jnp.sum(gamma**time * bounds.state_mismatch_bound(epsilon, time))
    ratio = gamma * (1 - epsilon)
    remainder = gamma**HORIZON / (1 - gamma) - ratio**HORIZON / (1 - ratio)
    return first_terms + remainder, bounds.discounted_mismatch_bound(epsilon, gamma) / (1 - gamma)


@IMPROVEMENT.at_most("worst gain", "C = max_s |E_{a∼π'} A^π(s, a)| ≤ 2 ε max|A^π|")
def worst_gain_bound(p: Problem) -> Sides:
    largest = jnp.max(jnp.abs(p.advantages))
    return p.worst_gain, bounds.worst_gain_bound(_epsilon(p), largest)


@IMPROVEMENT.at_most("guarantee", "|J(π') − J(π) − Ā(π')| ≤ 2 C Σ_t γᵗ (1 − (1 − ε)ᵗ)")
def guaranteed_improvement(p: Problem) -> Sides:
    gap, worst = _gap(p), p.worst_gain
    return gap, -bounds.improvement_bound(0.0, worst, _epsilon(p), p.mdp.gamma)


@IMPROVEMENT.at_most("guarantee, linear", "|J(π') − J(π) − Ā(π')| ≤ 2 C ε γ/(1 − γ)²")
def guaranteed_improvement_linear(p: Problem) -> Sides:
    gap, worst = _gap(p), p.worst_gain
    return gap, -bounds.linear_improvement_bound(0.0, worst, _epsilon(p), p.mdp.gamma)


@IMPROVEMENT.at_most("guarantee without C", "|J(π') − J(π) − Ā(π')| ≤ 4 ε max|A^π| Σ_t γᵗ (1 − (1 − ε)ᵗ)")
def guaranteed_improvement_without_worst_gain(p: Problem) -> Sides:
    estimate = bounds.worst_gain_bound(_epsilon(p), jnp.max(jnp.abs(p.advantages)))
    return _gap(p), -bounds.improvement_bound(0.0, estimate, _epsilon(p), p.mdp.gamma)


@IMPROVEMENT.at_most("guarantee on average", "|J(π') − J(π) − Ā(π')| ≤ (2γC/(1 − γ)) Σ_t γᵗ E_{s∼p_t}[TV]")
def guaranteed_improvement_average(p: Problem) -> Sides:
    summed = p.occupancy @ state_variation(p.pi, p.new)
    worst = p.worst_gain
    return _gap(p), -bounds.average_improvement_bound(0.0, worst, summed, p.mdp.gamma)


@IMPROVEMENT.at_most("Pinsker", "TV ≤ √(KL/2), either direction of KL, every state")
def pinsker(p: Problem) -> Sides:
    variation, *kls = _divergences(p)
    return jnp.stack([variation, variation]), jnp.sqrt(jnp.stack(kls) / 2)


@IMPROVEMENT.at_most("Bretagnolle-Huber", "TV ≤ √(1 − e^{−KL}), either direction")
def bretagnolle_huber(p: Problem) -> Sides:
    variation, *kls = _divergences(p)
    return jnp.stack([variation, variation]), jnp.sqrt(-jnp.expm1(-jnp.stack(kls)))


@IMPROVEMENT.at_most("smaller of both", "TV ≤ the smaller of the two bounds, which is reported")
def pinsker_and_bretagnolle_huber(p: Problem) -> Sides:
    variation, *kls = _divergences(p)
    return jnp.stack([variation, variation]), total_variation_bound(jnp.stack(kls))


@IMPROVEMENT.at_most("mixture", "J(π) + α/(1 − γ) (𝔸 − 2αγC/(1 − γ(1 − α))) ≤ J((1 − α)π + απ')", needs_discount=True)
def mixture_improvement(p: Problem) -> Sides:
    mean, worst = _mean_and_worst(p)
    alphas = jnp.array(ALPHAS)
    mixed = jnp.stack([p.mdp.objective((1 - a) * p.pi + a * p.new) for a in ALPHAS])
    return p.objective + bounds.mixture_bound(mean, worst, alphas, p.mdp.gamma), mixed


@IMPROVEMENT.at_most(
    "conservative step", "no other α has a higher bound than conservative policy iteration's", needs_discount=True
)
def conservative_step_maximises_bound(p: Problem) -> Sides:
    mean, worst = _mean_and_worst(p)
    best = bounds.mixture_bound(mean, worst, _conservative(p), p.mdp.gamma)
    others = bounds.mixture_bound(mean, worst, jnp.linspace(0, 1, 201), p.mdp.gamma)
    return others, jnp.broadcast_to(best, others.shape)


@IMPROVEMENT.at_most("conservative improvement", "J(π) ≤ J after the conservative step", needs_discount=True)
def conservative_step_improves(p: Problem) -> Sides:
    alpha = _conservative(p)
    return p.objective, p.mdp.objective((1 - alpha) * p.pi + alpha * p.new)


def _gap(p: Problem) -> Float[Array, ""]:
    """|J(π') − J(π) − Ā(π')| by the performance difference lemma, which avoids a difference of large numbers."""
    visits = p.new_occupancy - p.occupancy
    return jnp.abs(visits @ p.gains)


def _epsilon(p: Problem) -> Float[Array, ""]:
    """ε = max_s TV(π'(·|s), π(·|s))."""
    return jnp.max(state_variation(p.pi, p.new))


def _marginal_variation(p: Problem) -> Float[Array, " H"]:
    """TV(p_π'^t, p_π^t) for every t."""
    old, new = (p.mdp.state_marginals(pi, HORIZON)[1:] for pi in (p.pi, p.new))
    return 0.5 * jnp.sum(jnp.abs(new - old), axis=1)


def _discounted_variation(p: Problem) -> Float[Array, ""]:
    """TV(d^π', d^π)."""
    return 0.5 * jnp.sum(jnp.abs(p.new_states - p.states))


def _divergences(p: Problem) -> tuple[Array, Array, Array]:
    """TV, KL(π‖π') and KL(π'‖π), state by state."""
    old, new = Categorical(logits=p.logits), Categorical(logits=p.new_logits)
    variation = total_variation(old, new)
    assert not isinstance(variation, tuple)
    return variation, kl_divergence(old, new), kl_divergence(new, old)


def _mean_and_worst(p: Problem) -> tuple[Array, Array]:
    """𝔸 and C."""
    gain = p.gains
    return p.states @ gain, p.worst_gain


def _conservative(p: Problem) -> Array:
    """The α of conservative policy iteration."""
    mean, worst = _mean_and_worst(p)
    # At γ = 0 the state distribution can't shift: a whole improving step is safe.
    gamma = jnp.maximum(p.mdp.gamma, 1e-9)
    return bounds.conservative_step(mean, worst, gamma)
