"""What a statement is, and what it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb.tabular.mdp import TabularMDP
from klimb.tabular.table import SoftmaxTable
from klimb.theory.enumeration import Trajectories
from klimb.theory.exact_batch import exact_batch
from klimb.theory.exact_gradient import fisher_matrix, policy_gradient
from klimb.theory.surrogate import gains, worst_gain
from klimb.types import Batch, Rollout

Relation = Literal["=", "≤"]
Sides = tuple[Array, Array]


class Problem(eqx.Module):
    """An MDP with an old and a new policy, a direction δ in the old one's parameters, and all short trajectories.

    What many statements speak of is computed when the first one does, and kept: a program of sixty statements
    would solve the same few linear systems hundreds of times.
    """

    mdp: TabularMDP
    logits: Float[Array, "S A"]
    new_logits: Float[Array, "S A"]
    direction: Float[Array, "S A"]
    trajectories: Trajectories

    @classmethod
    def random(cls, mdp: TabularMDP, seed: int = 0, *, step: float = 0.5) -> Problem:
        """Random softmax policies; `step` is how far, in standard deviations of the logits, the new one is away."""
        rng = np.random.default_rng(seed)
        logits, away, direction = rng.normal(size=(3, *mdp.reward.shape))
        new_logits = logits + step * away
        return cls(mdp, jnp.asarray(logits), jnp.asarray(new_logits), jnp.asarray(direction), Trajectories.of(mdp))

    @property
    def old(self) -> SoftmaxTable:
        """The policy that is improved."""
        return SoftmaxTable(self.logits)

    @property
    def pi(self) -> Float[Array, "S A"]:
        """Its table of probabilities."""
        return jax.nn.softmax(self.logits)

    @property
    def new(self) -> Float[Array, "S A"]:
        """The new policy's table."""
        return jax.nn.softmax(self.new_logits)

    @cached_property
    def values(self) -> Float[Array, " S"]:
        """V^π."""
        return self.mdp.state_values(self.pi)

    @cached_property
    def advantages(self) -> Float[Array, "S A"]:
        """A^π."""
        return self.mdp.advantages(self.pi)

    @cached_property
    def action_values(self) -> Float[Array, "S A"]:
        """Q^π."""
        return self.mdp.action_values(self.pi)

    @cached_property
    def objective(self) -> Float[Array, ""]:
        """J(π)."""
        return self.mdp.initial @ self.values

    @cached_property
    def occupancy(self) -> Float[Array, " S"]:
        """Σ_t γᵗ p_π^t."""
        return self.mdp.occupancy(self.pi)

    @cached_property
    def new_occupancy(self) -> Float[Array, " S"]:
        """The same under the new policy."""
        return self.mdp.occupancy(self.new)

    @cached_property
    def states(self) -> Float[Array, " S"]:
        """d^π, normalised."""
        return self.occupancy / jnp.sum(self.occupancy)

    @cached_property
    def gains(self) -> Float[Array, " S"]:
        """E_{a∼π'} A^π, state by state."""
        return gains(self.mdp, self.pi, self.new)

    @cached_property
    def worst_gain(self) -> Float[Array, ""]:
        """C."""
        return worst_gain(self.mdp, self.pi, self.new)

    @cached_property
    def slope(self) -> Float[Array, "S A"]:
        """∇J in the logits, by automatic differentiation."""
        return jax.grad(lambda logits: self.mdp.objective(jax.nn.softmax(logits)))(self.logits)

    @cached_property
    def new_states(self) -> Float[Array, " S"]:
        """d^π'."""
        return self.new_occupancy / jnp.sum(self.new_occupancy)

    @cached_property
    def batch(self) -> Batch:
        """The old policy's exact batch."""
        return exact_batch(self.mdp, self.old)

    @cached_property
    def gradient(self) -> Float[Array, " P"]:
        """∇J, by the policy gradient theorem."""
        return policy_gradient(self.mdp, self.old)

    @cached_property
    def fisher(self) -> Float[Array, "P P"]:
        """F."""
        return fisher_matrix(self.mdp, self.old)

    @cached_property
    def rollout(self) -> Rollout:
        """All trajectories as one rollout whose episodes end with its last row; log-probs are the old policy's."""
        paths = self.trajectories
        last = jnp.zeros(paths.state.shape, bool).at[-1].set(True)
        return Rollout(
            obs=paths.state,
            action=paths.action,
            log_prob=paths.log_prob(self.pi),
            reward=self.mdp.reward[paths.state, paths.action],
            terminated=last,
            truncated=jnp.zeros_like(last),
            next_obs=paths.next_state,
            valid=jnp.broadcast_to(paths.chance > 0, last.shape),
        )


@dataclass(frozen=True)
class Statement:
    """One line of the theory. `sides` computes left and right, of one shape: the relation holds element by element."""

    section: str
    name: str
    text: str
    relation: Relation
    sides: Callable[..., Sides]
    needs_discount: bool = False


Say = Callable[[Callable[..., Sides]], Callable[..., Sides]]


class Section(list[Statement]):
    """The statements of one section, in order; `equal` and `at_most` add the function that they decorate."""

    def __init__(self, number: str) -> None:
        super().__init__()
        self.number = number

    def equal(self, name: str, text: str, **options: bool) -> Say:
        """left = right."""
        return self._say(name, text, "=", **options)

    def at_most(self, name: str, text: str, **options: bool) -> Say:
        """left ≤ right."""
        return self._say(name, text, "≤", **options)

    def _say(self, name: str, text: str, relation: Relation, **options: bool) -> Say:
        def keep(sides: Callable[..., Sides]) -> Callable[..., Sides]:
            self.append(Statement(self.number, name, text, relation, sides, **options))
            return sides

        return keep
