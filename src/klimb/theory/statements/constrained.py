"""§5: the constrained surrogate: its dual, the natural and the plain step, TRPO's and PPO's."""

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
PRICES = (0.1, 1.0, 10.0)


@CONSTRAINED.at_most("price of divergence", "Ā(π') − λ KL(π'‖π) ≤ λ log E_π[e^{A/λ}], mean over d^π, every λ > 0")
def _(p: Problem) -> Sides:
    states = p.states
    gain = states @ p.gains
    kl = states @ kl_divergence(Categorical(logits=p.new_logits), Categorical(logits=p.logits))
    prices = jnp.array(PRICES)
    return gain - prices * kl, jnp.stack([_dual(p, price) for price in PRICES])


@CONSTRAINED.equal("penalised optimum", "reached by π* ∝ π e^{A/λ}")
def _(p: Problem) -> Sides:
    gain, kl = _at_prices(p)
    return gain - jnp.array(PRICES) * kl, jnp.stack([_dual(p, price) for price in PRICES])


@CONSTRAINED.equal("strong duality", "Ā(π*) = min_λ λε + λ log E_π[e^{A/λ}] at ε = KL(π*‖π): the slope D − ε is 0")
def _(p: Problem) -> Sides:
    _, kl = _at_prices(p)
    slope = jnp.stack([jax.grad(lambda price: _dual(p, price))(jnp.asarray(price)) for price in PRICES])
    return kl, -slope


@CONSTRAINED.equal("complementary slackness", "λ (D − ε) = 0 is where λ ← max(0, λ + α (D − ε)) rests")
def _(p: Problem) -> Sides:
    price, violation = jnp.array([0.0, 0.0, 2.0]), jnp.array([-1.0, 0.0, 0.0])
    move = [dual_ascent(price[i], violation[i], learning_rate=20.0, log_space=False, largest=1e4) for i in range(3)]
    return jnp.stack([*move, *(price * violation)]), jnp.concatenate([price, jnp.zeros(3)])


@CONSTRAINED.at_most("total variation constraint", "Ā(π') ≤ E_{d^π}[TV · (max_a A − min_a A)]")
def _(p: Problem) -> Sides:
    states, advantage = p.states, p.advantages
    spread = jnp.max(advantage, axis=1) - jnp.min(advantage, axis=1)
    gain = states @ p.gains
    return gain, states @ (state_variation(p.pi, p.new) * spread)


@CONSTRAINED.equal("natural step", "α = √(2ε/(gᵀF⁻¹g)) makes ½ δᵀFδ = ε")
def _(p: Problem) -> Sides:
    return _reached(p, damping=0.0), _asked(p)


@CONSTRAINED.equal("damped step", "with (F + ηI)⁻¹ g too, if the scale is √(2ε/(xᵀFx)) without η")
def _(p: Problem) -> Sides:
    return _reached(p, damping=0.1), _asked(p)


@CONSTRAINED.at_most("steepest in KL", "no δ with ½ δᵀFδ = ε has a larger gᵀδ than the natural step")
def _(p: Problem) -> Sides:
    gradient, fisher, natural = _natural(p, damping=0.0)
    best = natural.step_size(EPSILON) * gradient @ natural.x
    others = [p.direction.ravel(), (p.new_logits - p.logits).ravel(), gradient]
    reach = jnp.stack([gradient @ other for other in others])
    curvature = jnp.stack([other @ fisher @ other for other in others])
    bends = curvature > 1e-12 * jnp.max(jnp.abs(fisher), initial=1e-300)
    length = jnp.where(bends, jnp.sqrt(2 * EPSILON / jnp.where(bends, curvature, 1)), 0)
    return length * reach, jnp.broadcast_to(best, (3,))


@CONSTRAINED.equal("plain step", "α = √(ε/‖g‖²) makes ‖δ‖² = ε: the same problem with the wrong constraint")
def _(p: Problem) -> Sides:
    gradient = p.gradient
    square = gradient @ gradient
    moves = square > 0
    step = jnp.where(moves, jnp.sqrt(EPSILON / jnp.where(moves, square, 1)), 0) * gradient
    return step @ step, jnp.where(moves, EPSILON, 0)


@CONSTRAINED.equal("three solvers", "(F + ηI)⁻¹ g by conjugate gradient, in sample space and whole")
def _(p: Problem) -> Sides:
    # A row a state: the expectation over actions is in the rows' own metric.
    states = p.batch.take(jnp.arange(0, p.logits.size, p.mdp.num_actions))
    states = eqx.tree_at(lambda batch: batch.weight, states, p.states)
    gradient = _ascent(p)
    rows = fisher_rows(p.old, states, "exact")
    whole = dense(rows, gradient, damping=0.1).x
    iterated = conjugate_gradient(
        lambda v: rows.T @ (rows @ v) + 0.1 * v, gradient, iterations=4 * gradient.size, tolerance=1e-13
    )
    return jnp.stack([iterated.x, woodbury(rows, gradient, damping=0.1).x]), jnp.stack([whole, whole])


@CONSTRAINED.at_most("TRPO's step", "KL(π‖π') ≤ ε and Ā(π') ≥ 0, measured on the policy returned")
def _(p: Problem) -> Sides:
    moved, _, info = TRPO(max_kl=EPSILON).step(jax.random.key(0), p.old, (), p.batch)
    states = p.states
    kl = states @ kl_divergence(Categorical(logits=p.logits), Categorical(logits=moved.logits))
    gain = states @ gains(p.mdp, p.pi, jax.nn.softmax(moved.logits))
    return jnp.stack([kl, jnp.zeros(()), info.kl_old_new]), jnp.stack([jnp.asarray(EPSILON), gain, kl])


@CONSTRAINED.equal("no signal, no step", "with zero advantage TRPO returns the old parameters, bit for bit")
def _(p: Problem) -> Sides:
    batch = p.batch
    silent = type(batch)(**{**vars(batch), "advantage": jnp.zeros_like(batch.advantage)})
    moved, _, _ = TRPO().step(jax.random.key(0), p.old, (), silent)
    return moved.logits, p.logits


@CONSTRAINED.at_most("PPO's clip", "min(ρA, clip(ρ, 1 ± c) A) ≤ ρA: never above the surrogate")
def _(p: Problem) -> Sides:
    advantage = p.advantages
    ratio = jnp.where(p.pi > 0, p.new / jnp.where(p.pi > 0, p.pi, 1), 1)
    clipped = jnp.clip(ratio, 0.8, 1.2)
    return jnp.minimum(ratio * advantage, clipped * advantage), ratio * advantage


@CONSTRAINED.equal("PPO's penalty", "λ doubles above 1.5 ε, halves below ε/1.5, and stays between")
def _(p: Problem) -> Sides:
    divergence = jnp.array([0.0151, 0.0149, 0.01, 0.0067, 0.0066])
    adapted = jnp.stack([adapt(jnp.ones(()), d, EPSILON, (1e-6, 1e6)) for d in divergence])
    return adapted, jnp.array([2.0, 1.0, 1.0, 1.0, 0.5])


def _dual(p: Problem, price: Array | float) -> Float[Array, ""]:
    """λ E_s log E_{a∼π} e^{A/λ}."""
    advantage = p.advantages
    soft = jax.scipy.special.logsumexp(jax.nn.log_softmax(p.logits) + advantage / price, axis=1)
    return price * (p.states @ soft)


def _at_prices(p: Problem) -> tuple[Array, Array]:
    """Ā and KL(π*‖π) of the penalised optimum at every price, means over d^π."""
    states, advantage = p.states, p.advantages
    best = [p.logits + advantage / price for price in PRICES]
    gain = jnp.stack([states @ gains(p.mdp, p.pi, jax.nn.softmax(logits)) for logits in best])
    kl = [states @ kl_divergence(Categorical(logits=logits), Categorical(logits=p.logits)) for logits in best]
    return gain, jnp.stack(kl)


def _natural(p: Problem, *, damping: float) -> tuple[Array, Array, Direction]:
    gradient, fisher = _ascent(p), p.fisher
    # Rounding gives g a part that no x has a product with F for: a stricter search would run after it.
    solve = conjugate_gradient(
        lambda v: fisher @ v + damping * v, gradient, iterations=4 * gradient.size, tolerance=1e-10
    )
    return gradient, fisher, Direction.of(gradient, solve, lambda v: fisher @ v, damping=damping)


def _reached(p: Problem, *, damping: float) -> Float[Array, ""]:
    """½ δᵀFδ of the scaled step, in units of ε."""
    _, fisher, natural = _natural(p, damping=damping)
    step = natural.step_size(EPSILON) * natural.x
    return 0.5 * step @ fisher @ step / EPSILON


def _asked(p: Problem) -> Float[Array, ""]:
    """1; 0 where the direction does not bend at all: there is no length that has a KL of ε."""
    _, _, natural = _natural(p, damping=0.1)
    return jnp.where(natural.curvature > 0, 1.0, 0.0)


def _ascent(p: Problem) -> Array:
    """∇J/‖∇J‖, since no step depends on its length; 0 where J does not depend on the policy but for rounding."""
    gradient = p.gradient
    length = jnp.linalg.norm(gradient)
    largest = jnp.max(jnp.abs(p.action_values)) * jnp.sum(p.occupancy)
    informative = length > 1e-13 * largest
    return jnp.where(informative, gradient / jnp.where(informative, length, 1), 0)
