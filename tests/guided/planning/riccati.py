"""Random linear-quadratic problems and their solution by the Riccati recursion, in NumPy: the oracle of planning."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb.guided.planning.problem import Problem


class LinearQuadratic(eqx.Module):
    """x' = A x + B u + c at a cost of ½ zᵀH z + hᵀz each step with z = (x, u), and ½ xᵀE x + eᵀx at the end."""

    a: Array
    b: Array
    c: Array
    h_matrix: Array
    h: Array
    e_matrix: Array
    e: Array

    def dynamics(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, " D"]:
        return self.a @ state + self.b @ action + self.c

    def cost(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        z = jnp.concatenate([state, action])
        return 0.5 * z @ self.h_matrix @ z + self.h @ z

    def end_cost(self, state: Float[Array, " D"]) -> Float[Array, ""]:
        return 0.5 * state @ self.e_matrix @ state + self.e @ state

    def problem(self, horizon: int, limits: tuple[Array, Array] | None = None) -> Problem:
        return Problem(self.dynamics, self.cost, horizon, self.b.shape[1], self.end_cost, limits)


def random_lq(rng: np.random.Generator, states: int, actions: int, dtype: str = "float64") -> LinearQuadratic:
    """Unstable now and then, always convex."""

    def positive(size: int) -> np.ndarray:
        root = rng.normal(size=(size, size))
        return root @ root.T / size + 0.1 * np.eye(size)

    a = np.eye(states) + 0.3 * rng.normal(size=(states, states)) / np.sqrt(states)
    b, c = rng.normal(size=(states, actions)), 0.3 * rng.normal(size=states)
    size = states + actions
    parts = (a, b, c, positive(size), rng.normal(size=size), positive(states), rng.normal(size=states))
    return LinearQuadratic(*(jnp.asarray(part, dtype) for part in parts))


class Solution(NamedTuple):
    actions: np.ndarray
    gains: np.ndarray
    q_uu: np.ndarray
    cost: float


def riccati(lq: LinearQuadratic, horizon: int, state: np.ndarray) -> Solution:
    """The optimal actions from a state, the gains and the curvature of the cost to go."""
    a, b, c, hh, h, p, v = (np.asarray(leaf) for leaf in (lq.a, lq.b, lq.c, lq.h_matrix, lq.h, lq.e_matrix, lq.e))
    d = len(a)
    policy = []
    for _ in range(horizon):
        q_uu, q_ux = hh[d:, d:] + b.T @ p @ b, hh[d:, :d] + b.T @ p @ a
        q_u, q_x = h[d:] + b.T @ (p @ c + v), h[:d] + a.T @ (p @ c + v)
        gain, k = -np.linalg.solve(q_uu, q_ux), -np.linalg.solve(q_uu, q_u)
        policy.append((gain, k, q_uu))
        p, v = hh[:d, :d] + a.T @ p @ a + q_ux.T @ gain, q_x + q_ux.T @ k
        p = 0.5 * (p + p.T)  # else rounding grows in the antisymmetric part
    gains, offsets, q_uus = (np.stack(part[::-1]) for part in zip(*policy, strict=True))
    actions, cost = [], 0.0
    for gain, k in zip(gains, offsets, strict=True):
        actions.append(gain @ state + k)
        z = np.concatenate([state, actions[-1]])
        cost += 0.5 * z @ hh @ z + h @ z
        state = a @ state + b @ actions[-1] + c
    end = 0.5 * state @ np.asarray(lq.e_matrix) @ state + np.asarray(lq.e) @ state
    return Solution(np.stack(actions), gains, q_uus, cost + end)


def condensed(lq: LinearQuadratic, horizon: int, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, g): the whole cost is ½ UᵀH U + gᵀU + constant in the actions U, [T A] flattened."""
    a, b, c, hh, h, ee, e = (np.asarray(leaf) for leaf in (lq.a, lq.b, lq.c, lq.h_matrix, lq.h, lq.e_matrix, lq.e))
    n = horizon * b.shape[1]
    map_x, at_zero, hessian, gradient = np.zeros((len(a), n)), state, np.zeros((n, n)), np.zeros(n)
    for t in range(horizon):
        pick = np.eye(n)[t * b.shape[1] : (t + 1) * b.shape[1]]
        map_z, z = np.concatenate([map_x, pick]), np.concatenate([at_zero, np.zeros(b.shape[1])])
        hessian, gradient = hessian + map_z.T @ hh @ map_z, gradient + map_z.T @ (hh @ z + h)
        map_x, at_zero = a @ map_x + b @ pick, a @ at_zero + c
    return hessian + map_x.T @ ee @ map_x, gradient + map_x.T @ (ee @ at_zero + e)
