"""Finite Markov decision processes: exact values, advantages, state distributions and J, by linear algebra."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class TabularMDP(eqx.Module):
    """S states, A actions, discount γ < 1. Differentiable in everything, so ∇J is autodiff of `objective`.

    transition: p(s'|s, a), rows sum to one. reward: r(s, a). initial: ρ(s). A policy is its table of
    probabilities π(a|s), `[S, A]`.
    """

    transition: Float[Array, "S A S"]
    reward: Float[Array, "S A"]
    initial: Float[Array, " S"]
    gamma: float = eqx.field(static=True)

    def __init__(self, transition: Array, reward: Array, initial: Array, gamma: float) -> None:
        """Raises ValueError, naming the row and the number, when the arrays are not an MDP."""
        _check(np.asarray(transition), np.asarray(reward), np.asarray(initial), gamma)
        self.transition, self.reward = jnp.asarray(transition), jnp.asarray(reward)
        self.initial, self.gamma = jnp.asarray(initial), float(gamma)

    @property
    def num_states(self) -> int:
        """S."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.reward.shape[1]

    def state_transition(self, pi: Float[Array, "S A"]) -> Float[Array, "S S"]:
        """p(s'|s) under π."""
        return jnp.einsum("sa,sat->st", pi, self.transition)

    def state_values(self, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
        """V^π: the solution of V = r_π + γ P_π V."""
        identity = jnp.eye(self.num_states, dtype=self.reward.dtype)
        return jnp.linalg.solve(
            identity - self.gamma * self.state_transition(pi), jnp.einsum("sa,sa->s", pi, self.reward)
        )

    def action_values(self, pi: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """Q^π(s, a) = r(s, a) + γ Σ p(s'|s, a) V^π(s')."""
        return self.reward + self.gamma * self.transition @ self.state_values(pi)

    def advantages(self, pi: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """A^π = Q^π − V^π; Σ_a π A = 0 in every state."""
        return self.action_values(pi) - self.state_values(pi)[:, None]

    def objective(self, pi: Float[Array, "S A"]) -> Float[Array, ""]:
        """J(π) = E[Σ γᵗ r_t] from the initial distribution."""
        return self.initial @ self.state_values(pi)

    def state_distribution(self, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
        """d^π(s) = (1 − γ) Σ_t γᵗ p(s_t = s): discounted and normalised."""
        identity = jnp.eye(self.num_states, dtype=self.reward.dtype)
        flow = jnp.linalg.solve((identity - self.gamma * self.state_transition(pi)).T, self.initial)
        return (1 - self.gamma) * flow

    def state_marginals(self, pi: Float[Array, "S A"], horizon: int) -> Float[Array, "H S"]:
        """p(s_t = s) for t = 0 … horizon − 1."""
        step = self.state_transition(pi)

        def advance(marginal: Array, _: None) -> tuple[Array, Array]:
            return marginal @ step, marginal

        return jax.lax.scan(advance, self.initial, length=horizon)[1]


def _check(transition: np.ndarray, reward: np.ndarray, initial: np.ndarray, gamma: float) -> None:
    if reward.ndim != 2 or transition.shape != (*reward.shape, reward.shape[0]) or initial.shape != reward.shape[:1]:
        raise ValueError(
            f"transition {transition.shape}, reward {reward.shape} and initial {initial.shape} do not fit: "
            "they have to be [S, A, S], [S, A] and [S]"
        )
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma = {gamma} is outside [0, 1)")
    if not np.isfinite(reward).all():
        row = tuple(int(i) for i in np.argwhere(~np.isfinite(reward))[0])
        raise ValueError(f"reward{list(row)} = {reward[row]} is not finite")
    for name, table in (("transition", transition), ("initial", initial[None])):
        rows = table.reshape(-1, table.shape[-1])
        # Written so that a NaN counts as wrong.
        wrong = ~((np.abs(rows.sum(-1) - 1) <= 1e-6) & (rows >= 0).all(-1))
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            index = [int(i) for i in np.unravel_index(first, table.shape[:-1])] if name == "transition" else ""
            raise ValueError(
                f"{name}{index} is no probability distribution: its sum is {rows[first].sum():.6g}, "
                f"its smallest entry {rows[first].min():.6g}"
            )
