"""Finite Markov decision processes: exact values, advantages, state distributions and J, by linear algebra."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from klimb.tabular import problems
from klimb.tabular.transitions import Numbers, SparseTransition, advance, following, solve, solve_flow
from klimb.tabular.transitions import state_transition as step_of
from klimb.tabular.validity import absorbing_states, require_mdp, require_proper, require_reachable_end


class TabularMDP(eqx.Module):
    """S states, A actions, discount γ. Differentiable in everything, so ∇J is autodiff of `objective`.

    transition: p(s'|s, a), rows sum to one: a table, or a `SparseTransition` where S² numbers are too many.
    reward: r(s, a). initial: ρ(s). absorbing: states that are never left and have reward 0, where an episode is
    over. gamma: γ, discount per step, in [0, 1]; 1 only where every state can reach an absorbing one.
    A policy is its table of probabilities π(a|s), `[S, A]`.
    """

    transition: Float[Array, "S A S"] | SparseTransition
    reward: Float[Array, "S A"]
    initial: Float[Array, " S"]
    absorbing: Bool[Array, " S"]
    gamma: float

    def __init__(self, transition: Numbers | SparseTransition, reward: Numbers, initial: Numbers, gamma: float) -> None:
        """Raises ValueError, naming the row and the number, when the arrays are not an MDP (see the class)."""
        require_mdp(transition, np.asarray(reward), np.asarray(initial), gamma)
        absorbing = absorbing_states(transition, np.asarray(reward))
        if gamma == 1:
            require_reachable_end(transition, absorbing)
        self.transition = jax.tree.map(jnp.asarray, transition)
        self.reward, self.initial = jnp.asarray(reward), jnp.asarray(initial)
        self.absorbing = jnp.asarray(absorbing)
        # A NumPy float is an array to `eqx.filter_jit`: another γ does not compile another program.
        self.gamma = np.float64(gamma)

    @classmethod
    def random(
        cls, seed: int, num_states: int, num_actions: int, gamma: float, *, successors: int | None = None
    ) -> TabularMDP:
        """Random transitions (Dirichlet(½)), rewards (standard normal) and first state (uniform on the simplex).

        seed: of NumPy's generator. num_states: S, at least 1. num_actions: A, at least 1. gamma: discount per step.
        successors: states that can follow each (s, a), from 1 to S; None for all of them.
        """
        return cls(*problems.random_parts(seed, num_states, num_actions, successors), gamma)

    @classmethod
    def chain(cls, num_states: int, gamma: float, *, slip: float = 0.1) -> TabularMDP:
        """Right and left along a line. It starts at its left end; going right at its right end has reward 1.

        Going left at the left end has reward 0.1, so that a short-sighted policy stays there.

        num_states: length of the line, at least 1. gamma: discount per step. slip: probability that the other action
        happens, in [0, 1].
        """
        return cls(*problems.chain_parts(num_states, slip), gamma)

    @classmethod
    def from_gymnasium(cls, env: str | Any, gamma: float, **options: Any) -> TabularMDP:
        """One of Gymnasium's toy-text environments, from its table `P`: FrozenLake-v1, Taxi-v4, CliffWalking-v1.

        States keep their numbers; those in which an episode ends become absorbing. Time limits are ignored.

        env: an id or an environment. gamma: discount per step. options: for `gymnasium.make`, with an id.

        Raises EnvironmentNotFound for an unknown id, ConfigError for an environment without a table.
        """
        return cls(*problems.gymnasium_parts(env, **options), gamma)

    @classmethod
    def finite_horizon(
        cls, transition: Numbers | SparseTransition, reward: Numbers, initial: Numbers, horizon: int, gamma: float = 1.0
    ) -> TabularMDP:
        """The problem that stops after `horizon` steps: state t·S + s at time t, and an absorbing end horizon·S.

        transition: p(s'|s, a). reward: r(s, a). initial: ρ(s). horizon: steps, at least 1. gamma: discount per step.

        Raises ValueError when the arrays are not an MDP.
        """
        require_mdp(transition, np.asarray(reward), np.asarray(initial), gamma)
        return cls(*problems.finite_horizon_parts(transition, reward, initial, horizon), gamma)

    @property
    def num_states(self) -> int:
        """S."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.reward.shape[1]

    def state_transition(self, pi: Float[Array, "S A"]) -> Float[Array, "S S"]:
        """p(s'|s) under π. pi: π(a|s)."""
        return step_of(self.transition, pi)

    def state_values(self, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
        """V^π: the solution of V = r_π + γ P_π V. pi: π(a|s). For γ = 1 ValueError when π does not end."""
        return solve(self.transition, self._continuation(pi), jnp.einsum("sa,sa->s", pi, self.reward))

    def action_values(self, pi: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """Q^π(s, a) = r(s, a) + γ Σ p(s'|s, a) V^π(s'). pi: π(a|s)."""
        return self.reward + self.gamma * following(self.transition, self.state_values(pi))

    def advantages(self, pi: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """A^π = Q^π − V^π; Σ_a π A = 0 in every state. pi: π(a|s)."""
        value = self.state_values(pi)
        # The mean value cancels. Subtracting it first also removes its rounding error, the largest one for γ → 1.
        relative = self.reward + self.gamma * following(self.transition, value - jnp.mean(value))
        return relative - jnp.sum(pi * relative, axis=1, keepdims=True)

    def objective(self, pi: Float[Array, "S A"]) -> Float[Array, ""]:
        """J(π) = E[Σ γᵗ r_t] from the initial distribution. pi: π(a|s)."""
        return self.initial @ self.state_values(pi)

    def occupancy(self, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
        """Σ_t γᵗ p(s_t = s): discounted, summing to 1/(1 − γ). For γ = 1 the visits before the end. pi: π(a|s)."""
        flow = solve_flow(self.transition, self._continuation(pi), self.initial)
        return jnp.where((self.gamma == 1) & self.absorbing, 0, flow)

    def state_distribution(self, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
        """d^π(s) = (1 − γ) Σ_t γᵗ p(s_t = s): the occupancy, normalised. pi: π(a|s)."""
        occupancy = self.occupancy(pi)
        return occupancy / jnp.sum(occupancy)

    def state_marginals(self, pi: Float[Array, "S A"], horizon: int) -> Float[Array, "H S"]:
        """p(s_t = s) for t = 0 … horizon − 1.

        pi: π(a|s). horizon: steps, at least 1.
        """

        def next_marginal(marginal: Array, _: None) -> tuple[Array, Array]:
            return advance(self.transition, marginal[:, None] * pi), marginal

        return jax.lax.scan(next_marginal, self.initial, length=horizon)[1]

    def optimal_policy(self) -> Float[Array, "S A"]:
        """A policy of highest value in every state, by policy iteration (Howard 1960), not traceable.

        One action per state; the uniform distribution where no action is better than another. For γ = 1 the values of
        all policies have to be bounded, and the uniform one, where the iteration starts, has to end (else ValueError).
        """
        pi = jnp.full(self.reward.shape, 1 / self.num_actions, self.reward.dtype)
        tolerance = 100 * jnp.finfo(self.reward.dtype).eps
        while True:
            values = self.action_values(pi)
            gain = jnp.max(values, axis=1) - jnp.sum(pi * values, axis=1)
            better = gain > tolerance * (1 + jnp.max(jnp.abs(values)))
            if not bool(jnp.any(better)):
                return pi
            # Only where the value rises: changing between equally good actions could cycle for ever.
            greedy = jax.nn.one_hot(jnp.argmax(values, axis=1), self.num_actions, dtype=pi.dtype)
            pi = jnp.where(better[:, None], greedy, pi)

    def _continuation(self, pi: Array) -> Array:
        """γ π(a|s); for γ = 1 it is 0 in absorbing states, where the linear system would be singular."""
        if not isinstance(self.gamma, jax.core.Tracer | jax.Array) and self.gamma == 1:
            require_proper(self.transition, self.absorbing, pi)
        return jnp.where((self.gamma == 1) & self.absorbing[:, None], 0, self.gamma * pi)
