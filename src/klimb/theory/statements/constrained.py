"""§5: the constrained surrogate: its dual, the natural and the plain gradient step, the steps of TRPO and PPO."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.improve.divergences import kl_divergence
from klimb.improve.dual import adapt, dual_ascent
from klimb.improve.fisher import fisher_rows
from klimb.improve.natural_direction import Direction, conjugate_gradient, dense, woodbury
from klimb.improve.rules.trpo import TRPO
from klimb.policies.distributions import Categorical
from klimb.theory.statements.statement import Problem, Section, Sides
from klimb.theory.surrogate import gains, state_variation

CONSTRAINED = Section("5")
EPSILON = 0.01
MULTIPLIERS = (0.1, 1.0, 10.0)


@CONSTRAINED.at_most("weak duality", "Ā(π') − λ KL(π'‖π) ≤ λ log E_π[e^{A/λ}], mean over d^π, every λ > 0")
def weak_duality(p: Problem) -> Sides:
    states = p.states
    gain = states @ p.gains
    kl = states @ kl_divergence(Categorical(logits=p.new_logits), Categorical(logits=p.logits))
    return gain - jnp.array(MULTIPLIERS) * kl, jnp.stack([_dual(p, multiplier) for multiplier in MULTIPLIERS])


@CONSTRAINED.equal("penalised optimum", "weak duality holds with equality for π* ∝ π e^{A/λ}")
def penalised_optimum(p: Problem) -> Sides:
    gain, kl = _penalised_optima(p)
    return gain - jnp.array(MULTIPLIERS) * kl, jnp.stack([_dual(p, multiplier) for multiplier in MULTIPLIERS])


@CONSTRAINED.equal("strong duality", "Ā(π*) = min_λ λε + λ log E_π[e^{A/λ}] at ε = KL(π*‖π): the slope D − ε is 0")
def strong_duality(p: Problem) -> Sides:
    _, kl = _penalised_optima(p)
    slope = jax.grad(lambda multiplier: _dual(p, multiplier))
    return kl, -jnp.stack([slope(jnp.asarray(multiplier)) for multiplier in MULTIPLIERS])


@CONSTRAINED.equal("complementary slackness", "λ ← max(0, λ + α (D − ε)) does not change λ where λ (D − ε) = 0")
def complementary_slackness(p: Problem) -> Sides:
    multiplier, violation = jnp.array([0.0, 0.0, 2.0]), jnp.array([-1.0, 0.0, 0.0])
    updated = [
        dual_ascent(multiplier[i], violation[i], learning_rate=20.0, log_space=False, largest=1e4) for i in range(3)
    ]
    return jnp.stack([*updated, *(multiplier * violation)]), jnp.concatenate([multiplier, jnp.zeros(3)])


@CONSTRAINED.at_most("total variation constraint", "Ā(π') ≤ E_{d^π}[TV · (max_a A − min_a A)]")
def total_variation_constraint(p: Problem) -> Sides:
    states, advantage = p.states, p.advantages
    spread = jnp.max(advantage, axis=1) - jnp.min(advantage, axis=1)
    gain = states @ p.gains
    return gain, states @ (state_variation(p.pi, p.new) * spread)


@CONSTRAINED.equal("natural step", "α = √(2ε/(gᵀF⁻¹g)) makes ½ δᵀFδ = ε")
def natural_step_kl(p: Problem) -> Sides:
    return _step_kl(p, damping=0.0), _target_kl(p)


@CONSTRAINED.equal("damped step", "the same for x = (F + ηI)⁻¹ g with α = √(2ε/(xᵀFx)), without η in α")
def damped_step_kl(p: Problem) -> Sides:
    return _step_kl(p, damping=0.1), _target_kl(p)


@CONSTRAINED.at_most("steepest in KL", "no δ with ½ δᵀFδ = ε has a larger gᵀδ than the natural step")
def natural_step_is_steepest(p: Problem) -> Sides:
    gradient, fisher, natural = _natural(p, damping=0.0)
    best = natural.step_size(EPSILON) * gradient @ natural.x
    others = [p.direction.ravel(), (p.new_logits - p.logits).ravel(), gradient]
    slope = jnp.stack([gradient @ other for other in others])
    curvature = jnp.stack([other @ fisher @ other for other in others])
    curved = curvature > 1e-12 * jnp.max(jnp.abs(fisher), initial=1e-300)
    length = jnp.where(curved, jnp.sqrt(2 * EPSILON / jnp.where(curved, curvature, 1)), 0)
    return length * slope, jnp.broadcast_to(best, (3,))


@CONSTRAINED.equal("plain step", "α = √(ε/‖g‖²) makes ‖δ‖² = ε: the same problem with the wrong constraint")
def plain_step_length(p: Problem) -> Sides:
    gradient = p.gradient
    square = gradient @ gradient
    nonzero = square > 0
    step = jnp.where(nonzero, jnp.sqrt(EPSILON / jnp.where(nonzero, square, 1)), 0) * gradient
    return step @ step, jnp.where(nonzero, EPSILON, 0)


@CONSTRAINED.equal("three solvers", "(F + ηI)⁻¹ g is the same by conjugate gradient, in sample space and dense")
def solvers_agree(p: Problem) -> Sides:
    # One row per state: `fisher_rows` takes the expectation over actions itself.
    states = p.batch.take(jnp.arange(0, p.logits.size, p.mdp.num_actions))
    states = eqx.tree_at(lambda batch: batch.weight, states, p.states)
    gradient = _ascent(p)
    rows = fisher_rows(p.old, states, "exact")
    exact = dense(rows, gradient, damping=0.1).x
    iterated = conjugate_gradient(
        lambda v: rows.T @ (rows @ v) + 0.1 * v, gradient, iterations=4 * gradient.size, tolerance=1e-13
    )
    return jnp.stack([iterated.x, woodbury(rows, gradient, damping=0.1).x]), jnp.stack([exact, exact])


@CONSTRAINED.at_most("TRPO's step", "KL(π‖π') ≤ ε and Ā(π') ≥ 0, measured on the policy returned")
def trpo_step(p: Problem) -> Sides:
    stepped, _, info = TRPO(max_kl=EPSILON).step(jax.random.key(0), p.old, (), p.batch)
    states = p.states
    kl = states @ kl_divergence(Categorical(logits=p.logits), Categorical(logits=stepped.logits))
    gain = states @ gains(p.mdp, p.pi, jax.nn.softmax(stepped.logits))
    return jnp.stack([kl, jnp.zeros(()), info.kl_old_new]), jnp.stack([jnp.asarray(EPSILON), gain, kl])


@CONSTRAINED.equal("zero advantage", "with zero advantage TRPO returns the old parameters, bit for bit")
def trpo_without_signal(p: Problem) -> Sides:
    batch = p.batch
    without_signal = type(batch)(**{**vars(batch), "advantage": jnp.zeros_like(batch.advantage)})
    stepped, _, _ = TRPO().step(jax.random.key(0), p.old, (), without_signal)
    return stepped.logits, p.logits


@CONSTRAINED.at_most("PPO's clip", "min(ρA, clip(ρ, 1 ± c) A) ≤ ρA: never above the surrogate")
def ppo_clip_is_lower_bound(p: Problem) -> Sides:
    advantage = p.advantages
    ratio = jnp.where(p.pi > 0, p.new / jnp.where(p.pi > 0, p.pi, 1), 1)
    clipped = jnp.clip(ratio, 0.8, 1.2)
    return jnp.minimum(ratio * advantage, clipped * advantage), ratio * advantage


@CONSTRAINED.equal("PPO's penalty", "λ doubles for D > 1.5 ε, halves for D < ε/1.5, and otherwise does not change")
def ppo_penalty_adaptation(p: Problem) -> Sides:
    divergence = jnp.array([0.0151, 0.0149, 0.01, 0.0067, 0.0066])
    adapted = jnp.stack([adapt(jnp.ones(()), d, EPSILON, (1e-6, 1e6)) for d in divergence])
    return adapted, jnp.array([2.0, 1.0, 1.0, 1.0, 0.5])


def _dual(p: Problem, multiplier: Array | float) -> Float[Array, ""]:
    """λ E_s log E_{a∼π} e^{A/λ}."""
    advantage = p.advantages
    log_mean = jax.scipy.special.logsumexp(jax.nn.log_softmax(p.logits) + advantage / multiplier, axis=1)
    return multiplier * (p.states @ log_mean)


def _penalised_optima(p: Problem) -> tuple[Array, Array]:
    """Ā and KL(π*‖π) of the penalised optimum for every multiplier, means over d^π."""
    states, advantage = p.states, p.advantages
    best = [p.logits + advantage / multiplier for multiplier in MULTIPLIERS]
    gain = jnp.stack([states @ gains(p.mdp, p.pi, jax.nn.softmax(logits)) for logits in best])
    kl = [states @ kl_divergence(Categorical(logits=logits), Categorical(logits=p.logits)) for logits in best]
    return gain, jnp.stack(kl)


def _natural(p: Problem, *, damping: float) -> tuple[Array, Array, Direction]:
    """g, F and the natural direction (F + damping·I)⁻¹ g."""
    gradient, fisher = _ascent(p), p.fisher
    # Rounding gives g a component outside the range of F, which a smaller tolerance would try to reach.
    solve = conjugate_gradient(
        lambda v: fisher @ v + damping * v, gradient, iterations=4 * gradient.size, tolerance=1e-10
    )
    return gradient, fisher, Direction.of(gradient, solve, lambda v: fisher @ v, damping=damping)


def _step_kl(p: Problem, *, damping: float) -> Float[Array, ""]:
    """½ δᵀFδ of the scaled step, in units of ε."""
    _, fisher, natural = _natural(p, damping=damping)
    step = natural.step_size(EPSILON) * natural.x
    return 0.5 * step @ fisher @ step / EPSILON


def _target_kl(p: Problem) -> Float[Array, ""]:
    """1, in units of ε; 0 where the KL along the direction is 0 whatever the length."""
    _, _, natural = _natural(p, damping=0.1)
    return jnp.where(natural.curvature > 0, 1.0, 0.0)


def _ascent(p: Problem) -> Array:
    """∇J/‖∇J‖, since no step depends on its length; 0 where ∇J is rounding error only."""
    gradient = p.gradient
    length = jnp.linalg.norm(gradient)
    largest = jnp.max(jnp.abs(p.action_values)) * jnp.sum(p.occupancy)
    informative = length > 1e-13 * largest
    return jnp.where(informative, gradient / jnp.where(informative, length, 1), 0)
