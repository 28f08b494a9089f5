"""Rollouts as paths, one for every column, for methods that improve controllers along them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.types import Rollout


class Paths(NamedTuple):
    """A rollout with time along the second axis. Axes: N columns, T time steps, D observation dimensions, A actions.

    change: true successor − state. continues: whether the next row is looked ahead to; it is not where an episode, the
    rollout or the look-ahead ends, nor next to padding. outlook: where the value of the successor counts instead.
    Rows that are not `valid` hold zeros.
    """

    state: Float[Array, "N T D"]
    action: Float[Array, "N T A"]
    change: Float[Array, "N T D"]
    reward: Float[Array, "N T"]
    valid: Bool[Array, "N T"]
    continues: Bool[Array, "N T"]
    outlook: Bool[Array, "N T"]

    @classmethod
    def of(cls, rollout: Rollout, look_ahead: int | None = None) -> Paths:
        """The columns of a rollout as paths.

        rollout: `[T, N]`. look_ahead: steps after which a path is cut, at least 1, and goes on as another one; what
        comes after a cut is worth its value. None for paths of whole columns, after which nothing counts.
        """
        valid = rollout.valid

        def masked(column: Array) -> Array:
            mask = valid if column.ndim == 2 else valid[..., None]
            return jnp.swapaxes(jnp.where(mask, column, 0), 0, 1)

        next_valid = jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
        continues = valid & next_valid & ~(rollout.terminated | rollout.truncated)
        outlook = jnp.zeros_like(valid)
        if look_ahead is not None:
            last = jnp.arange(1, len(valid) + 1) % look_ahead == 0
            continues &= ~last[:, None]
            outlook = valid & ~continues & ~rollout.terminated
        return cls(
            state=masked(rollout.obs),
            action=masked(rollout.action),
            change=masked(rollout.next_obs - rollout.obs),
            reward=masked(rollout.reward),
            valid=valid.T,
            continues=continues.T,
            outlook=outlook.T,
        )

    @property
    def coordinates(self) -> Float[Array, "N T Z"]:
        """z = (state, action)."""
        return jnp.concatenate([self.state, self.action], axis=-1)

    @property
    def successor(self) -> Float[Array, "N T D"]:
        """The true successor of every state."""
        return self.state + self.change
