"""§3, continued: where the states of two policies part, step by step, and the constants of the guarantees."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate import bounds
from klimb.theory.mistakes import mistake_probability, mistaken_marginals
from klimb.theory.statements.statement import Problem, Section, Sides
from klimb.theory.surrogate import gains, state_variation

MISMATCH = Section("3")
HORIZON = 50
SHARE = 0.2
"""Of the new policy, in a mixture with a deterministic one: how often the mixture may make a mistake."""


@MISMATCH.equal("mistakes, deterministic π", "p_π'^t = (1 − ε)ᵗ p_π^t + (1 − (1 − ε)ᵗ) p_mistake^t, ε = max_s TV")
def decomposition_of_deterministic_policy(p: Problem) -> Sides:
    pi, new = _deterministic(p)
    epsilon = jnp.max(state_variation(pi, new))
    return _both_sides(p, pi, new, epsilon)


@MISMATCH.at_most("p_mistake, deterministic π", "0 ≤ p_mistake^t: it is a distribution, with ε = max_s TV")
def mistakes_of_deterministic_policy(p: Problem) -> Sides:
    pi, new = _deterministic(p)
    epsilon = jnp.max(state_variation(pi, new))
    return jnp.zeros(()), _by_difference(p, pi, new, epsilon)


@MISMATCH.at_most("p_mistake, any π", "0 ≤ p_mistake^t if π' ≥ (1 − ε) π everywhere; TV ≤ ε does not suffice")
def mistakes_of_any_policy(p: Problem) -> Sides:
    return jnp.zeros(()), _by_difference(p, p.pi, p.new, mistake_probability(p.pi, p.new))


@MISMATCH.at_most("average mismatch, each t", "TV(p_π'^t, p_π^t) ≤ Σ_{i<t} E_{s∼p_π^i}[TV] for every t")
def average_mismatch_at_each_time(p: Problem) -> Sides:
    old, new = (p.mdp.state_marginals(pi, HORIZON) for pi in (p.pi, p.new))
    bound = bounds.summed_mismatch_bound(old @ state_variation(p.pi, p.new))
    return 0.5 * jnp.sum(jnp.abs(new - old), axis=1), bound


@MISMATCH.at_most("constant from rewards", "C ≤ max|A^π| ≤ (max r − min r)/(1 − γ)")
def worst_gain_from_rewards(p: Problem) -> Sides:
    largest = jnp.max(jnp.abs(p.advantages))
    right = jnp.stack([largest, bounds.advantage_bound(_reward_spread(p), p.mdp.gamma)])
    return jnp.stack([p.worst_gain, largest]), right


@MISMATCH.at_most("constant of episodes", "the same in episodes of H steps: C ≤ max|A^π_t| ≤ H (max r − min r)")
def worst_gain_of_episodes(p: Problem) -> Sides:
    advantage = p.remaining_advantages
    left = jnp.max(jnp.abs(jnp.einsum("sa,tsa->ts", p.new - p.pi, advantage)))
    largest = jnp.max(jnp.abs(advantage))
    right = jnp.stack([largest, bounds.episodic_advantage_bound(_reward_spread(p), len(advantage))])
    return jnp.stack([left, largest]), right


@MISMATCH.at_most(
    "guarantee from rewards", "|J(π') − J(π) − Ā(π')| ≤ 2 (max r − min r)/(1 − γ) Σ_t γᵗ ε t", needs_discount=True
)
def guaranteed_improvement_from_rewards(p: Problem) -> Sides:
    gap = jnp.abs((p.new_occupancy - p.occupancy) @ gains(p.mdp, p.pi, p.new))
    epsilon = jnp.max(state_variation(p.pi, p.new))
    worst = bounds.advantage_bound(_reward_spread(p), p.mdp.gamma)
    return gap, -bounds.linear_improvement_bound(0.0, worst, epsilon, p.mdp.gamma)


def _deterministic(p: Problem) -> tuple[Array, Array]:
    """The old policy's most likely actions, and a policy whose mistakes are rarer in some states than in others."""
    best = jnp.argmax(p.pi, axis=1, keepdims=True) == jnp.arange(p.mdp.num_actions)
    pi = best.astype(p.pi.dtype)
    return pi, (1 - SHARE) * pi + SHARE * p.new


def _both_sides(p: Problem, pi: Array, new: Array, epsilon: Array) -> Sides:
    """The states of π', and their sum of two parts, of which one is added up mistake by mistake."""
    kept = (1 - epsilon) ** jnp.arange(HORIZON)[:, None]
    mistaken = mistaken_marginals(p.mdp, pi, new, epsilon, HORIZON)
    return p.mdp.state_marginals(new, HORIZON), kept * p.mdp.state_marginals(pi, HORIZON) + mistaken


def _by_difference(p: Problem, pi: Array, new: Array, epsilon: Array) -> Float[Array, "H S"]:
    """(1 − (1 − ε)ᵗ) p_mistake^t as the printed equation defines it."""
    kept = (1 - epsilon) ** jnp.arange(HORIZON)[:, None]
    return p.mdp.state_marginals(new, HORIZON) - kept * p.mdp.state_marginals(pi, HORIZON)


def _reward_spread(p: Problem) -> Float[Array, ""]:
    return jnp.max(p.mdp.reward) - jnp.min(p.mdp.reward)
