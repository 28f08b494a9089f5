"""The lectures' smallest continuous problem, in closed form: a gain k and a standard deviation σ.

s' = s + a, a ∼ N(k s, σ²), reward −½ s², s_0 ∼ N(0, 1), θ = (k, σ). For every γ the best policy is k = −1 with
σ → 0. The second moment of the state becomes m' = (1 + k)² m + σ² in each step, so that everything is finite where
γ (1 + k)² < 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Scalars = Float[np.ndarray, "..."] | float


@dataclass(frozen=True)
class LinearQuadratic:
    """J, ∇J and the Fisher matrix, for k and σ that are numbers or arrays of one shape.

    gamma: discount per step, in [0, 1). The methods take the policy's gain k, with γ (1 + k)² < 1, and its standard
    deviation sigma (σ), positive.
    """

    gamma: float

    def total_moment(self, k: Scalars, sigma: Scalars) -> Scalars:
        """M = Σ_t γᵗ E[s_t²] = (1 + γσ²/(1 − γ)) / (1 − γ(1 + k)²). k: gain. sigma: σ."""
        noise = self.gamma / (1 - self.gamma) * np.square(sigma)
        return (1 + noise) / self._contraction(k)

    def objective(self, k: Scalars, sigma: Scalars) -> Scalars:
        """J = −½ M; at best −½, which the first state costs under every policy. k: gain. sigma: σ."""
        return -0.5 * self.total_moment(k, sigma)

    def gradient(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """(∂J/∂k, ∂J/∂σ) = −γ/(1 − γ(1 + k)²) · ((1 + k) M, σ/(1 − γ)). k: gain. sigma: σ."""
        by_gain = (1 + np.asarray(k)) * self.total_moment(k, sigma)
        by_sigma = np.asarray(sigma) / (1 - self.gamma)
        return -self.gamma / self._contraction(k) * np.stack(np.broadcast_arrays(by_gain, by_sigma))

    def state_moment(self, k: Scalars, sigma: Scalars) -> Scalars:
        """E[s²] under the discounted state distribution: (1 − γ) M. k: gain. sigma: σ."""
        return (1 - self.gamma) * self.total_moment(k, sigma)

    def fisher(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """The diagonal of F, (E[s²]/σ², 2/σ²); the rest is 0, like a Gaussian's third moment. k: gain. sigma: σ."""
        moment = self.state_moment(k, sigma)
        return np.stack(np.broadcast_arrays(moment, 2.0)) / np.square(sigma)

    def natural_gradient(self, k: Scalars, sigma: Scalars) -> Float[np.ndarray, "2 ..."]:
        """F⁻¹ ∇J ∝ −((1 + k), ½ σ): along it (1 + k)/σ² is constant, for every γ. k: gain. sigma: σ."""
        return self.gradient(k, sigma) / self.fisher(k, sigma)

    def mean_kl(
        self, k: float, sigma: float, delta: Float[np.ndarray, "2 ..."], *, old_new: bool = True
    ) -> Float[np.ndarray, "..."]:
        """Mean KL between the policy at (k, σ) and the one at (k, σ) + δ, over the states of the first.

        k: gain. sigma: σ. delta: δ = (δ_k, δ_σ). old_new: KL(π_old‖π_new), else KL(π_new‖π_old).

        Returns ∞ for σ + δ_σ ≤ 0.
        """
        new_sigma = sigma + delta[1]
        positive_sigma = np.where(new_sigma > 0, new_sigma, 1)
        distance = self.state_moment(k, sigma) * np.square(delta[0])
        first, second = (sigma, positive_sigma) if old_new else (positive_sigma, sigma)
        kl = np.log(second / first) + (np.square(first) + distance) / (2 * np.square(second)) - 0.5
        return np.where(new_sigma > 0, kl, np.inf)

    def _contraction(self, k: Scalars) -> Scalars:
        """1 − γ(1 + k)², positive where everything is finite."""
        return 1 - self.gamma * np.square(1 + np.asarray(k))
