"""The multiplier λ of a constraint D ≤ ε: what a unit of divergence costs, and how the price is found."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
SMALLEST = 1e-6


def dual_ascent(
    multiplier: Scalar, violation: Scalar, *, learning_rate: float, log_space: bool, largest: float
) -> Scalar:
    """λ ← max(0, λ + α (D − ε)), or λ ← λ · exp(α (D − ε)): one step up the dual, up to `largest`.

    The gradient of the dual function is the constraint's violation D − ε. The projection keeps λ ≥ 0 and lets
    it be 0, where the constraint does not bind; in log space λ stays positive and moves by factors.
    The upper limit keeps λ D a number: 0 · ∞ would be NaN.
    """
    if log_space:
        # Not down to 0, from where no factor leads back up.
        return jnp.clip(multiplier * jnp.exp(learning_rate * violation), SMALLEST, largest)
    return jnp.clip(multiplier + learning_rate * violation, 0, largest)


def adapt(multiplier: Scalar, divergence: Scalar, target: float, bounds: tuple[float, float]) -> Scalar:
    """λ ← 2λ when D > 1.5 ε, λ/2 when D < ε/1.5, within `bounds` (Schulman et al. 2017, section 4)."""
    doubled = jnp.where(divergence > 1.5 * target, 2 * multiplier, multiplier)
    adapted = jnp.where(divergence < target / 1.5, multiplier / 2, doubled)
    return jnp.clip(adapted, *bounds)
