"""The types of a statement, of a section of statements, and of the problem that they are checked on."""

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
from klimb.tabular.transitions import following
from klimb.theory.enumeration import Trajectories
from klimb.theory.exact_batch import exact_batch
from klimb.theory.exact_gradient import fisher_matrix, policy_gradient
from klimb.theory.surrogate import gains, worst_gain
from klimb.types import Batch, Rollout

Relation = Literal["=", "≤"]
Sides = tuple[Array, Array]


class Problem(eqx.Module):
    """An MDP with an old and a new policy, a direction δ in the old one's parameters, and all short trajectories.

    Quantities that many statements use are cached: without that, sixty statements in one program would solve the same
    few linear systems hundreds of times.
    """

    mdp: TabularMDP
    logits: Float[Array, "S A"]
    new_logits: Float[Array, "S A"]
    direction: Float[Array, "S A"]
    trajectories: Trajectories

    @classmethod
    def random(cls, mdp: TabularMDP, seed: int = 0, *, step: float = 0.5) -> Problem:
        """Random softmax policies.

        mdp: the problem. seed: of NumPy's generator. step: distance of the new policy from the old one, in standard
        deviations of the logits, not negative.
        """
        rng = np.random.default_rng(seed)
        logits, change, direction = rng.normal(size=(3, *mdp.reward.shape))
        new_logits = logits + step * change
        return cls(mdp, jnp.asarray(logits), jnp.asarray(new_logits), jnp.asarray(direction), Trajectories.of(mdp))

    @property
    def old(self) -> SoftmaxTable:
        """The old policy, as a module."""
        return SoftmaxTable(self.logits)

    @property
    def pi(self) -> Float[Array, "S A"]:
        """π(a|s), the old policy's table."""
        return jax.nn.softmax(self.logits)

    @property
    def new(self) -> Float[Array, "S A"]:
        """π'(a|s), the new policy's table."""
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
        """Σ_t γᵗ p_π^t, of the old policy."""
        return self.mdp.occupancy(self.pi)

    @cached_property
    def new_occupancy(self) -> Float[Array, " S"]:
        """Σ_t γᵗ p_π'^t, of the new policy."""
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
        """C = max_s |E_{a∼π'} A^π|."""
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
        """F, the Fisher matrix of the old policy."""
        return fisher_matrix(self.mdp, self.old)

    @cached_property
    def remaining_advantages(self) -> Float[Array, "T S A"]:
        """A_t^π of the problem that stops after the trajectories' horizon, where T − t steps are left at time t."""

        def earlier(values: Array, _: None) -> tuple[Array, Array]:
            action_values = self.mdp.reward + self.mdp.gamma * following(self.mdp.transition, values)
            values = jnp.sum(self.pi * action_values, axis=1)
            return values, action_values - values[:, None]

        end = jnp.zeros(self.mdp.num_states, self.mdp.reward.dtype)
        return jax.lax.scan(earlier, end, length=self.trajectories.horizon, reverse=True)[1]

    @cached_property
    def rollout(self) -> Rollout:
        """All trajectories as one rollout whose last row ends every episode; log-probs are the old policy's."""
        paths = self.trajectories
        last = jnp.zeros(paths.state.shape, bool).at[-1].set(True)
        return Rollout(
            obs=paths.state,
            action=paths.action,
            log_prob=paths.log_prob(self.pi),
            reward=self.mdp.reward[paths.state, paths.action],
            terminated=last,
            truncated=jnp.zeros_like(last),
            successor=paths.next_state,
            valid=jnp.broadcast_to(paths.chance > 0, last.shape),
        )


@dataclass(frozen=True)
class Statement:
    """An equation or inequality of the theory, claimed for every element of two arrays.

    section: of the lectures. name: short, as `klimb verify` prints it. text: the formula. relation: between the sides.
    sides: computes (left, right) from a problem. needs_discount: the statement is for γ < 1 only.
    """

    section: str
    name: str
    text: str
    relation: Relation
    sides: Callable[..., Sides]
    needs_discount: bool = False


Decorator = Callable[[Callable[..., Sides]], Callable[..., Sides]]


class Section(list[Statement]):
    """The statements of one section, in order. `equal` and `at_most` are decorators that append a statement.

    Both take its name, its text (the formula) and options of `Statement` such as needs_discount.
    """

    def __init__(self, number: str) -> None:
        super().__init__()
        self.number = number

    def equal(self, name: str, text: str, **options: bool) -> Decorator:
        """Claims left = right of the sides that the decorated function computes. name, text, options: see the class."""
        return self._add(name, text, "=", **options)

    def at_most(self, name: str, text: str, **options: bool) -> Decorator:
        """Claims left ≤ right of the sides that the decorated function computes. name, text, options: see the class."""
        return self._add(name, text, "≤", **options)

    def _add(self, name: str, text: str, relation: Relation, **options: bool) -> Decorator:
        def register(sides: Callable[..., Sides]) -> Callable[..., Sides]:
            self.append(Statement(self.number, name, text, relation, sides, **options))
            return sides

        return register
