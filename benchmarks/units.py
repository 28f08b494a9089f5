"""LinearQuadratic-v0 with its positions seen in other units, and a linear policy that starts at rest."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

import klimb
from klimb.environments.control.linear_quadratic import LinearQuadratic


@dataclass(frozen=True)
class InUnits(LinearQuadratic):
    """The same point mass and the same rewards; the two positions are observed in units of another length."""

    per_metre: float = 1.0
    """How many of the units a metre has: 100 for centimetres."""

    def observe(self, physics: Float[Array, " 4"]) -> Float[Array, " 4"]:
        return physics * jnp.array([self.per_metre, self.per_metre, 1.0, 1.0])


def at_rest(observations: klimb.ObservationSpec, actions: klimb.ActionSpec, key: PRNGKeyArray) -> klimb.NetworkPolicy:
    """A linear Gaussian policy whose weights and biases are 0, which makes it the same policy in all units."""
    policy = klimb.NetworkPolicy(observations, actions, hidden=(), key=key)
    return eqx.tree_at(lambda p: p.network.weights[0], policy, replace_fn=jnp.zeros_like)


def best_return(task: LinearQuadratic) -> float:
    """−tr(P Σ), what the best controller earns on average: P by the Riccati recursion, starts have mean 0."""
    A, B, Q, R = map(np.array, (task.transition, task.control, task.state_cost, task.action_cost))
    P = np.zeros_like(Q)
    for _ in range(task.max_episode_steps):
        gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ gain)
    return -float(np.trace(P @ np.array(task.initial_covariance)))
