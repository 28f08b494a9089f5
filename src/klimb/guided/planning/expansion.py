"""Dynamics to first or second order and cost to second order around a path, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.guided.planning.problem import Path, Problem


class Expansion(eqx.Module):
    """Derivatives in z = (x, u) at every time step (axes: `klimb.guided.planning.problem.Path`).

    dynamics_zz is None for a Gauss-Newton model (iLQR), which takes the dynamics to first order only.
    """

    cost_z: Float[Array, "T Z"]
    cost_zz: Float[Array, "T Z Z"]
    dynamics_z: Float[Array, "T D Z"]
    dynamics_zz: Float[Array, "T D Z Z"] | None
    end_x: Float[Array, " D"]
    end_xx: Float[Array, "D D"]

    def finite_steps(self) -> Bool[Array, " S"]:
        """Whether the derivatives at each time step are finite; the last entry is for the final cost."""

        def finite_rows(rows: Array) -> Array:
            return jnp.all(jnp.isfinite(rows.reshape(len(rows), -1)), axis=-1)

        columns = (self.cost_z, self.cost_zz, self.dynamics_z, self.dynamics_zz)
        steps = jnp.all(jnp.stack([finite_rows(column) for column in columns if column is not None]), axis=0)
        end = jnp.all(jnp.isfinite(self.end_x)) & jnp.all(jnp.isfinite(self.end_xx))
        return jnp.append(steps, end)


def expand(problem: Problem, path: Path, *, second_order: bool) -> Expansion:
    """The derivatives along a path.

    problem: dynamics and costs. path: where. second_order: the second derivatives of the dynamics too (DDP instead of
    iLQR).
    """
    size = path.states.shape[-1]

    def in_z(function: Callable) -> Callable:
        return lambda t, z: function(t, z[:size], z[size:])

    cost, dynamics = in_z(problem.step_cost), in_z(problem.step)

    def derivatives(t: Array, z: Array) -> tuple:
        """t: time step. z: (x, u) there."""
        dynamics_zz = jax.jacfwd(jax.jacfwd(dynamics, 1), 1)(t, z) if second_order else None
        return jax.grad(cost, 1)(t, z), jax.hessian(cost, 1)(t, z), jax.jacfwd(dynamics, 1)(t, z), dynamics_zz

    times = jnp.arange(problem.horizon)
    z = jnp.concatenate([path.states[:-1], path.actions], axis=-1)
    cost_z, cost_zz, dynamics_z, dynamics_zz = jax.vmap(derivatives)(times, z)
    last = path.states[-1]
    end_x, end_xx = jax.grad(problem.end_cost)(last), jax.hessian(problem.end_cost)(last)
    return Expansion(cost_z, cost_zz, dynamics_z, dynamics_zz, end_x, end_xx)
