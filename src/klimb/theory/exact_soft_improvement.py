"""π e^{A/λ}/Z, the optimum of the penalised surrogate: policy iteration for λ → 0, a gradient step for λ → ∞.

In every state the policy maximises E_{π'}[A^π] − λ KL(π'‖π). λ is in units of advantage per nat.

In all functions pi is π(a|s) and advantage is A^π(s, a), `[S, A]`. Both may come from samples as well; what is said
about J needs the exact A^π.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.theory.surrogate import Table

BISECTIONS = 100
LOG_RANGE = 30.0
"""λ is sought within factors e^{±30} of the largest advantage."""


def soft_improvement(pi: Table, advantage: Table, multiplier: Float[Array, ""] | float) -> Table:
    """π'(a|s) = π(a|s) e^{A(s, a)/λ} / Σ_b π(b|s) e^{A(s, b)/λ}; no state's value is lower than before, for every λ.

    multiplier: λ > 0.
    """
    return jax.nn.softmax(_log(pi) + advantage / multiplier, axis=1)


def greedy_improvement(pi: Table, advantage: Table) -> Table:
    """The limit of `soft_improvement` for λ → 0: π restricted to the best actions, among those with π(a|s) > 0.

    One action per state is policy iteration's step; actions of exactly the same advantage share as they did in π.
    """
    kept = jnp.where(best_actions(pi, advantage), pi, 0)
    return kept / jnp.sum(kept, axis=1, keepdims=True)


def best_actions(pi: Table, advantage: Table) -> Bool[Array, "S A"]:
    """Which actions have the largest advantage in their state, among those with π(a|s) > 0."""
    supported = jnp.where(pi > 0, advantage, -jnp.inf)
    return supported == jnp.max(supported, axis=1, keepdims=True)


def greedy_distance_bound(pi: Table, advantage: Table, multiplier: Float[Array, ""] | float) -> Float[Array, " S"]:
    """((1 − π*)/π*) e^{−gap/λ} ≥ TV(π', greedy) of `soft_improvement`, state by state.

    π* is the probability of the best actions under π, and gap the advantage of the best over the second best: the
    odds against the best actions fall by at least e^{−gap/λ}.

    multiplier: λ > 0.

    Returns 0 where π takes no other action.
    """
    best = best_actions(pi, advantage)
    others = (pi > 0) & ~best
    top = jnp.max(jnp.where(best, advantage, -jnp.inf), axis=1)
    second = jnp.max(jnp.where(others, advantage, -jnp.inf), axis=1)
    share, rest = jnp.sum(jnp.where(best, pi, 0), axis=1), jnp.sum(jnp.where(others, pi, 0), axis=1)
    return rest / share * jnp.exp((second - top) / multiplier)


def first_order_improvement(pi: Table, advantage: Table, multiplier: Float[Array, ""] | float) -> Table:
    """π (1 + A/λ), what `soft_improvement` is to first order in 1/λ; the rows sum to 1, entries may be negative.

    multiplier: λ > 0.
    """
    return pi * (1 + advantage / multiplier)


def first_order_error_bound(pi: Table, advantage: Table, multiplier: Float[Array, ""] | float) -> Float[Array, " S"]:
    """¼ (w/λ)² e^{w/λ} ≥ ½ Σ_a |π' − π (1 + A/λ)|, with w = max_a A − min_a A over the actions of π, state by state.

    The second derivative of e^{uA}/E_π[e^{uA}] in u is that function times (A − m)² − v, with m and v the mean and the
    variance of A under the policy at u, which is at most e^{uw} w² in size.

    multiplier: λ > 0.
    """
    high = jnp.max(jnp.where(pi > 0, advantage, -jnp.inf), axis=1)
    low = jnp.min(jnp.where(pi > 0, advantage, jnp.inf), axis=1)
    width = (high - low) / multiplier
    return 0.25 * jnp.square(width) * jnp.exp(width)


def multiplier_at(pi: Table, advantage: Table, states: Float[Array, " S"], max_kl: float | Array) -> Float[Array, ""]:
    """The λ whose `soft_improvement` has a mean KL(π'‖π) of max_kl: the best step inside a trust region.

    By bisection in log λ, which the KL falls in. Where even the greedy policy is inside, nearly 0.

    states: their weights, summing to 1. max_kl: ε > 0, in nats.
    """
    scale = jnp.max(jnp.where(pi > 0, jnp.abs(advantage), 0))
    scale = jnp.where(scale > 0, scale, 1)

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        far = mean_kl(pi, soft_improvement(pi, advantage, scale * jnp.exp(middle)), states) > max_kl
        return jnp.where(far, middle, low), jnp.where(far, high, middle)

    ends = (jnp.full((), -LOG_RANGE, pi.dtype), jnp.full((), LOG_RANGE, pi.dtype))
    return scale * jnp.exp(jax.lax.fori_loop(0, BISECTIONS, halve, ends)[1])


def mean_kl(pi: Table, new: Table, states: Float[Array, " S"]) -> Float[Array, ""]:
    """E_s[KL(π'‖π)], in nats.

    new: π'(a|s), 0 where π is. states: their weights, summing to 1.
    """
    terms = jnp.where(new > 0, new * (_log(new) - _log(pi)), 0)
    return states @ jnp.sum(terms, axis=1)


def _log(pi: Table) -> Table:
    return jnp.where(pi > 0, jnp.log(jnp.where(pi > 0, pi, 1)), -jnp.inf)
