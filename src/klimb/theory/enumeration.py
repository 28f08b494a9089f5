"""All trajectories of a small problem with their probabilities, so that expectations are finite sums."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.errors import ConfigError
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.transitions import SparseTransition

MAX_COUNT = 4096
"""Trajectories that are enumerated at most."""


class Trajectories(eqx.Module):
    """All N trajectories of T steps, one per column. `chance` is ρ(s_0) Π p(s_{t+1}|s_t, a_t).

    The probability of a trajectory under π is its chance times Π π(a_t|s_t). Padding has chance 0.
    """

    state: Int[Array, "T N"]
    action: Int[Array, "T N"]
    next_state: Int[Array, "T N"]
    chance: Float[Array, " N"]

    @classmethod
    def of(cls, mdp: TabularMDP, *, max_length: int = 4, max_count: int = MAX_COUNT) -> Trajectories:
        """All trajectories of one length: the largest for which there are no more than `max_count`.

        mdp: the problem. max_length: steps, at least 1. max_count: columns of the result, at least 1; the rest is
        padding, so that many problems share one compiled program.

        Raises ConfigError when there are too many trajectories of a single step already.
        """
        successor, probability = _successors(mdp)
        steps: list[tuple[np.ndarray, ...]] = []
        last_state = np.flatnonzero(np.asarray(mdp.initial) > 0)
        chance = np.asarray(mdp.initial, float)[last_state]
        while len(steps) < max_length:
            # Every trajectory so far (its index is `parent`) with every action and possible successor.
            parent, action, outcome = np.nonzero(probability[last_state] > 0)
            if len(parent) > max_count:
                break
            state = last_state[parent]
            chance = chance[parent] * probability[state, action, outcome]
            last_state = successor[state, action, outcome]
            steps = [tuple(column[parent] for column in step) for step in steps]
            steps.append((state, action, last_state))
        if not steps:
            raise ConfigError(
                f"there are more than {max_count} trajectories of a single step: the problem is too large"
            )
        padding = max_count - len(chance)

        def column(i: int) -> Array:
            return jnp.asarray(np.stack([np.pad(step[i], (0, padding)) for step in steps]))

        return cls(column(0), column(1), column(2), jnp.asarray(np.pad(chance, (0, padding))))

    @property
    def horizon(self) -> int:
        """T."""
        return self.state.shape[0]

    def log_prob(self, pi: Float[Array, "S A"]) -> Float[Array, "T N"]:
        """log π(a_t|s_t), also of padding, whose weight is 0. pi: π(a|s)."""
        return jnp.log(pi[self.state, self.action])

    def probability(self, pi: Float[Array, "S A"]) -> Float[Array, " N"]:
        """p_π(τ); they sum to 1. pi: π(a|s)."""
        return self.chance * jnp.prod(pi[self.state, self.action], axis=0)


def _successors(mdp: TabularMDP) -> tuple[np.ndarray, np.ndarray]:
    """Successors and their probabilities, both `[S, A, K]`."""
    if isinstance(mdp.transition, SparseTransition):
        return np.asarray(mdp.transition.successor), np.asarray(mdp.transition.probability, float)
    probability = np.asarray(mdp.transition, float)
    return np.broadcast_to(np.arange(mdp.num_states), probability.shape), probability
