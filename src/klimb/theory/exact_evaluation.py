"""Exact returns of a policy and of the best policy on a tabular problem, without sampling episodes."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from klimb.policies.distributions import Categorical
from klimb.policies.policy import action_distribution
from klimb.tabular.mdp import TabularMDP
from klimb.theory.exact_batch import reads_rows


class ExactReturn(NamedTuple):
    """Discounted returns from the first state: of the policy, of its most likely actions, and of the best policy."""

    sampled: float
    deterministic: float
    optimal: float


def policy_table(mdp: TabularMDP, policy: PyTree) -> Float[Array, "S A"]:
    """π(a|s) as a table.

    mdp: the problem. policy: reads one-hot rows or state numbers, as for `exact_batch`.
    """
    rows = jnp.eye(mdp.num_states, dtype=jnp.float32)
    obs = rows if reads_rows(policy, rows[0], mdp.num_actions) else jnp.arange(mdp.num_states)
    distribution = action_distribution(policy, obs)
    assert isinstance(distribution, Categorical)
    return distribution.probs


def exact_return(mdp: TabularMDP, policy: PyTree) -> ExactReturn:
    """Returns by linear algebra, in the precision of the problem's arrays.

    mdp: the problem. policy: reads one-hot rows or state numbers, as for `exact_batch`.
    """
    table = np.asarray(eqx.filter_jit(policy_table)(mdp, policy), np.asarray(mdp.reward).dtype)
    pi = jnp.asarray(table / table.sum(axis=1, keepdims=True))
    mode = jax.nn.one_hot(jnp.argmax(pi, axis=1), mdp.num_actions, dtype=pi.dtype)
    return ExactReturn(*(float(mdp.objective(x)) for x in (pi, mode, mdp.optimal_policy())))
