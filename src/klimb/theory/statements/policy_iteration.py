"""§6: the penalised optimum π e^{A/λ}/Z between policy iteration (λ → 0) and a gradient step (λ → ∞)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.improve.natural_direction import Direction, Solve
from klimb.theory.exact_soft_improvement import (
    first_order_error_bound,
    first_order_improvement,
    greedy_distance_bound,
    greedy_improvement,
    soft_improvement,
)
from klimb.theory.statements.constrained import EPSILON
from klimb.theory.statements.statement import Problem, Section, Sides
from klimb.theory.surrogate import gains, state_variation

POLICY_ITERATION = Section("6")
MULTIPLIERS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""In units of max|A^π|."""


@POLICY_ITERATION.at_most("greedy limit", "TV(π_λ, greedy) ≤ ((1 − π*)/π*) e^{−gap/λ}, π_λ = π e^{A/λ}/Z, every state")
def greedy_limit(p: Problem) -> Sides:
    greedy = greedy_improvement(p.pi, p.advantages)
    left = [state_variation(policy, greedy) for policy in _soft(p)]
    right = [greedy_distance_bound(p.pi, p.advantages, multiplier) for multiplier in _multipliers(p)]
    return jnp.stack(left), jnp.stack(right)


@POLICY_ITERATION.at_most("soft improvement", "V^π ≤ V^{π_λ} in every state, for every λ > 0 and for the greedy policy")
def soft_policies_improve(p: Problem) -> Sides:
    policies = [greedy_improvement(p.pi, p.advantages), *_soft(p)]
    return p.values, jnp.stack([p.mdp.state_values(policy) for policy in policies])


@POLICY_ITERATION.at_most("softer is slower", "E_{π_λ}[A^π] falls with λ, from max_a A^π to 0, every state")
def gain_falls_with_the_multiplier(p: Problem) -> Sides:
    greedy = greedy_improvement(p.pi, p.advantages)
    gain = jnp.stack([gains(p.mdp, p.pi, policy) for policy in (greedy, *_soft(p))])
    return jnp.concatenate([gain[1:], jnp.zeros_like(gain[:1])]), gain


@POLICY_ITERATION.at_most("gradient limit", "½ Σ_a |π_λ − π (1 + A/λ)| ≤ ¼ (w/λ)² e^{w/λ}, w = max_a A − min_a A")
def gradient_limit(p: Problem) -> Sides:
    left, right = [], []
    for multiplier, policy in zip(_multipliers(p), _soft(p), strict=True):
        left.append(state_variation(first_order_improvement(p.pi, p.advantages, multiplier), policy))
        right.append(first_order_error_bound(p.pi, p.advantages, multiplier))
    return jnp.stack(left), jnp.stack(right)


@POLICY_ITERATION.equal("natural direction", "F A^π = (1 − γ) ∇J: π_λ is the natural step θ + A/λ of a softmax table")
def natural_direction_is_the_advantage(p: Problem) -> Sides:
    return p.fisher @ p.advantages.ravel(), p.gradient / jnp.sum(p.occupancy)


@POLICY_ITERATION.equal("natural multiplier", "α = 1/λ: the largest gᵀδ under ½ δᵀFδ ≤ ε grows by λ = 1/α per ε")
def multiplier_of_the_natural_step(p: Problem) -> Sides:
    gradient, x = p.gradient / jnp.sum(p.occupancy), p.advantages.ravel()
    # F x = g without a solve, by "natural direction".
    solve = Solve(x, jnp.int32(0), jnp.bool_(False))
    natural = Direction.of(gradient, solve, lambda v: p.fisher @ v, damping=0.0)
    return _price(gradient, natural, natural.step_size), _inverse(natural.step_size(EPSILON))


@POLICY_ITERATION.equal("plain multiplier", "α = 1/(2λ): the largest gᵀδ under ‖δ‖² ≤ ε grows by λ = 1/(2α) per ε")
def multiplier_of_the_plain_step(p: Problem) -> Sides:
    gradient = p.gradient / jnp.sum(p.occupancy)
    plain = Direction.plain(gradient)

    def step_size(epsilon: Array | float) -> Float[Array, ""]:
        """√(ε/‖g‖²): a step of squared length ε is one of ½ ‖δ‖² = ε/2."""
        return plain.step_size(epsilon / 2)

    return _price(gradient, plain, step_size), _inverse(2 * step_size(EPSILON))


def _multipliers(p: Problem) -> list[Array]:
    """λ, in units of reward; in units of 1 where all advantages are 0."""
    largest = jnp.max(jnp.abs(p.advantages))
    return [multiplier * jnp.where(largest > 0, largest, 1) for multiplier in MULTIPLIERS]


def _soft(p: Problem) -> list[Array]:
    """π_λ for every λ."""
    return [soft_improvement(p.pi, p.advantages, multiplier) for multiplier in _multipliers(p)]


def _price(gradient: Array, direction: Direction, step_size: Callable[[Array], Array]) -> Float[Array, ""]:
    """d/dε of the gain gᵀδ of the longest step δ: the multiplier of the constraint, by the envelope theorem."""
    return jax.grad(lambda epsilon: step_size(epsilon) * (gradient @ direction.x))(jnp.asarray(EPSILON))


def _inverse(x: Array) -> Array:
    """1/x, and 0 where no step is taken at all."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)
