"""Bounds on the shift of the state distribution, and guaranteed lower bounds on the improvement of J.

ε is a bound on TV(π'(·|s), π(·|s)) in every state, TV = ½ Σ|p − q| in [0, 1]. Surrogates and improvements are
sums over time, Σ γᵗ …, not divided by 1/(1 − γ). All functions take numbers or arrays of one shape.

gamma: γ, discount per step, in [0, 1] unless said otherwise. worst: C = max_s |E_{a∼π'} A^π(s, a)| or more, such
as `worst_gain_bound` or `advantage_bound`, in units of reward; not negative.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Number = Float[Array | np.ndarray, "..."] | Int[Array | np.ndarray, "..."] | float | int


def state_mismatch_bound(epsilon: Number, t: Number) -> Float[Array, "..."]:
    """1 − (1 − ε)ᵗ ≥ TV(p_π'^t, p_π^t), by coupling: in each step the two trajectories part with probability ≤ ε.

    epsilon: ε, in [0, 1]. t: the time step, from 0.
    """
    return 1 - (1 - jnp.asarray(epsilon)) ** t


def linear_mismatch_bound(epsilon: Number, t: Number) -> Float[Array, "..."]:
    """ε t ≥ 1 − (1 − ε)ᵗ: the looser form that the lectures use from here on.

    epsilon: ε, in [0, 1]. t: the time step, from 0.
    """
    return jnp.asarray(epsilon) * t


def discounted_mismatch_bound(epsilon: Number, gamma: Number) -> Float[Array, "..."]:
    """(1 − γ) Σ γᵗ (1 − (1 − ε)ᵗ) = γε / (1 − γ(1 − ε)) ≥ TV(d^π', d^π), the discounted state distributions'.

    epsilon: ε, in [0, 1]. gamma: discount per step.
    """
    denominator = 1 - gamma * (1 - epsilon)
    return jnp.asarray(gamma * epsilon) / jnp.where(denominator > 0, denominator, 1)


def average_mismatch_bound(mean_tv: Number, gamma: Number) -> Float[Array, "..."]:
    """γ/(1 − γ) E_{s∼d^π}[TV] ≥ TV(d^π', d^π) (Achiam et al. 2017, lemma 3).

    mean_tv: E_{s∼d^π}[TV], in [0, 1]. gamma: discount per step.
    """
    return _cost(1.0, mean_tv, gamma * mean_tv / jnp.where(gamma < 1, 1 - gamma, 0))


def summed_mismatch_bound(mean_tv: Float[Array | np.ndarray, " T"]) -> Float[Array, " T"]:
    """Σ_{i<t} E_{s∼p_π^i}[TV(π'(·|s), π(·|s))] ≥ TV(p_π'^t, p_π^t), for every t = 0 … T − 1.

    The average over the states that π visits, where `linear_mismatch_bound` has the worst state. A product of the
    averages, 1 − Π(1 − E[TV]), is no bound.

    mean_tv: E_{s∼p_π^i}[TV] for i = 0 … T − 1, in [0, 1].
    """
    mean_tv = jnp.asarray(mean_tv)
    return jnp.cumsum(mean_tv) - mean_tv


def worst_gain_bound(epsilon: Number, largest_advantage: Number) -> Float[Array, "..."]:
    """2 ε max|A| ≥ C: the expectation of A under π' differs from that under π, 0, by at most so much.

    epsilon: ε of the worst state, in [0, 1]. largest_advantage: max|A^π|, in units of reward, not negative.
    """
    return jnp.asarray(2 * epsilon * largest_advantage)


def advantage_bound(reward_spread: Number, gamma: Number) -> Float[Array, "..."]:
    """(max r − min r)/(1 − γ) ≥ |A^π(s, a)| of every policy, hence ≥ C: the lectures' O(r_max/(1 − γ)).

    All discounted sums of rewards lie in an interval of this length, and an advantage is a difference of two. With
    |r| ≤ r_max it is 2 r_max/(1 − γ) at most; with 0 ≤ r ≤ r_max, r_max/(1 − γ).

    reward_spread: max r − min r, not negative. gamma: discount per step.

    Returns ∞ for γ = 1, unless the spread is 0.
    """
    spread = jnp.asarray(reward_spread)
    return jnp.where(spread > 0, spread / jnp.where(gamma < 1, 1 - gamma, 0), 0)


def episodic_advantage_bound(reward_spread: Number, horizon: Number) -> Float[Array, "..."]:
    """H (max r − min r) ≥ |A^π_t(s, a)| in episodes of H steps, for any γ: the lectures' O(H r_max).

    reward_spread: max r − min r, not negative. horizon: H, the steps that are left, at least 0.
    """
    return jnp.asarray(reward_spread) * horizon


def improvement_bound(surrogate: Number, worst: Number, epsilon: Number, gamma: Number) -> Float[Array, "..."]:
    """Ā − 2 C Σ γᵗ (1 − (1 − ε)ᵗ) ≤ J(π') − J(π): guaranteed improvement of a step with total variation ≤ ε.

    surrogate: Ā(π'), a sum over time. worst: C. epsilon: ε of the worst state, in [0, 1]. gamma: discount per step.

    Returns −∞ for γ = 1, unless C or ε is 0.
    """
    total = discounted_mismatch_bound(epsilon, gamma) / jnp.where(gamma < 1, 1 - gamma, 0)
    return jnp.asarray(surrogate - 2 * _cost(worst, epsilon, total))


def linear_improvement_bound(surrogate: Number, worst: Number, epsilon: Number, gamma: Number) -> Float[Array, "..."]:
    """Ā − 2 C Σ γᵗ ε t = Ā − 2 C ε γ/(1 − γ)² ≤ J(π') − J(π): the lectures' looser form.

    surrogate: Ā(π'), a sum over time. worst: C. epsilon: ε of the worst state, in [0, 1]. gamma: discount per step.
    """
    total = epsilon * gamma / jnp.where(gamma < 1, (1 - gamma) ** 2, 0)
    return jnp.asarray(surrogate - 2 * _cost(worst, epsilon, total))


def average_improvement_bound(
    surrogate: Number, worst: Number, summed_tv: Number, gamma: Number
) -> Float[Array, "..."]:
    """Ā − (2γC/(1 − γ)) Σ_t γᵗ E_{s∼p_π^t}[TV] ≤ J(π') − J(π): each state is weighted by its visits.

    Corollary 1 of Achiam et al. (2017), which is written with the normalised d^π and therefore carries one more
    factor 1/(1 − γ).

    surrogate: Ā(π'), a sum over time. worst: C. summed_tv: Σ_t γᵗ E_{s∼p_π^t}[TV] = E_{s∼d^π}[TV]/(1 − γ).
    gamma: discount per step.
    """
    total = gamma * summed_tv / jnp.where(gamma < 1, 1 - gamma, 0)
    return jnp.asarray(surrogate - 2 * _cost(worst, summed_tv, total))


def mixture_bound(mean_gain: Number, worst: Number, alpha: Number, gamma: Number) -> Float[Array, "..."]:
    """α/(1 − γ) (𝔸 − 2αγC/(1 − γ(1 − α))) ≤ J((1 − α)π + απ') − J(π) (Kakade and Langford 2002, theorem 4.1).

    mean_gain: 𝔸 = E_{s∼d^π, a∼π'} A^π, with d^π normalised. worst: C. alpha: the share of π', in [0, 1].
    gamma: discount per step, below 1.
    """
    alpha = jnp.asarray(alpha)
    return alpha / (1 - gamma) * (mean_gain - 2 * alpha * gamma * worst / (1 - gamma * (1 - alpha)))


def conservative_step(mean_gain: Number, worst: Number, gamma: Number) -> Float[Array, "..."]:
    """The α in [0, 1] that maximises `mixture_bound`: conservative policy iteration's step, exactly.

    With u = 1 − γ(1 − α) the derivative is 0 at u = (1 − γ)/√(1 − 𝔸/2C).

    mean_gain: 𝔸, as in `mixture_bound`. worst: C. gamma: discount per step, in [0, 1].

    Returns α; 0 where 𝔸 ≤ 0, and for γ = 1, where no step has a guarantee.
    """
    share = jnp.clip(mean_gain / jnp.where(worst > 0, 2 * worst, 1), 0, 0.5)
    u = (1 - gamma) / jnp.sqrt(1 - share)
    discounted = jnp.clip((u - (1 - gamma)) / jnp.where(gamma > 0, gamma, 1), 0, 1)
    return jnp.where(jnp.asarray(gamma) > 0, discounted, jnp.where(share > 0, 1.0, 0.0))


def guaranteed_fraction(
    mean_gain: Number, worst: Number, epsilon: Number, mean_tv: Number, gamma: Number
) -> Float[Array, "..."]:
    """The largest factor s on a step for which a lower bound on the improvement is ≥ 0; above 1 the whole step has one.

    To first order in s, a step s times as large has s times the surrogate, C and TV. Then `improvement_bound` is
    0 at s = (1 − γ) 𝔸 / (γ ε (2C − 𝔸)), and `average_improvement_bound` at s = (1 − γ) 𝔸 / (2 γ C E[TV]); the
    larger counts.

    mean_gain: 𝔸, over the normalised d^π. worst: C. epsilon: TV of the worst state, in [0, 1].
    mean_tv: E[TV] over the normalised d^π. gamma: discount per step.

    Returns s ≥ 0; 0 where 𝔸 ≤ 0, ∞ where the penalty terms are 0.
    """
    at_worst = gamma * epsilon * (2 * worst - mean_gain)
    on_average = 2 * gamma * worst * mean_tv
    cost = jnp.minimum(at_worst, on_average)
    risky = cost > 0
    return jnp.where(mean_gain > 0, jnp.where(risky, (1 - gamma) * mean_gain / jnp.where(risky, cost, 1), jnp.inf), 0)


def _cost(worst: Number, moved: Number, total: Number) -> Float[Array, "..."]:
    """C times a sum over time that may be infinite: 0 where C or the total variation is 0."""
    return jnp.where((jnp.asarray(worst) > 0) & (jnp.asarray(moved) > 0), worst * total, 0)
