"""§1: the objective, its gradient, and the choices of Â that do not change the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate.advantages import AdvantageKind, estimate_advantages
from klimb.improve.objectives import log_likelihood, surrogate_gain
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.theory.statements.statement import Problem, Section, Sides

OBJECTIVE = Section("1")


@OBJECTIVE.equal("objective", "J = ρ·V = Σ_s Σ_t γᵗ p(s_t = s) r_π(s)")
def objective_from_occupancy(p: Problem) -> Sides:
    reward = jnp.sum(p.pi * p.mdp.reward, axis=1)
    return p.mdp.objective(p.pi), p.occupancy @ reward


@OBJECTIVE.equal("trajectories", "Σ_τ p(τ) = 1 and Σ_τ p(τ) Σ_t γᵗ r_t = Σ_t γᵗ E_{p_t}[r_π]")
def trajectory_expectations(p: Problem) -> Sides:
    probability = p.trajectories.probability(p.pi)
    returns = jnp.sum(_discount(p)[:, None] * p.rollout.reward, axis=0)
    left = jnp.stack([jnp.sum(probability), probability @ returns])
    return left, jnp.stack([jnp.ones(()), short_objective(p, p.logits)])


@OBJECTIVE.equal("policy gradient", "∇J = Σ_t γᵗ E[∇log π(a_t|s_t) A^π(s_t, a_t)]")
def policy_gradient_theorem(p: Problem) -> Sides:
    return p.slope.ravel(), p.gradient


@OBJECTIVE.equal("weighted likelihood", "∇ mean log π_θ Â = ∇ mean (π_θ/π) Â at θ")
def weighted_likelihood_gradient(p: Problem) -> Sides:
    batch = p.batch
    theta, rebuild = flatten(p.old)
    likelihood = jax.grad(lambda v: log_likelihood(rebuild(v), batch))(theta)
    return likelihood, jax.grad(lambda v: surrogate_gain(action_distribution(rebuild(v), batch.obs), batch))(theta)


@OBJECTIVE.equal("total return", "∇J = E[Σ_t ∇log π(a_t|s_t) Σ_{t'} γ^{t'} r_{t'}]")
def total_return_gradient(p: Problem) -> Sides:
    return _gradient_with(p, "total_return"), gradient_of_short_objective(p)


@OBJECTIVE.equal("reward to go", "∇J = E[Σ_t γᵗ ∇log π(a_t|s_t) Σ_{t' ≥ t} γ^{t'−t} r_{t'}]: t' = t … T")
def reward_to_go_gradient(p: Problem) -> Sides:
    return _gradient_with(p, "reward_to_go"), gradient_of_short_objective(p)


@OBJECTIVE.equal("constant baseline", "subtracting a constant from Â does not change ∇J")
def constant_baseline_unbiased(p: Problem) -> Sides:
    average = _average_return(p)
    return _gradient_with(p, "reward_to_go", baseline=average), gradient_of_short_objective(p)


@OBJECTIVE.equal("value baseline", "subtracting V(s_t) from Â does not change ∇J")
def value_baseline_unbiased(p: Problem) -> Sides:
    return _gradient_with(p, "value_baseline"), gradient_of_short_objective(p)


@OBJECTIVE.at_most("best constant baseline", "subtracting it does not raise the variance of ∇log p(τ) (R(τ) − b)")
def best_baseline_reduces_variance(p: Problem) -> Sides:
    probability = p.trajectories.probability(p.pi)
    returns = jnp.sum(_discount(p)[:, None] * p.rollout.reward, axis=0)
    square = jnp.sum(jnp.square(_scores(p)), axis=1)
    mean_square = probability @ square
    baseline = (probability @ (square * returns)) / jnp.where(mean_square > 0, mean_square, 1)
    # The mean is the same with and without a baseline, so comparing second moments compares variances.
    return probability @ (square * jnp.square(returns - baseline)), probability @ (square * jnp.square(returns))


@OBJECTIVE.equal("GAE", "with the exact V, E[Σ_t γᵗ ∇log π Â^GAE(γ,λ)] = E[Σ_t γᵗ ∇log π A^π] for every λ")
def gae_unbiased_for_every_lambda(p: Problem) -> Sides:
    lambdas = (0.0, 0.5, 0.95, 1.0)
    return jnp.stack([_bootstrapped(p, "gae", gae_lambda=x) for x in lambdas]), _with_advantage(p)[None]


@OBJECTIVE.equal("n-step", "with the exact V, the same for n rewards followed by V")
def n_step_unbiased(p: Problem) -> Sides:
    return jnp.stack([_bootstrapped(p, "n_step", n_step=n) for n in (1, 2)]), _with_advantage(p)[None]


def short_objective(p: Problem, logits: Float[Array, "S A"]) -> Float[Array, ""]:
    """J over the trajectories' horizon: Σ_{t<T} γᵗ E_{p_t}[r_π].

    p: the problem. logits: of the policy.
    """
    pi = jax.nn.softmax(logits)
    marginals = p.mdp.state_marginals(pi, p.trajectories.horizon)
    return _discount(p) @ marginals @ jnp.sum(pi * p.mdp.reward, axis=1)


def score_sum(p: Problem, weight: Float[Array, "T N"]) -> Float[Array, " P"]:
    """Σ_τ Σ_t weight ∇log π(a_t|s_t), flat.

    p: the problem. weight: of each step, which contains the probability of τ.
    """

    def weighted(logits: Array) -> Array:
        log_prob = jax.nn.log_softmax(logits)[p.trajectories.state, p.trajectories.action]
        return jnp.sum(jnp.where(weight != 0, weight * log_prob, 0))

    return jax.grad(weighted)(p.logits).ravel()


def _discount(p: Problem) -> Float[Array, " T"]:
    return p.mdp.gamma ** jnp.arange(p.trajectories.horizon)


def gradient_of_short_objective(p: Problem) -> Array:
    """The gradient of `short_objective` in the old policy's logits, flat. p: the problem."""
    return jax.grad(lambda logits: short_objective(p, logits))(p.logits).ravel()


def _gradient_with(p: Problem, kind: AdvantageKind, *, baseline: Array | float = 0.0) -> Array:
    """E_τ[Σ_t γᵗ ∇log π Â_t] over whole trajectories that end after T steps."""
    rollout = p.rollout
    value = p.values
    estimate = estimate_advantages(
        kind,
        rollout,
        value[rollout.obs],
        value[rollout.next_obs],
        gamma=p.mdp.gamma,
        gae_lambda=1.0,
        n_step=1,
    )
    # The total return is discounted from the episode's start already.
    leading = jnp.ones(()) if kind == "total_return" else _discount(p)[:, None]
    return score_sum(p, p.trajectories.probability(p.pi) * leading * (estimate.advantage - baseline))


def _bootstrapped(p: Problem, kind: AdvantageKind, *, gae_lambda: float = 1.0, n_step: int = 1) -> Array:
    """The same over trajectories that are truncated after T steps, with the exact value of what follows."""
    rollout = p.rollout
    value = p.values
    estimate = estimate_advantages(
        kind,
        type(rollout)(**{**vars(rollout), "terminated": rollout.truncated, "truncated": rollout.terminated}),
        value[rollout.obs],
        value[rollout.next_obs],
        gamma=p.mdp.gamma,
        gae_lambda=gae_lambda,
        n_step=n_step,
    )
    return score_sum(p, p.trajectories.probability(p.pi) * _discount(p)[:, None] * estimate.advantage)


def _with_advantage(p: Problem) -> Array:
    """E_τ[Σ_t γᵗ ∇log π A^π] over T steps."""
    advantage = p.advantages[p.trajectories.state, p.trajectories.action]
    return score_sum(p, p.trajectories.probability(p.pi) * _discount(p)[:, None] * advantage)


def _average_return(p: Problem) -> Array:
    return p.trajectories.probability(p.pi) @ jnp.mean(p.rollout.reward, axis=0)


def _scores(p: Problem) -> Float[Array, "N P"]:
    """∇log p(τ), trajectory by trajectory: Σ_t (e_{s,a} − π(·|s_t))."""
    paths, (num_states, num_actions) = p.trajectories, p.logits.shape
    taken = jax.nn.one_hot(paths.action, num_actions) - p.pi[paths.state]
    scores = jnp.zeros((paths.state.shape[1], num_states, num_actions))
    column = jnp.broadcast_to(jnp.arange(paths.state.shape[1]), paths.state.shape)
    return scores.at[column, paths.state].add(taken).reshape(len(scores), -1)
