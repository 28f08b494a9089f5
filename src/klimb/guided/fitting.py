"""Models of an unknown environment, fitted to a batch of episodes: a quadratic one, and a mixture of linear ones on it.

Guided policy search was published with linear dynamics for every time step, fitted to the episodes of a few initial
conditions (Levine and Abbeel 2014). They need episodes that stay close together. Where every episode starts elsewhere,
one quadratic model of all rows explains more: on Reacher-v5 with a fresh policy and 64 episodes, R² on other episodes
is 0.95 for the changes of state (time-varying linear models: 0.16) and 0.76 for the reward (quadratic models for every
time step: 0.74). It is expanded around the states and actions of every episode, so that every episode is a separate
initial condition and its noise is the noise that occurred.

Where the dynamics differ from place to place, because of contacts, the mixture adds what the quadratic model leaves
unexplained, by a linear regression in each of several regions.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb.guided.paths import Paths
from klimb.guided.regression import mean_and_std, positive_part, ridge_regression

RIDGE = 1e-3
"""Strength of the ridge, enough in single precision for collinear regressors (cos² + sin² = 1)."""

REGIONAL_RIDGE = 1e-1
"""Strength of the ridge within a region, which has a share of the rows only."""

REGION_ITERATIONS = 20
"""Rounds in which the regions are fitted; they hardly move after ten."""


class QuadraticModel(eqx.Module):
    """y(z) = constant + linear (z − center) + ½ (z − center)ᵀ hessian (z − center).

    Axes: Z coordinates, Q targets. center, scale: mean and standard deviation of z. r2: R² of each target, in sample.
    """

    center: Float[Array, " Z"]
    scale: Float[Array, " Z"]
    constant: Float[Array, " Q"]
    linear: Float[Array, "Q Z"]
    hessian: Float[Array, "Q Z Z"]
    r2: Float[Array, " Q"]

    @classmethod
    def fit(
        cls, z: Float[Array, "B Z"], y: Float[Array, "B Q"], weight: Float[Array, " B"], strength: float = RIDGE
    ) -> QuadraticModel:
        """By ridge regression on the standardised coordinates and all products of two of them.

        z: coordinates. y: targets. weight: of each row, not negative; rows of weight 0 are ignored. strength: of the
        ridge, positive.
        """
        center, scale = mean_and_std(z, weight)
        standard = jnp.where(weight[:, None] > 0, (z - center) / scale, 0)
        i, j = np.triu_indices(z.shape[1])
        regressors = jnp.concatenate([standard, standard[:, i] * standard[:, j]], axis=-1)
        fit = ridge_regression(regressors, y, weight, strength)
        linear, products = jnp.split(fit.coefficients.T, [z.shape[1]], axis=-1)
        upper = jnp.zeros((y.shape[1], z.shape[1], z.shape[1]), z.dtype).at[:, i, j].set(products)
        hessian = (upper + jnp.swapaxes(upper, -1, -2)) / (scale * scale[:, None])
        return cls(center, scale, fit.constant, linear / scale, hessian, fit.r2)

    def __call__(self, z: Float[Array, " Z"]) -> Float[Array, " Q"]:
        """y(z). z: coordinates."""
        offset = z - self.center
        return self.constant + self.linear @ offset + 0.5 * (self.hessian @ offset) @ offset

    def slope(self, z: Float[Array, " Z"]) -> Float[Array, "Q Z"]:
        """dy/dz. z: coordinates."""
        return self.linear + self.hessian @ (z - self.center)

    def convex_cost(self, target: int = -1) -> Float[Array, "Z Z"]:
        """The convex curvature nearest to that of −y, in units of the standard deviations.

        Along a direction of negative curvature a linear-quadratic regulator would predict unbounded gains.

        target: which of the Q.
        """
        units = self.scale * self.scale[:, None]
        return positive_part(-self.hessian[target] * units) / units


class Regions(eqx.Module):
    """Linear regressions in K regions of z: y(z) = Σ_k share_k(z) (constant_k + linear_k (z − center)/scale).

    share_k(z) ∝ weight_k N(z; mean_k, diag std_k²), in standardised coordinates: a mixture of Gaussians.
    """

    center: Float[Array, " Z"]
    scale: Float[Array, " Z"]
    mean: Float[Array, "K Z"]
    std: Float[Array, "K Z"]
    log_weight: Float[Array, " K"]
    constant: Float[Array, "K Q"]
    linear: Float[Array, "K Q Z"]

    @classmethod
    def fit(cls, z: Float[Array, "B Z"], y: Float[Array, "B Q"], weight: Float[Array, " B"], count: int) -> Regions:
        """The mixture by expectation maximisation over z, and in each of its components a ridge regression of y.

        z: coordinates. y: targets. weight: of each row, not negative. count: of regions, K ≥ 1.
        """
        center, scale = mean_and_std(z, weight)
        standard = jnp.where(weight[:, None] > 0, (z - center) / scale, 0)
        # Spread over the rows in their order, which is that of the columns and of time.
        first = standard[jnp.asarray(np.linspace(0, len(z) - 1, count + 2)[1:-1].astype(int))]
        start = (first, jnp.ones_like(first), jnp.full((count,), -np.log(count), z.dtype))

        def refine(_: Array, gaussians: tuple) -> tuple:
            """gaussians: means, standard deviations and log weights."""
            share = jnp.where(weight[:, None] > 0, _shares(standard, *gaussians), 0) * weight[:, None]
            total = jnp.maximum(jnp.sum(share, axis=0), 1e-6)
            mean = (share.T @ standard) / total[:, None]
            square = (share.T @ jnp.square(standard)) / total[:, None]
            std = jnp.sqrt(jnp.maximum(square - jnp.square(mean), MIN_VARIANCE))
            return mean, std, jnp.log(total / jnp.sum(total))

        gaussians = jax.lax.fori_loop(0, REGION_ITERATIONS, refine, start)
        shares = _shares(standard, *gaussians) * weight[:, None]
        fits = jax.vmap(lambda share: ridge_regression(standard, y, share, REGIONAL_RIDGE))(shares.T)
        mean, std, log_weight = gaussians
        linear = jnp.swapaxes(fits.coefficients, -1, -2)
        return cls(center, scale, mean, std, log_weight, fits.constant, linear)

    def __call__(self, z: Float[Array, " Z"]) -> Float[Array, " Q"]:
        """y(z). z: coordinates."""
        standard = (z - self.center) / self.scale
        return self._share(standard) @ (self.constant + self.linear @ standard)

    def slope(self, z: Float[Array, " Z"]) -> Float[Array, "Q Z"]:
        """The slopes of the regions around z, weighted by their shares; how the shares change is left out.

        z: coordinates.
        """
        return jnp.tensordot(self._share((z - self.center) / self.scale), self.linear / self.scale, 1)

    def _share(self, standard: Float[Array, " Z"]) -> Float[Array, " K"]:
        return _shares(standard[None], self.mean, self.std, self.log_weight)[0]


MIN_VARIANCE = 1e-2
"""Smallest variance of a region, in units of the variance of all rows."""


def _shares(standard: Array, mean: Array, std: Array, log_weight: Array) -> Float[Array, "B K"]:
    """The share of each region in each row."""
    distance = jnp.sum(jnp.square((standard[:, None] - mean) / std), axis=-1)
    return jax.nn.softmax(log_weight - 0.5 * distance - jnp.sum(jnp.log(std), axis=-1), axis=-1)


class Dynamics(eqx.Module):
    """Change of the state and reward as a function of z = (state, action), fitted to paths.

    quadratic: of all rows; its targets are the changes of every dimension, and the reward. regions: of what it leaves
    unexplained; None for the quadratic model alone. r2: R² of each target, in sample, of both together.
    """

    quadratic: QuadraticModel
    regions: Regions | None
    r2: Float[Array, " Q"]

    @classmethod
    def fit(cls, paths: Paths, regions: int = 0, strength: float = RIDGE) -> Dynamics:
        """Fitted to all valid rows.

        paths: the data. regions: their number, 0 for none. strength: of the quadratic model's ridge, positive.
        """
        z, y = _rows(paths.coordinates), _rows(jnp.concatenate([paths.change, paths.reward[..., None]], axis=-1))
        weight = _rows(paths.valid).astype(z.dtype)
        quadratic = QuadraticModel.fit(z, y, weight, strength)
        if regions == 0:
            return cls(quadratic, None, quadratic.r2)
        rest = jnp.where(weight[:, None] > 0, y - jax.vmap(quadratic)(z), 0)
        local = Regions.fit(z, rest, weight, regions)
        unexplained = jnp.square(rest - jax.vmap(local)(z))
        _, std = mean_and_std(y, weight)
        share = weight / jnp.maximum(jnp.sum(weight), 1)
        r2 = jnp.where(quadratic.r2 != 0, 1 - share @ jnp.where(weight[:, None] > 0, unexplained, 0) / std**2, 0)
        return cls(quadratic, local, r2)

    def __call__(self, z: Float[Array, " Z"]) -> Float[Array, " Q"]:
        """The change of every state, and the reward. z: (x, u)."""
        return self.quadratic(z) if self.regions is None else self.quadratic(z) + self.regions(z)

    def slope(self, z: Float[Array, " Z"]) -> Float[Array, "Q Z"]:
        """Its derivative. z: (x, u)."""
        slope = self.quadratic.slope(z)
        return slope if self.regions is None else slope + self.regions.slope(z)

    @property
    def dynamics_r2(self) -> Float[Array, ""]:
        """Mean R² over the state dimensions that change."""
        r2 = self.r2[:-1]
        return jnp.sum(r2) / jnp.maximum(jnp.sum(r2 != 0), 1)


def _rows(columns: Array) -> Array:
    return columns.reshape(-1, *columns.shape[2:])
