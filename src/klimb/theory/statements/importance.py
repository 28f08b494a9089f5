"""§2: off-policy gradients with every kind of importance weight, over all trajectories of another policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate.importance import (
    Weighting,
    effective_sample_size,
    log_weights,
    per_decision_advantages,
    per_decision_weights,
    trajectory_weights,
)
from klimb.estimate.returns import rewards_to_go
from klimb.theory.statements.objective import gradient_of_short_objective, score_sum
from klimb.theory.statements.statement import Problem, Section, Sides
from klimb.types import Mixture, Residuals

IMPORTANCE = Section("2")


@IMPORTANCE.equal("trajectory weights", "E_β[Π_t π/β] = 1")
def trajectory_weights_average_one(p: Problem) -> Sides:
    return _behaviour(p) @ trajectory_weights(_log_ratio(p)), jnp.ones(())


@IMPORTANCE.equal("per-decision weights", "E_β[Π_{t' ≤ t} π/β] = 1 for every t")
def per_decision_weights_average_one(p: Problem) -> Sides:
    return per_decision_weights(_log_ratio(p)) @ _behaviour(p), jnp.ones(p.trajectories.horizon)


@IMPORTANCE.equal("trajectory gradient", "∇J = E_β[Π_t (π/β) Σ_t γᵗ ∇log π Σ_{t' ≥ t} γ^{t'−t} r_{t'}]")
def trajectory_weighted_gradient(p: Problem) -> Sides:
    return _weighted_gradient(p, "trajectory"), gradient_of_short_objective(p)


@IMPORTANCE.equal("per-decision gradient", "∇J, each reward weighted by the decisions up to it")
def per_decision_weighted_gradient(p: Problem) -> Sides:
    return _weighted_gradient(p, "per_decision"), gradient_of_short_objective(p)


@IMPORTANCE.equal("mixture, trajectory", "∇J with the mixture of whole trajectories in the denominator")
def trajectory_mixture_gradient(p: Problem) -> Sides:
    return _weighted_gradient(p, "trajectory", mixture=True), gradient_of_short_objective(p)


@IMPORTANCE.equal("mixture, per decision", "the same for per-decision weights")
def per_decision_mixture_gradient(p: Problem) -> Sides:
    return _weighted_gradient(p, "per_decision", mixture=True), gradient_of_short_objective(p)


@IMPORTANCE.equal("per-step gradient", "E_β[Σ_t γᵗ (π/β)(a_t|s_t) ∇log π A^π] = the gradient at β's states: biased")
def per_step_gradient_at_behaviour_states(p: Problem) -> Sides:
    paths = p.trajectories
    discount = p.mdp.gamma ** jnp.arange(paths.horizon)
    advantage = p.advantages
    weight = _behaviour(p) * jnp.exp(_log_ratio(p)) * discount[:, None] * advantage[paths.state, paths.action]
    marginals = p.mdp.state_marginals(_other(p), paths.horizon)

    def at_behaviour_states(logits: Array) -> Array:
        expected = jnp.sum(jax.nn.softmax(logits) * advantage, axis=1)
        return discount @ marginals @ expected

    return score_sum(p, weight), jax.grad(at_behaviour_states)(p.logits).ravel()


@IMPORTANCE.equal("per-step gradient, exact", "∇J = E_β[Σ_t γᵗ (p_π^t/p_β^t)(s_t) (π/β)(a_t|s_t) ∇log π A_t^π]")
def per_step_gradient_with_state_ratio(p: Problem) -> Sides:
    paths = p.trajectories
    time = jnp.arange(paths.horizon)[:, None]
    target, behaviour = (p.mdp.state_marginals(pi, paths.horizon) for pi in (p.pi, _other(p)))
    # β chooses every action that π does, so that it reaches every state that π does.
    ratio = jnp.where(behaviour > 0, target / jnp.where(behaviour > 0, behaviour, 1), 0)
    advantage = p.remaining_advantages[time, paths.state, paths.action]
    weight = ratio[time, paths.state] * jnp.exp(_log_ratio(p)) * p.mdp.gamma**time
    return score_sum(p, _behaviour(p) * weight * advantage), gradient_of_short_objective(p)


@IMPORTANCE.equal("effective sample size", "(E_β w)²/E_β w² = 1/(1 + χ²(p_π‖p_β))")
def effective_sample_size_from_chi_square(p: Problem) -> Sides:
    behaviour, target = _behaviour(p), p.trajectories.probability(p.pi)
    chi_square = jnp.sum(jnp.where(behaviour > 0, jnp.square(target) / jnp.where(behaviour > 0, behaviour, 1), 0)) - 1
    return effective_sample_size(trajectory_weights(_log_ratio(p)), behaviour), 1 / (1 + chi_square)


@IMPORTANCE.at_most("effective sample size at most 1", "(E_β w)²/E_β w² ≤ 1")
def effective_sample_size_at_most_one(p: Problem) -> Sides:
    return effective_sample_size(trajectory_weights(_log_ratio(p)), _behaviour(p)), jnp.ones(())


@IMPORTANCE.at_most("truncated weights", "E_β[min(w, c)] ≤ E_β[w] = 1: truncation lowers the mean weight")
def truncated_weights_average_below_one(p: Problem) -> Sides:
    weight = trajectory_weights(_log_ratio(p))
    truncated_mean = jnp.stack([_behaviour(p) @ jnp.minimum(weight, c) for c in (0.5, 1.0, 2.0)])
    return truncated_mean, jnp.ones(3)


def _other(p: Problem) -> Float[Array, "S A"]:
    """β: half the policy, half the uniform distribution, so that every action has positive probability."""
    return 0.5 * p.pi + 0.5 / p.mdp.num_actions


def _third(p: Problem) -> Float[Array, "S A"]:
    """Another behaviour policy: half the new policy, half the uniform distribution."""
    return 0.5 * p.new + 0.5 / p.mdp.num_actions


def _behaviour(p: Problem) -> Float[Array, " N"]:
    """p_β(τ)."""
    return p.trajectories.probability(_other(p))


def _log_ratio(p: Problem) -> Float[Array, "T N"]:
    return p.trajectories.log_prob(p.pi) - p.trajectories.log_prob(_other(p))


def _weighted_gradient(p: Problem, weighting: Weighting, *, mixture: bool = False) -> Array:
    """E_β[Σ_t γᵗ w_t ∇log π Â_t], with the library's weights; β one policy, or two in the ratio 3 : 7."""
    paths, rollout, gamma = p.trajectories, p.rollout, p.mdp.gamma
    tables = [_other(p), _third(p)] if mixture else [_other(p)]
    share = jnp.array([0.3, 0.7]) if mixture else jnp.ones(1)
    behaviour = Mixture(jnp.stack([paths.log_prob(table) for table in tables]), jnp.log(share))
    probability = share @ jnp.stack([paths.probability(table) for table in tables])
    ended = rollout.terminated
    log_weight = log_weights(weighting, paths.log_prob(p.pi), behaviour, ended)
    discount = gamma ** jnp.arange(paths.horizon)[:, None]
    if weighting == "per_decision":
        decay = jnp.where(ended, 0, gamma)
        advantage = per_decision_advantages(
            log_weight,
            Residuals(rollout.reward, decay, jnp.broadcast_to(discount, ended.shape)),
            ended,
            largest_ratio=None,
        )
    else:
        advantage = rewards_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma=gamma)
    weight = jnp.where(probability > 0, jnp.exp(log_weight), 0)
    return score_sum(p, probability * discount * weight * advantage)
