"""Where the first states of new episodes come from while a rollout is collected from a compiled environment."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from klimb.environments.base import CompiledEnvironment

BANKED_STEPS = 32
"""A bank holds one first state of a copy for so many of its steps."""

Reset = Callable[[Array], PyTree]
"""`reset` of N copies, from N keys: (states, observations)."""


class FirstStates(abc.ABC):
    """What copies begin with whose episode has ended.

    columns: what each step of the rollout gets of it, `[T, ...]`. count: what a scan carries of it.
    """

    columns: PyTree = None
    count: PyTree = None

    @abc.abstractmethod
    def at(self, column: PyTree, count: PyTree) -> PyTree:
        """(states, observations) for all N copies. column: of this step. count: as carried to it."""

    def after(self, count: PyTree, ended: Bool[Array, " N"]) -> PyTree:
        """What is carried on. count: as carried to the step. ended: whose episode has ended in it."""
        return count


class DrawnWithEachStep(FirstStates):
    """All copies are reset at every step, and what is not needed is thrown away.

    reset: of N copies. keys: `[T, N]`.
    """

    def __init__(self, reset: Reset, keys: Key[Array, "T N"]) -> None:
        self._reset, self.columns = reset, keys

    def at(self, column: PyTree, count: PyTree) -> PyTree:
        """As drawn in this step. column: N keys. count: is not used."""
        return self._reset(column)


class DrawnAhead(FirstStates):
    """The same states, drawn before the rollout: one program for all of them. For states of a few numbers.

    reset: of N copies. keys: `[T, N]`.
    """

    def __init__(self, reset: Reset, keys: Key[Array, "T N"]) -> None:
        self.columns = jax.vmap(reset)(keys)

    def at(self, column: PyTree, count: PyTree) -> PyTree:
        """As drawn for this step. column: the states. count: is not used."""
        return column


class Bank(FirstStates):
    """B first states of each copy, drawn before the rollout, one for BANKED_STEPS of its T steps.

    The b-th episode that a copy begins in a rollout starts in its b-th state. So no two episodes of a rollout start in
    the same one, unless more than B episodes of a copy end in it: from there on its states come again, in the same
    order. Every rollout has a bank of its own, so that each episode starts in a state of the right distribution.

    reset: of N copies. keys: `[T, N]`, of which the first B rows are used.
    """

    def __init__(self, reset: Reset, keys: Key[Array, "T N"]) -> None:
        steps, copies = keys.shape
        self._size = -(-steps // BANKED_STEPS)
        self._states = jax.vmap(reset)(keys[: self._size])
        self.count = jnp.zeros(copies, jnp.int32)

    def at(self, column: PyTree, count: PyTree) -> PyTree:
        """Each copy's next one. column: is not used. count: the states that each has taken."""
        # Under vmap: by an index of both axes compiled programs would send states from device to device.
        return jax.vmap(lambda states, k: jax.tree.map(lambda x: x[k], states), (1, 0))(
            self._states, count % self._size
        )

    def after(self, count: PyTree, ended: Bool[Array, " N"]) -> PyTree:
        """One more taken where an episode has ended. count: before. ended: where."""
        return count + ended


class TheSameAgain(FirstStates):
    """The states in which the rollout began. For rollouts of one episode of each copy: what follows it is not used.

    begun: (states, observations) of N copies.
    """

    def __init__(self, begun: PyTree) -> None:
        self._begun = begun

    def at(self, column: PyTree, count: PyTree) -> PyTree:
        """Where the copies began. column, count: are not used."""
        return self._begun


def first_states(environment: CompiledEnvironment, reset: Reset, keys: Key[Array, "T N"], begun: Any) -> FirstStates:
    """As the environment asks for it.

    environment: that is stepped. reset: of N copies. keys: `[T, N]`. begun: (states, observations) of the N copies at
    the start of a rollout of whole episodes; None for rollouts in which episodes end and begin.
    """
    # Both of the first two vmap what resets all copies.
    if environment.prefetch_resets and not environment.one_seed_at_once:
        return DrawnAhead(reset, keys)
    if not environment.bank_resets or environment.one_seed_at_once:
        return DrawnWithEachStep(reset, keys)
    return Bank(reset, keys) if begun is None else TheSameAgain(begun)
