"""The batch a rule would see with infinitely many samples: every (s, a), weighted by its probability."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from klimb.policies.distributions import Categorical
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.tabular.mdp import TabularMDP
from klimb.types import Batch


@full_precision
def exact_batch(mdp: TabularMDP, policy: PyTree) -> Batch:
    """S·A rows with weight d^π(s) π(a|s), exact advantages A^π and targets V^π.

    Means over the batch are exact expectations, so that the step that trains a robot can be checked on a table.

    mdp: the problem. policy: maps a one-hot row `[S]`, or if it can't a state number, to a Categorical over the A
    actions.
    """
    num_states, num_actions = mdp.num_states, mdp.num_actions
    state = jnp.repeat(jnp.arange(num_states), num_actions)
    action = jnp.tile(jnp.arange(num_actions), num_states)
    one_hot = jnp.eye(num_states, dtype=mdp.reward.dtype)
    obs = one_hot[state] if reads_rows(policy, one_hot[0], num_actions) else state
    distribution = action_distribution(policy, obs)
    log_prob = distribution.log_prob(action)
    pi = jnp.exp(log_prob).reshape(num_states, num_actions)

    def rows(table: Array) -> Array:
        return jnp.broadcast_to(table, pi.shape).reshape(-1)

    return Batch(
        obs=obs,
        action=action,
        log_prob=log_prob,
        advantage=rows(mdp.advantages(pi)),
        value_target=rows(mdp.state_values(pi)[:, None]),
        weight=rows(mdp.state_distribution(pi)[:, None] * pi),
        gamma=mdp.gamma,
    )


def reads_rows(policy: PyTree, row: Array, num_actions: int) -> bool:
    """Whether the policy maps a one-hot row to a distribution over the actions.

    One-hot rows are tried first, because a network, whose normaliser broadcasts, also accepts a state number.

    policy: a callable pytree. row: one-hot, `[S]`. num_actions: A.
    """
    try:
        distribution = eqx.filter_eval_shape(policy, row)
    except (TypeError, ValueError, IndexError):
        return False
    return isinstance(distribution, Categorical) and distribution.logits.shape == (num_actions,)
