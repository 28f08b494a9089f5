"""The loop of a rule that learns from demonstrations alone: no environment, no critic, one pass an iteration."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from klimb.estimate.certificate import STEP
from klimb.improve.objectives import action_distribution
from klimb.improve.rule import OfflineRule
from klimb.training import Metrics, step_metrics
from klimb.types import Batch, Rollout, TrainState


def study(
    state: TrainState, rule: OfflineRule, policy_static: PyTree, demonstrations: Rollout
) -> tuple[TrainState, Metrics]:
    """One pass over the demonstrations, for one seed. `policy_static` is the part of the policy that is no array."""
    key, key_step = jax.random.split(state.key)
    policy = eqx.combine(state.policy, policy_static)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), demonstrations)
    zeros = jnp.zeros_like(rows.reward)
    batch = Batch(
        obs=rows.obs,
        action=rows.action,
        # Measured against the policy as it is: who the demonstrator was may not be known.
        log_prob=action_distribution(policy, rows.obs).log_prob(rows.action),
        advantage=zeros,
        value_target=zeros,
        weight=rows.valid.astype(zeros.dtype),
        rollout=demonstrations,
        progress=state.iteration / rule.max_epochs,
    )
    policy, rule_state, info = rule.step(key_step, policy, state.rule_state, batch)
    state = eqx.tree_at(
        lambda s: (s.policy, s.rule_state, s.iteration, s.key),
        state,
        (eqx.filter(policy, eqx.is_array), rule_state, state.iteration + 1, key),
    )
    # There are no rewards to speak of: no returns, and nothing promised or kept.
    unknown = jnp.full((), jnp.nan)
    moved = {name: info.extra[name] for name in STEP if name in info.extra and name != "surrogate_gain_se"}
    nothing = dict.fromkeys(("episode_return", "episode_length", "surrogate_gain"), unknown)
    metrics = {**step_metrics(info), **moved, **nothing}
    return state, {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}
