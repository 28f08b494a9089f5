"""Distances between two action distributions: KL, total variation, and the bounds that tie them."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, ndtr
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.policies.distributions import Categorical, DiagGaussian, Distribution, TanhGaussian


class MonteCarlo(NamedTuple):
    """A sampled value and the standard error of it, both `[...]`."""

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def kl_divergence(p: Distribution, q: Distribution) -> Float[Array, "..."]:
    """KL(p‖q) = E_p[log p − log q] ≥ 0 in nats, `[...]`: the first argument takes the expectation, always.

    Closed form for Categorical, DiagGaussian and TanhGaussian. Raises TypeError for two different kinds, ValueError
    for squashed Gaussians in two different boxes.
    """
    _same_kind(p, q)
    return _kl(p, q)


@singledispatch
def _kl(p: Distribution, q: Distribution) -> Array:
    raise TypeError(f"no KL divergence is known for {type(p).__name__}")


@_kl.register
def _(p: Categorical, q: Categorical) -> Array:
    log_p, log_q = p.log_probs, q.log_probs
    probs = jnp.exp(log_p)
    # Σ p (log p − log q) cancels to rounding noise for near-equal p, q, with either sign. Adding
    # Σ (q − p) = 0 turns every term into p·(eᵈ − 1 − d) ≥ 0 with d = log q − log p.
    difference = jnp.where(probs > 0, log_q - log_p, 0)
    return jnp.sum(jnp.where(probs > 0, probs * _expm1_minus(difference), jnp.exp(log_q)), axis=-1)


@_kl.register
def _(p: DiagGaussian, q: DiagGaussian) -> Array:
    # Per dimension ½ (e^{2d} − 1 − 2d) + ½ (μ_p − μ_q)²/σ_q² with d = log σ_p − log σ_q.
    spread = _expm1_minus(2 * (p.log_std - q.log_std))
    shift = jnp.square((p.mean - q.mean) * jnp.exp(-q.log_std))
    return 0.5 * jnp.sum(spread + shift, axis=-1)


@_kl.register
def _(p: TanhGaussian, q: TanhGaussian) -> Array:
    # Squashing both by the same one-to-one map changes no divergence.
    return _kl(p.base, q.base)


def _expm1_minus(x: Array) -> Array:
    """eˣ − 1 − x without cancellation: its Taylor series near 0, where `expm1(x) − x` loses every digit."""
    small = jnp.abs(x) < 0.1
    y = jnp.where(small, x, 0)
    series = jnp.square(y) / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7 * (1 + y / 8))))))
    safe = jnp.where(small, 1, x)
    return jnp.where(small, series, jnp.expm1(safe) - safe)


def total_variation(
    p: Distribution, q: Distribution, *, key: PRNGKeyArray | None = None, num_samples: int = 4096
) -> Float[Array, "..."] | MonteCarlo:
    """TV(p, q) = ½ Σ|p − q| (½ ∫|p − q|), in [0, 1], `[...]`.

    Exact for Categorical and for Gaussians of one dimension, squashed or not. Gaussians of several dimensions
    have no closed form unless their scales are equal: then give `key`, and `MonteCarlo(value, standard_error)`
    comes back from `num_samples` draws of p and as many of q. With a `key` the answer is sampled for every kind
    of distribution.

    Raises ValueError for several dimensions without a `key` and for squashed Gaussians in two different boxes;
    TypeError for two different kinds.
    """
    _same_kind(p, q)
    if key is not None:
        return _sampled_total_variation(p, q, key, num_samples)
    return _tv(p, q)


@singledispatch
def _tv(p: Distribution, q: Distribution) -> Array:
    raise ValueError(f"no closed form of the total variation is known for {type(p).__name__}: give key=")


@_tv.register
def _(p: Categorical, q: Categorical) -> Array:
    return 0.5 * jnp.sum(jnp.abs(p.probs - q.probs), axis=-1)


@_tv.register
def _(p: DiagGaussian, q: DiagGaussian) -> Array:
    dimensions = jnp.broadcast_shapes(p.mean.shape, q.mean.shape)[-1]
    if dimensions == 1:
        return _tv_gaussian_1d(p.mean[..., 0], p.log_std[..., 0], q.mean[..., 0], q.log_std[..., 0])
    scales = (p.log_std, q.log_std)
    concrete = not any(isinstance(scale, jax.core.Tracer) for scale in scales)
    if concrete and bool(jnp.all(p.log_std == q.log_std)):
        # Equal scales: the half-space between the means decides, TV = erf(Mahalanobis distance / 2√2).
        squared = jnp.sum(jnp.square((p.mean - q.mean) * jnp.exp(-p.log_std)), axis=-1)
        # The root of 0 has no derivative, and the one at equality is to be 0.
        return jnp.where(squared > 0, erf(jnp.sqrt(jnp.where(squared > 0, squared, 1)) / 8**0.5), 0)
    raise ValueError(
        f"the total variation of Gaussians with {dimensions} dimensions and unequal scales has no closed form: "
        "give key= for a Monte Carlo value with its standard error, or use total_variation_bound(kl)"
    )


@_tv.register
def _(p: TanhGaussian, q: TanhGaussian) -> Array:
    return _tv(p.base, q.base)


def _tv_gaussian_1d(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> Array:
    """|P(I) − Q(I)| over the interval I where the narrower density is above the wider one.

    In units z of the narrower distribution, with the wider one at distance m and scale r = σ_wide/σ_narrow
    ≥ 1, the densities cross where (r² − 1) z² + 2 m z − m² − 2 r² log r = 0. The larger root in magnitude
    comes from the quadratic formula and the other from the product of the roots, so that nothing cancels as
    r → 1, where the far crossing moves to infinity.

    The densities are equal at the crossings, so that moving those changes nothing to first order: the gradient is
    that of the probabilities of a fixed interval. It is 0 where p = q. Second derivatives are not right.
    """
    swap = log_std_p > log_std_q
    mean_narrow, mean_wide = jnp.where(swap, mean_q, mean_p), jnp.where(swap, mean_p, mean_q)
    log_narrow, log_wide = jnp.where(swap, log_std_q, log_std_p), jnp.where(swap, log_std_p, log_std_q)
    # The answer is symmetric, so the wider distribution may be put to the right: m ≥ 0.
    right = jnp.where(mean_wide < mean_narrow, -1, 1)
    m = jnp.abs(mean_p - mean_q) * jnp.exp(-log_narrow)
    log_r = log_wide - log_narrow
    r = jnp.exp(log_r)
    a = jnp.expm1(2 * log_r)
    c = -(jnp.square(m) + 2 * jnp.square(r) * log_r)
    same = (m == 0) & (log_r == 0)
    q = -(m + jnp.sqrt(jnp.maximum(jnp.square(m) - a * c, 0)))
    near = c / jnp.where(same, 1, q)  # crossing between the means
    far = jnp.where(a > 0, q / jnp.where(a > 0, a, 1), -jnp.inf)
    narrow, wide = (right * mean_narrow, log_narrow), (right * mean_wide, log_wide)
    inside_narrow = _cdf_of_fixed(near, *narrow) - _cdf_of_fixed(far, *narrow)
    inside_wide = _cdf_of_fixed((near - m) / r, *wide) - _cdf_of_fixed((far - m) / r, *wide)
    difference = inside_narrow - inside_wide
    # Rounding to the outside of [0, 1] is mended in the value alone: the gradient there is as good as elsewhere.
    mended = difference + jax.lax.stop_gradient(jnp.clip(difference, 0, 1) - difference)
    return jnp.where(same, 0, mended)


def _cdf_of_fixed(z: Array, mean: Array, log_std: Array) -> Array:
    """Φ(z) at a position x = mean + σ z that stays where it is when mean and σ move: dz = −dmean/σ − z d log σ."""
    # From |z| = 39 on Φ is 0 or 1 in both precisions; a finite z keeps 0 · ∞ out of the gradient.
    z = jax.lax.stop_gradient(jnp.clip(z, -40, 40))
    mean_now, log_std_now = jax.lax.stop_gradient((mean, log_std))
    return ndtr(z * jnp.exp(log_std_now - log_std) + (mean_now - mean) * jnp.exp(-log_std_now))


def _sampled_total_variation(p: Distribution, q: Distribution, key: PRNGKeyArray, num_samples: int) -> MonteCarlo:
    """E_m[|p − q|/(p + q)] over `num_samples` draws from each half of the mixture m = (p + q)/2.

    Drawn from p alone, ½|1 − q/p| has no finite variance where q is the wider one, and its standard error
    would be far too small. |p − q|/(p + q) = |tanh(½ log p/q)| is never above 1.
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
    """min(√(KL/2), √(1 − e^{−KL})) ≥ TV: Pinsker for small KL (either direction), Bretagnolle-Huber for large."""
    kl = jnp.maximum(kl, 0)
    return jnp.minimum(jnp.sqrt(kl / 2), jnp.sqrt(-jnp.expm1(-kl)))


def has_closed_form_tv(p: Distribution) -> bool:
    """Whether `total_variation` is exact for this kind and number of dimensions, whatever the parameters."""
    return isinstance(p, Categorical) or (isinstance(p, DiagGaussian | TanhGaussian) and p.mean.shape[-1] == 1)


def _same_kind(p: Distribution, q: Distribution) -> None:
    if type(p) is not type(q):
        raise TypeError(f"both distributions must be of one kind, not {type(p).__name__} and {type(q).__name__}")
    if isinstance(p, TanhGaussian) and isinstance(q, TanhGaussian) and (p.low, p.high) != (q.low, q.high):
        raise ValueError(
            f"both squashed Gaussians must be in one box, not in {p.low} to {p.high} and {q.low} to {q.high}: "
            "give them the same low and high"
        )
