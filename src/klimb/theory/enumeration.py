"""Every trajectory of a small problem, with its probability: expectations as finite sums."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.errors import ConfigError
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.transitions import SparseTransition

MOST = 4096


class Trajectories(eqx.Module):
    """N trajectories of T steps, one a column: all that can happen. `chance` is ρ(s_0) Π p(s_{t+1}|s_t, a_t).

    The probability of a trajectory under π is its chance times Π π(a_t|s_t). Padding has chance 0.
    """

    state: Int[Array, "T N"]
    action: Int[Array, "T N"]
    next_state: Int[Array, "T N"]
    chance: Float[Array, " N"]

    @classmethod
    def of(cls, mdp: TabularMDP, *, longest: int = 4, most: int = MOST) -> Trajectories:
        """All trajectories of the greatest length, up to `longest` steps, of which there are no more than `most`.

        Padded to `most` columns, so that many problems share one program. Raises ConfigError when those of a
        single step are too many already.
        """
        successor, probability = _successors(mdp)
        layers: list[tuple[np.ndarray, ...]] = []
        here = np.flatnonzero(np.asarray(mdp.initial) > 0)
        chance = np.asarray(mdp.initial, float)[here]
        while len(layers) < longest:
            origin, action, way = np.nonzero(probability[here] > 0)
            if len(origin) > most:
                break
            before = here[origin]
            chance = chance[origin] * probability[before, action, way]
            here = successor[before, action, way]
            layers = [tuple(column[origin] for column in layer) for layer in layers]
            layers.append((before, action, here))
        if not layers:
            raise ConfigError(f"there are more than {most} trajectories of a single step: the problem is too large")
        padding = most - len(chance)

        def column(i: int) -> Array:
            return jnp.asarray(np.stack([np.pad(layer[i], (0, padding)) for layer in layers]))

        return cls(column(0), column(1), column(2), jnp.asarray(np.pad(chance, (0, padding))))

    @property
    def horizon(self) -> int:
        """T."""
        return self.state.shape[0]

    def log_prob(self, pi: Float[Array, "S A"]) -> Float[Array, "T N"]:
        """log π(a_t|s_t). Of padding too, which any weight of chance 0 leaves out."""
        return jnp.log(pi[self.state, self.action])

    def probability(self, pi: Float[Array, "S A"]) -> Float[Array, " N"]:
        """p_π(τ): sums to 1."""
        return self.chance * jnp.prod(pi[self.state, self.action], axis=0)


def _successors(mdp: TabularMDP) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(mdp.transition, SparseTransition):
        return np.asarray(mdp.transition.successor), np.asarray(mdp.transition.probability, float)
    probability = np.asarray(mdp.transition, float)
    return np.broadcast_to(np.arange(mdp.num_states), probability.shape), probability
