"""The lectures' smallest continuous problem, in closed form: a gain k and a standard deviation σ.

s' = s + a, a ∼ N(k s, σ²), reward −½ s², s_0 ∼ N(0, 1), θ = (k, σ). For every γ the best policy is k = −1 with
σ → 0. Second moments go m' = (1 + k)² m + σ², so that everything is finite where γ (1 + k)² < 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Scalars = Float[np.ndarray, "..."] | float


@dataclass(frozen=True)
class LinearQuadratic:
    """J, ∇J and the Fisher matrix, for k and σ that are numbers or arrays of one shape."""

    gamma: float

    def total_moment(self, k: Scalars, sigma: Scalars) -> Scalars:
        """M = Σ_t γᵗ E[s_t²] = (1 + γσ²/(1 − γ)) / (1 − γ(1 + k)²)."""
        noise = self.gamma / (1 - self.gamma) * np.square(sigma)
        return (1 + noise) / self._room(k)

    def objective(self, k: Scalars, sigma: Scalars) -> Scalars:
        """J = −½ M; at best −½, from the first state, which is nobody's doing."""
        return -0.5 * self.total_moment(k, sigma)

    def gradient(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """(∂J/∂k, ∂J/∂σ) = −γ/(1 − γ(1 + k)²) · ((1 + k) M, σ/(1 − γ))."""
        by_gain = (1 + np.asarray(k)) * self.total_moment(k, sigma)
        return (
            -self.gamma / self._room(k) * np.stack(np.broadcast_arrays(by_gain, np.asarray(sigma) / (1 - self.gamma)))
        )

    def state_moment(self, k: Scalars, sigma: Scalars) -> Scalars:
        """E[s²] under the discounted state distribution: (1 − γ) M."""
        return (1 - self.gamma) * self.total_moment(k, sigma)

    def fisher(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """The diagonal of F, (E[s²]/σ², 2/σ²); off it F is 0, since a Gaussian's third moment is."""
        moment = self.state_moment(k, sigma)
        return np.stack(np.broadcast_arrays(moment, 2.0)) / np.square(sigma)

    def natural_gradient(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """F⁻¹ ∇J ∝ −((1 + k), ½ σ): along it (1 + k)/σ² never changes, whatever γ."""
        return self.gradient(k, sigma) / self.fisher(k, sigma)

    def mean_kl(
        self, k: float, sigma: float, delta: Float[np.ndarray, "2 ..."], *, old_new: bool = True
    ) -> Float[np.ndarray, "..."]:
        """Mean KL between the policy at (k, σ) and at (k, σ) + δ, over the states of the first; ∞ for σ + δ_σ ≤ 0."""
        new_sigma = sigma + delta[1]
        safe = np.where(new_sigma > 0, new_sigma, 1)
        distance = self.state_moment(k, sigma) * np.square(delta[0])
        first, second = (sigma, safe) if old_new else (safe, sigma)
        kl = np.log(second / first) + (np.square(first) + distance) / (2 * np.square(second)) - 0.5
        return np.where(new_sigma > 0, kl, np.inf)

    def _room(self, k: Scalars) -> Scalars:
        return 1 - self.gamma * np.square(1 + np.asarray(k))
