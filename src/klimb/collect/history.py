"""The last K rollouts, with what each of the last K policies says of their actions: bounded memory, no lists."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from klimb.policies.policy import action_distribution
from klimb.types import Mixture, Rollout


class History(eqx.Module):
    """A ring of K slots. Slots not filled yet hold rows with `valid` False.

    rollouts: leaves `[K, T, N, ...]`. policies: their array leaves `[K, ...]`, and log_prob `[K, K, T, N]`, log π_k
    of the actions in slot j at `[k, j]`; both None unless the mixture of the policies is asked for.
    """

    rollouts: Rollout
    policies: PyTree
    log_prob: Float[Array, "K K T N"] | None
    count: Int[Array, ""]

    @classmethod
    def empty(cls, length: int, rollout: Any, policy: PyTree, *, keeps_policies: bool) -> History:
        """K = `length` slots for rollouts and policies of the given shapes (arrays or `jax.ShapeDtypeStruct`s)."""

        def slots(x: Any) -> Array:
            return jnp.zeros((length, *x.shape), x.dtype)

        shape = (length, length, *rollout.reward.shape)
        return cls(
            rollouts=jax.tree.map(slots, rollout),
            policies=jax.tree.map(slots, policy) if keeps_policies else None,
            log_prob=jnp.zeros(shape, rollout.log_prob.dtype) if keeps_policies else None,
            count=jnp.int32(0),
        )

    def push(self, rollout: Rollout, policy: PyTree, static: PyTree) -> History:
        """With the newest rollout and the arrays of the policy that collected it in the place of the oldest."""
        length = len(self.rollouts.reward)
        slot = self.count % length

        def put(slots: Array, new: Array) -> Array:
            return slots.at[slot].set(new)

        rollouts = jax.tree.map(put, self.rollouts, rollout)
        if self.log_prob is None:
            return History(rollouts, None, None, self.count + 1)
        policies = jax.tree.map(put, self.policies, policy)

        def asked(arrays: PyTree, rows: Rollout) -> Array:
            distribution = action_distribution(eqx.combine(arrays, static), rows.obs, axes=2)
            return distribution.log_prob(rows.action)

        # Only what is new is computed: the new actions under every policy, every action under the new policy.
        of_the_new = jax.vmap(asked, (0, None))(policies, rollout)
        by_the_new = jax.vmap(asked, (None, 0))(policy, rollouts)
        log_prob = self.log_prob.at[:, slot].set(of_the_new).at[slot].set(by_the_new)
        return History(rollouts, policies, log_prob, self.count + 1)

    def merged(self) -> Rollout:
        """All K rollouts side by side: `[T, K·N, ...]`."""
        return jax.tree.map(merge_slots, self.rollouts)

    def mixture(self) -> Mixture | None:
        """The K policies' log-probs of every action of `merged()`, in equal shares of those that there are."""
        if self.log_prob is None:
            return None
        length = len(self.log_prob)
        filled = jnp.minimum(self.count, length)
        dtype = self.log_prob.dtype
        share = jnp.where(jnp.arange(length) < filled, -jnp.log(filled.astype(dtype)), -jnp.inf)
        # An empty slot's policy is all zeros, and may say anything.
        log_prob = jnp.where(jnp.isneginf(share)[:, None, None, None], 0, self.log_prob)
        return Mixture(jax.vmap(merge_slots)(log_prob), share.astype(dtype))


def merge_slots(x: Array) -> Array:
    """`[K, T, N, ...]` → `[T, K·N, ...]`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
