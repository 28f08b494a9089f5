"""A policy of one's own with memory, for tests."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from klimb import Categorical


class Counting(eqx.Module):
    """A policy of one's own: its second logit is what it remembers, the steps since the episode began."""

    scale: jax.Array
    actions: int = eqx.field(static=True, default=3)
    carry_size: int = eqx.field(static=True, default=1)

    def __call__(self, obs):
        return self.step(obs, jnp.zeros(1))[0]

    def step(self, obs, carry):
        carry = carry + 1
        logits = [self.scale * obs[0], self.scale * carry[0], jnp.zeros(())]
        return Categorical(logits=jnp.stack(logits[: self.actions])), carry
