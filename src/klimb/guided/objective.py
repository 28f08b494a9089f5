"""The objective of importance-sampled guided policy search: the return of a policy, from samples of other policies."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.estimate.importance import effective_sample_size, log_weights
from klimb.types import Mixture


class Phi(NamedTuple):
    """Φ and its parts, for T time steps.

    value: Φ(θ). mean_return: its first part, Σ_t of the self-normalised estimates of E r_t. log_normaliser: log Z_t.
    ess: effective sample size of the weights up to each step, as a fraction of the N samples.
    """

    value: Float[Array, ""]
    mean_return: Float[Array, ""]
    log_normaliser: Float[Array, " T"]
    ess: Float[Array, " T"]


def phi(
    log_prob: Float[Array, "T N"],
    behaviour: Mixture,
    reward: Float[Array, "T N"],
    *,
    regularisation: float | Array,
) -> Phi:
    """Φ(θ) = Σ_t [ (1/Z_t) Σ_i w_it r_it + w_r log Z_t ], Z_t = Σ_i w_it (Levine and Koltun 2013, eq. 2).

    w_it = π_θ(τ_i,1:t) / q(τ_i,1:t) over the steps up to t of the i-th of N trajectories, all of T steps. The dynamics
    occur in numerator and denominator and cancel. Sums are of logarithms.

    log_prob: log π_θ(a|s) of every step, differentiable in θ.
    behaviour: the components of q, guides and earlier policies: log q_k(a|s) `[K, T, N]` and log shares.
    The mixture is one of whole trajectories: q(τ) = Σ_k share_k Π_t q_k(a_t|s_t).
    reward: r_it.
    regularisation: w_r, positive. The self-normalised weights look fine even for a policy that gives the samples
    negligible probability. Z_t is small for such a policy, so this term keeps the policy near the samples.
    """
    never = jnp.zeros(reward.shape, bool)
    log_weight = log_weights("per_decision", log_prob, behaviour, never)
    log_normaliser = jax.scipy.special.logsumexp(log_weight, axis=1)
    share = jnp.exp(log_weight - log_normaliser[:, None])
    mean_return = jnp.sum(share * reward)
    value = mean_return + regularisation * jnp.sum(log_normaliser)
    ess = jax.lax.stop_gradient(jax.vmap(effective_sample_size)(share))
    return Phi(value, mean_return, log_normaliser, ess)
