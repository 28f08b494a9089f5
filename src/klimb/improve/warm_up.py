"""Calling a rule's step: padding is zeroed before it, bounded parameters are kept within their bounds after it.

No step is taken while the critic warms up.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from klimb.improve.acceptance import choose, update_info
from klimb.improve.returned import require_step
from klimb.improve.rule import Rule
from klimb.policies.policy import action_distribution, within_bounds
from klimb.types import Batch, Status, UpdateInfo


def take_step(
    rule: Rule, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch
) -> tuple[PyTree, PyTree, UpdateInfo]:
    """`rule.step` on the batch with its rows of weight 0 set to zeros: (policy, state, info).

    Parameters that the step has moved beyond their bounds are put back to them (`within_bounds`), which changes neither
    the function that the policy computes nor its KL.

    rule: of any class. key, policy, state, batch: the arguments of `Rule.step`. WrongObject when it returns anything
    else than such a triple.
    """
    returned = rule.step(key, policy, state, batch.blank_padding())
    new_policy, new_state, info = require_step(rule, policy, state, returned)
    return within_bounds(new_policy), new_state, info


def step_unless(
    waiting: Bool[Array, ""] | bool, rule: Rule, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch
) -> tuple[PyTree, PyTree, UpdateInfo]:
    """`take_step`; while `waiting`, the unchanged policy and state with status CRITIC_WARMUP.

    With an untrained critic the first advantages are noise, and steps along noise can destroy a pretrained policy.

    waiting: whether this step is skipped; the Python value False if none ever is.
    rule, key, policy, state, batch: the arguments of `take_step`.
    """
    if waiting is False:
        return take_step(rule, key, policy, state, batch)
    arrays, static = eqx.partition(policy, eqx.is_array)

    def step() -> tuple[PyTree, PyTree, UpdateInfo]:
        new_policy, new_state, info = take_step(rule, key, policy, state, batch)
        return eqx.filter(new_policy, eqx.is_array), new_state, info

    shapes = jax.eval_shape(step)[2]

    def wait() -> tuple[PyTree, PyTree, UpdateInfo]:
        here = action_distribution(policy, batch.obs)
        info = update_info(here, here, batch, Status.CRITIC_WARMUP)
        unknown = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in shapes.extra.items()}
        errors = None if shapes.errors is None else info.errors
        return arrays, state, eqx.tree_at(lambda i: (i.extra, i.errors), info, (unknown, errors))

    # Both are computed: products of matrices are several times as slow inside of a conditional on CPUs.
    new_arrays, new_state, info = choose(jnp.asarray(waiting), wait(), step())
    return eqx.combine(new_arrays, static), new_state, info
