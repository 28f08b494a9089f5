"""No step yet: a run that starts from another's policy first lets its critic learn what that policy is worth."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from klimb.improve.acceptance import update_info
from klimb.improve.objectives import action_distribution
from klimb.improve.rule import Rule
from klimb.types import Batch, Status, UpdateInfo


def step_unless(
    waiting: Bool[Array, ""], rule: Rule, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch
) -> tuple[PyTree, PyTree, UpdateInfo]:
    """The rule's step; while `waiting`, the policy and state as they are, with status CRITIC_WARMUP.

    With an untrained critic the first advantages are noise, and a trust region full of noise can undo a policy
    that was cloned or trained before.
    """
    arrays, static = eqx.partition(policy, eqx.is_array)

    def step() -> tuple[PyTree, PyTree, UpdateInfo]:
        new_policy, new_state, info = rule.step(key, policy, state, batch)
        return eqx.filter(new_policy, eqx.is_array), new_state, info

    extra = jax.eval_shape(step)[2].extra

    def wait() -> tuple[PyTree, PyTree, UpdateInfo]:
        here = action_distribution(policy, batch.obs)
        info = update_info(here, here, batch, Status.CRITIC_WARMUP)
        unknown = {name: info.extra.get(name, jnp.full(x.shape, jnp.nan, x.dtype)) for name, x in extra.items()}
        return arrays, state, eqx.tree_at(lambda i: i.extra, info, unknown)

    new_arrays, new_state, info = jax.lax.cond(waiting, wait, step)
    return eqx.combine(new_arrays, static), new_state, info
