"""Time-varying linear-Gaussian controllers, and the maximum-entropy one around a plan."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.guided.planning.problem import Time
from klimb.guided.planning.small_matrices import inverse_root, solve_lower
from klimb.guided.planning.trajectory import Plan
from klimb.policies.distributions import HALF_LOG_2PI


class Samples(eqx.Module):
    """N paths of a controller. log_probs: log densities of `actions`, which are the samples before any clipping."""

    actions: Float[Array, "N T A"]
    states: Float[Array, "N T+1 D"]
    log_probs: Float[Array, "N T"]


class LinearGaussian(eqx.Module):
    """u_t ∼ N(û_t + K_t (x_t − x̂_t), Σ_t) with Σ_t = L_t L_tᵀ.

    Axes: T time steps, D state dimensions, A action dimensions, N paths. states: x̂, actions: û, gains: K,
    cholesky: L, lower triangular with a positive diagonal.
    """

    states: Float[Array, "T D"]
    actions: Float[Array, "T A"]
    gains: Float[Array, "T A D"]
    cholesky: Float[Array, "T A A"]

    @classmethod
    def around(cls, plan: Plan, temperature: float | Float[Array, ""] = 1.0) -> LinearGaussian:
        """The controller of Levine & Koltun 2013 around a plan: covariance temperature · Q_uu⁻¹.

        To second order around the path it minimises E[Σ cost] − temperature · entropy (nats).

        plan: one. temperature: positive, in units of the cost.

        Where the plan's Q_uu is not positive definite the covariance is NaN.
        """
        root, positive = inverse_root(plan.q_uu)
        root = jnp.where(positive[:, None, None], root, jnp.nan)
        scale = jnp.sqrt(jnp.asarray(temperature, root.dtype))
        return cls(plan.states[:-1], plan.actions, plan.gains, scale * root)

    @property
    def covariance(self) -> Float[Array, "T A A"]:
        """Σ = L Lᵀ, in action²."""
        return self.cholesky @ jnp.swapaxes(self.cholesky, -1, -2)

    def mean(self, t: Time, state: Float[Array, " D"]) -> Float[Array, " A"]:
        """The most probable action. t: time step, 0 to T − 1. state: x_t."""
        return self.actions[t] + self.gains[t] @ (state - self.states[t])

    def sample(self, key: PRNGKeyArray, t: Time, state: Float[Array, " D"]) -> Float[Array, " A"]:
        """A sample of the action. key: of the noise. t: time step, 0 to T − 1. state: x_t."""
        noise = jax.random.normal(key, self.actions.shape[1:], self.actions.dtype)
        return self.mean(t, state) + self.cholesky[t] @ noise

    def log_prob(self, t: Time, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        """Log density, in nats. t: time step, 0 to T − 1. state: x_t. action: u_t."""
        lower = self.cholesky[t]
        standard = solve_lower(lower, (action - self.mean(t, state))[:, None])[:, 0]
        return jnp.sum(-0.5 * jnp.square(standard) - jnp.log(jnp.diagonal(lower)) - HALF_LOG_2PI)

    def entropy(self) -> Float[Array, " T"]:
        """Entropy of the actions at each time step, in nats; the same in every state."""
        return jnp.sum(jnp.log(jnp.diagonal(self.cholesky, axis1=-2, axis2=-1)) + 0.5 + HALF_LOG_2PI, axis=-1)

    def rollout(
        self,
        key: PRNGKeyArray,
        dynamics: Callable[[Float[Array, " D"], Float[Array, " A"]], Float[Array, " D"]],
        initial_state: Float[Array, " D"],
        samples: int,
        *,
        limits: tuple[Float[Array, " A"], Float[Array, " A"]] | None = None,
    ) -> Samples:
        """Paths from one state.

        key: of the noise. dynamics: (state, action) ↦ successor. initial_state: x_0. samples: number of paths.
        limits: (low, high) that actions are clipped to for the dynamics; the result has the unclipped ones.
        """

        def advance(state: Array, row: tuple) -> tuple[Array, tuple]:
            """state: x_t. row: time step and key."""
            t, key = row
            action = self.sample(key, t, state)
            applied = action if limits is None else jnp.clip(action, *limits)
            return dynamics(state, applied), (state, action, self.log_prob(t, state, action))

        def path(key: PRNGKeyArray) -> tuple[Array, Array, Array]:
            times = jnp.arange(len(self.actions))
            last, rows = jax.lax.scan(advance, initial_state, (times, jax.random.split(key, len(times))))
            states, actions, log_probs = rows
            return jnp.concatenate([states, last[None]]), actions, log_probs

        states, actions, log_probs = jax.vmap(path)(jax.random.split(key, samples))
        return Samples(actions, states, log_probs)

    def kl(self, other: LinearGaussian, states: Float[Array, "N T D"]) -> Float[Array, " T"]:
        """E[KL(self(·|x_t) ‖ other(·|x_t))] at each time step over the given states x_t, in nats; exact in the actions.

        ½ (tr(Σ₂⁻¹Σ₁) + ‖L₂⁻¹(μ₁ − μ₂)‖² − A) + log det L₂ − log det L₁: only the distance of the means depends on
        the state.

        other: a controller of the same sizes. states: N samples of x_t for every t.
        """
        ratio = solve_lower(other.cholesky, self.cholesky)
        logs = jnp.log(jnp.diagonal(ratio, axis1=-2, axis2=-1))
        of_covariances = 0.5 * jnp.sum(jnp.square(ratio), axis=(1, 2)) - jnp.sum(logs + 0.5, axis=-1)

        means = jax.vmap(jax.vmap(lambda controller, t, x: controller.mean(t, x), (None, 0, 0)), (None, None, 0))
        times = jnp.arange(states.shape[1])
        difference = jnp.moveaxis(means(self, times, states) - means(other, times, states), 0, -1)
        distance = jnp.sum(jnp.square(solve_lower(other.cholesky, difference)), axis=1)
        return of_covariances + 0.5 * jnp.mean(distance, axis=-1)
