"""Divergences of two action distributions: KL, total variation, and bounds of one by the other."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.policies.distributions import Distribution


class MonteCarlo(NamedTuple):
    """A Monte Carlo estimate and its standard error, both `[...]`."""

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def kl_divergence(p: Distribution, q: Distribution) -> Float[Array, "..."]:
    """KL(p‖q) = E_p[log p − log q] ≥ 0 in nats, `[...]`. The expectation is always over the first argument.

    Closed form for Categorical, DiagGaussian and TanhGaussian.

    p, q: distributions of the same class. Raises TypeError for two different classes, ValueError for squashed
    Gaussians in two different boxes.
    """
    _same_kind(p, q)
    return p.kl_to(q)


def total_variation(
    p: Distribution, q: Distribution, *, key: PRNGKeyArray | None = None, num_samples: int = 4096
) -> Float[Array, "..."] | MonteCarlo:
    """TV(p, q) = ½ Σ|p − q| (½ ∫|p − q|), in [0, 1], `[...]`.

    Exact for Categorical and for Gaussians of one dimension, squashed or not. Gaussians of several dimensions have a
    closed form only if their scales are equal; for the others give `key`.

    p, q: distributions of the same class.
    key: None for the closed form; with a key the value is sampled, for every class of distribution.
    num_samples: samples drawn from p, and as many from q; at least 2.

    Returns the exact value without `key`, else `MonteCarlo(value, standard_error)`. Raises ValueError for several
    dimensions with unequal scales and no `key`, and for squashed Gaussians in two different boxes; TypeError for two
    different classes.
    """
    _same_kind(p, q)
    if key is not None:
        return _sampled_total_variation(p, q, key, num_samples)
    return p.tv_to(q)


def _sampled_total_variation(p: Distribution, q: Distribution, key: PRNGKeyArray, num_samples: int) -> MonteCarlo:
    """E_m[|p − q|/(p + q)] over `num_samples` samples of each component of the mixture m = (p + q)/2.

    With samples of p alone, ½|1 − q/p| has infinite variance if q is the wider one, and its standard error
    would be far too small. |p − q|/(p + q) = |tanh(½ log p/q)| is at most 1.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples = {num_samples} gives no standard error; choose at least 2")

    def difference(action: Array) -> Array:
        return jnp.abs(jnp.tanh(0.5 * (p.log_prob(action) - q.log_prob(action))))

    def draw(k: PRNGKeyArray) -> Array:
        key_p, key_q = jax.random.split(k)
        return 0.5 * (difference(p.sample(key_p)) + difference(q.sample(key_q)))

    values = jax.vmap(draw)(jax.random.split(key, num_samples))
    return MonteCarlo(jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / num_samples**0.5)


def total_variation_bound(kl: Float[Array, "..."]) -> Float[Array, "..."]:
    """min(√(KL/2), √(1 − e^{−KL})) ≥ TV: Pinsker for small KL, Bretagnolle-Huber for large.

    kl: nats, in either direction; negative values (rounding) count as 0.
    """
    kl = jnp.maximum(kl, 0)
    return jnp.minimum(jnp.sqrt(kl / 2), jnp.sqrt(-jnp.expm1(-kl)))


def _same_kind(p: Distribution, q: Distribution) -> None:
    if type(p) is not type(q):
        raise TypeError(f"both distributions must be of one kind, not {type(p).__name__} and {type(q).__name__}")
    p.require_comparable(q)
