"""Divergences of distributions in closed form, without cancellation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array


def expm1_minus(x: Array) -> Array:
    """eˣ − 1 − x without cancellation: its Taylor series near 0, where `expm1(x) − x` loses all digits.

    x: any real numbers.
    """
    small = jnp.abs(x) < 0.1
    y = jnp.where(small, x, 0)
    series = jnp.square(y) / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7 * (1 + y / 8))))))
    safe = jnp.where(small, 1, x)
    return jnp.where(small, series, jnp.expm1(safe) - safe)


def gaussian_total_variation(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> Array:
    """TV of two univariate Gaussians: |P(I) − Q(I)|, I the interval where the narrower density is above the wider one.

    In units z of the narrower distribution, with the wider one at distance m and scale r = σ_wide/σ_narrow
    ≥ 1, the densities cross where (r² − 1) z² + 2 m z − m² − 2 r² log r = 0. The root of larger magnitude
    comes from the quadratic formula and the other from the product of the roots, so that nothing cancels as
    r → 1, where the far crossing moves to infinity.

    The densities are equal at the crossings, so moving the crossings has no effect to first order: the gradient is
    that of the probabilities of a fixed interval. It is 0 if p = q. Second derivatives are wrong.

    mean_p, log_std_p: of one Gaussian p. mean_q, log_std_q: of the other, q. Log standard deviations are finite.
    """
    swap = log_std_p > log_std_q
    mean_narrow, mean_wide = jnp.where(swap, mean_q, mean_p), jnp.where(swap, mean_p, mean_q)
    log_narrow, log_wide = jnp.where(swap, log_std_q, log_std_p), jnp.where(swap, log_std_p, log_std_q)
    # Mirrored if necessary, so that the wider distribution is on the right: m ≥ 0. TV is the same.
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
    # Rounding may leave [0, 1]. Only the value is clipped: a clipped gradient would be 0 there.
    clipped = difference + jax.lax.stop_gradient(jnp.clip(difference, 0, 1) - difference)
    return jnp.where(same, 0, clipped)


def _cdf_of_fixed(z: Array, mean: Array, log_std: Array) -> Array:
    """Φ(z) at a fixed position x = mean + σ z: its gradient holds x, not z, so dz = −dmean/σ − z d log σ."""
    # For |z| ≥ 39, Φ is 0 or 1 in both precisions; a finite z avoids 0 · ∞ in the gradient.
    z = jax.lax.stop_gradient(jnp.clip(z, -40, 40))
    mean_now, log_std_now = jax.lax.stop_gradient((mean, log_std))
    return ndtr(z * jnp.exp(log_std_now - log_std) + (mean_now - mean) * jnp.exp(-log_std_now))
