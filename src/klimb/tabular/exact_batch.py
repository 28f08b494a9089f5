"""The batch a rule would see with infinitely many samples: every (s, a), weighted by how often it happens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from klimb.improve.objectives import action_distribution
from klimb.tabular.mdp import TabularMDP
from klimb.types import Batch


def exact_batch(mdp: TabularMDP, policy: PyTree, *, one_hot: bool = False) -> Batch:
    """S·A rows with weight d^π(s) π(a|s), exact advantages A^π and targets V^π.

    `policy` maps a state number (int32), or a one-hot row `[S]` with `one_hot`, to a Categorical. Means over
    the batch are then exact expectations, so that the step that trains a robot can be checked on a table.
    """
    num_states, num_actions = mdp.num_states, mdp.num_actions
    state = jnp.repeat(jnp.arange(num_states), num_actions)
    action = jnp.tile(jnp.arange(num_actions), num_states)
    obs = jnp.eye(num_states, dtype=mdp.reward.dtype)[state] if one_hot else state
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
    )
