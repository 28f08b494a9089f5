"""The last K rollouts, with the log-probabilities of their actions under the last K policies, in bounded memory."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from klimb.policies.policy import action_distribution
from klimb.types import Rollout


class History(eqx.Module):
    """A ring buffer of K slots. Slots not filled yet hold rows with `valid` False.

    rollouts: the leaves of a rollout behind an axis of K, with all successors. policies: their array leaves `[K, ...]`.
    log_prob: at `[k, j]` log π_k of the actions in slot j. policies and log_prob are None unless the mixture of the
    policies is needed. count: rollouts pushed so far.
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

        # Only new entries are computed: the new actions under every policy, and every action under the new policy.
        of_new_actions = jax.vmap(lambda arrays: action_log_prob(arrays, static, rollout))(policies)
        under_new_policy = jax.vmap(lambda rows: action_log_prob(policy, static, rows))(rollouts)
        log_prob = self.log_prob.at[:, slot].set(of_new_actions).at[slot].set(under_new_policy)
        return History(rollouts, policies, log_prob, self.count + 1)

    def merged(self) -> Rollout:
        """All K rollouts as one: `[T, K·N, ...]`."""
        return jax.tree.map(merge_slots, self.rollouts)

    def merged_log_prob(self) -> Float[Array, "K T M"]:
        """The K policies' log-probabilities of every action of `merged()`; those of an empty slot are arbitrary.

        Only where policies are stored.
        """
        assert self.log_prob is not None
        return jax.vmap(merge_slots)(self.log_prob)


def action_log_prob(arrays: PyTree, static: PyTree, rollout: Rollout) -> Float[Array, "T N"]:
    """Log-probabilities of a rollout's actions under a policy.

    arrays, static: of the policy. rollout: `[T, N]`.
    """
    distribution = action_distribution(eqx.combine(arrays, static), rollout.inputs)
    action = rollout.action.reshape(-1, *rollout.action.shape[2:])
    return distribution.log_prob(action).reshape(rollout.reward.shape)


def merge_slots(x: Array) -> Array:
    """`[K, T, N, ...]` → `[T, K·N, ...]`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
