"""A linear-quadratic task of two states and two actions, and steps of rules that learn along the paths of a rollout."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.linear_quadratic import LinearQuadratic
from klimb.improve.warm_up import take_step
from klimb.policies.actions import Box
from klimb.policies.networks import NetworkPolicy
from klimb.types import Batch, Rollout, Trajectory, UpdateInfo

STEPS, ENVS = 20, 24
# Nearly singular in its second input, unstable, and cheap to roll out.
ENVIRONMENT = LinearQuadratic.of(
    [[1.1, 0.2], [0.0, 0.9]], [[0.3, 0.0], [0.1, 0.3]], np.eye(2), 0.1 * np.eye(2), max_episode_steps=STEPS
)


def policy_of(key: int) -> NetworkPolicy:
    actions = Box((-1.0, -1.0), (1.0, 1.0))
    policy = NetworkPolicy(2, actions, hidden=(16,), initial_log_std=-0.7, key=jax.random.key(key))
    # Through NumPy, since a weakly typed log σ would have everything compiled twice.
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, policy)


def batch_of(rollout: Rollout) -> Batch:
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    zeros = jnp.zeros_like(rows.reward)
    weight = rows.valid.astype(zeros.dtype)
    return Batch(rows.obs, rows.action, rows.log_prob, zeros, zeros, weight, Trajectory(rollout))


@eqx.filter_jit
def collect(key: jax.Array, policy: NetworkPolicy) -> Rollout:
    collector = CompiledCollector(ENVIRONMENT, ENVS, STEPS)
    _, rollout, _ = collector.collect(key, policy, collector.init(key))
    return rollout


@eqx.filter_jit
def step(rule: Any, policy: NetworkPolicy, state: Any, batch: Batch) -> tuple[Any, Any, UpdateInfo]:
    return take_step(rule, jax.random.key(1), policy, state, batch)


def returns(policy: NetworkPolicy, key: int) -> float:
    return float(jnp.mean(jnp.sum(collect(jax.random.key(key), policy).reward, axis=0)))
