"""The last K rollouts, with the log-probabilities of their actions under the last K policies, in bounded memory."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from klimb.policies.policy import action_distribution
from klimb.types import Mixture, Rollout


class History(eqx.Module):
    """A ring buffer of K slots. Slots not filled yet hold rows with `valid` False.

    rollouts: leaves `[K, T, N, ...]`. policies: their array leaves `[K, ...]`. log_prob: at `[k, j]` log π_k of the
    actions in slot j. policies and log_prob are None unless the mixture of the policies is needed. count: rollouts
    pushed so far.
    """

    rollouts: Rollout
    policies: PyTree
    log_prob: Float[Array, "K K T N"] | None
    count: Int[Array, ""]

    @classmethod
    def empty(cls, length: int, rollout: Any, policy: PyTree, *, keeps_policies: bool) -> History:
        """A history without rollouts.

        length: K. rollout, policy: arrays or `jax.ShapeDtypeStruct`s of the shapes to store. keeps_policies: whether
        policies and log-probabilities are stored.
        """

        def zeros(x: Any) -> Array:
            return jnp.zeros((length, *x.shape), x.dtype)

        shape = (length, length, *rollout.reward.shape)
        return cls(
            rollouts=jax.tree.map(zeros, rollout),
            policies=jax.tree.map(zeros, policy) if keeps_policies else None,
            log_prob=jnp.zeros(shape, rollout.log_prob.dtype) if keeps_policies else None,
            count=jnp.int32(0),
        )

    def push(self, rollout: Rollout, policy: PyTree, static: PyTree) -> History:
        """The history with the newest rollout in the place of the oldest.

        rollout: the newest. policy: the arrays of the policy that collected it. static: the rest of that policy.
        """
        length = len(self.rollouts.reward)
        slot = self.count % length
        rollouts = jax.tree.map(lambda slots, new: slots.at[slot].set(new), self.rollouts, rollout)
        if self.log_prob is None:
            return History(rollouts, None, None, self.count + 1)
        policies = jax.tree.map(lambda slots, new: slots.at[slot].set(new), self.policies, policy)

        def action_log_prob(arrays: PyTree, rows: Rollout) -> Array:
            """Log-probabilities of the actions in `rows` under the policy whose arrays are `arrays`."""
            distribution = action_distribution(eqx.combine(arrays, static), rows.obs, axes=2)
            return distribution.log_prob(rows.action)

        # Only new entries are computed: the new actions under every policy, and every action under the new policy.
        of_new_actions = jax.vmap(action_log_prob, (0, None))(policies, rollout)
        under_new_policy = jax.vmap(action_log_prob, (None, 0))(policy, rollouts)
        log_prob = self.log_prob.at[:, slot].set(of_new_actions).at[slot].set(under_new_policy)
        return History(rollouts, policies, log_prob, self.count + 1)

    def merged(self) -> Rollout:
        """All K rollouts as one: `[T, K·N, ...]`."""
        return jax.tree.map(merge_slots, self.rollouts)

    def mixture(self) -> Mixture | None:
        """The K policies' log-probabilities of every action of `merged()`; the filled slots have equal shares.

        None unless policies are stored.
        """
        if self.log_prob is None:
            return None
        length = len(self.log_prob)
        filled = jnp.minimum(self.count, length)
        dtype = self.log_prob.dtype
        share = jnp.where(jnp.arange(length) < filled, -jnp.log(filled.astype(dtype)), -jnp.inf)
        # The policy of an empty slot is all zeros, and its log-probabilities are arbitrary.
        log_prob = jnp.where(jnp.isneginf(share)[:, None, None, None], 0, self.log_prob)
        return Mixture(jax.vmap(merge_slots)(log_prob), share.astype(dtype))


def merge_slots(x: Array) -> Array:
    """`[K, T, N, ...]` → `[T, K·N, ...]`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
