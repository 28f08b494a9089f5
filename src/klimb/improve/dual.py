"""Updates of the Lagrange multiplier λ of a constraint D ≤ ε: dual ascent, and PPO's doubling and halving."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
MIN_POSITIVE_MULTIPLIER = 1e-6
"""Minimum λ in log space."""


def dual_ascent(
    multiplier: Scalar, violation: Scalar, *, learning_rate: float | Array, log_space: bool, largest: float | Array
) -> Scalar:
    """λ ← max(0, λ + α (D − ε)), or λ ← λ · exp(α (D − ε)): one ascent step on the dual function.

    The gradient of the dual function is the constraint violation D − ε. If the constraint is inactive, the projection
    onto λ ≥ 0 keeps λ at 0. In log space λ stays positive and changes by factors.

    multiplier: λ ≥ 0. violation: D − ε, in units of D. learning_rate: α > 0.
    log_space: whether log λ is updated instead of λ.
    largest: maximum λ. It keeps λ D from being 0 · ∞ = NaN.
    """
    if log_space:
        # No multiplicative step leads away from λ = 0.
        return jnp.clip(multiplier * jnp.exp(learning_rate * violation), MIN_POSITIVE_MULTIPLIER, largest)
    return jnp.clip(multiplier + learning_rate * violation, 0, largest)


def adapt(multiplier: Scalar, divergence: Scalar, target: float | Array, bounds: tuple[float, float]) -> Scalar:
    """λ ← 2λ if D > 1.5 ε, λ/2 if D < ε/1.5 (Schulman et al. 2017, section 4).

    multiplier: λ > 0. divergence: D, measured after the step. target: ε > 0, in the units of D.
    bounds: minimum and maximum λ.
    """
    doubled = jnp.where(divergence > 1.5 * target, 2 * multiplier, multiplier)
    adapted = jnp.where(divergence < target / 1.5, multiplier / 2, doubled)
    return jnp.clip(adapted, *bounds)
