"""One iteration of a rule that learns from demonstrations alone: no environment, no critic, one pass over them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from klimb.estimate.certificate import worst_states_and_errors
from klimb.improve.rule import OfflineRule
from klimb.improve.warm_up import take_step
from klimb.policies.policy import action_distribution
from klimb.training.diagnostics import Metrics, step_metrics
from klimb.types import Batch, Rollout, TrainState, Trajectory


def offline_iteration(
    state: TrainState, rule: OfflineRule, policy_static: PyTree, demonstrations: Rollout
) -> tuple[TrainState, Metrics]:
    """One pass over the demonstrations, for one seed: (state, metrics).

    state: before the pass. rule: what makes it. policy_static: the part of the policy that is no array.
    demonstrations: rows `[T, N]`.
    """
    key, key_step = jax.random.split(state.key)
    policy = eqx.combine(state.policy, policy_static)
    batch = demonstration_batch(policy, demonstrations, fraction_done=state.iteration / rule.max_epochs)
    policy, rule_state, info = take_step(rule, key_step, policy, state.rule_state, batch)
    state = eqx.tree_at(
        lambda s: (s.policy, s.rule_state, s.iteration, s.key),
        state,
        (eqx.filter(policy, eqx.is_array), rule_state, state.iteration + 1, key),
    )
    # Demonstrations have no returns of this policy, and predict no improvement.
    unknown = jnp.full((), jnp.nan)
    undefined = dict.fromkeys(("episode_return", "episode_length", "surrogate_gain"), unknown)
    metrics = {**step_metrics(info), **worst_states_and_errors(info), **undefined}
    return state, {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}


def demonstration_batch(policy: PyTree, demonstrations: Rollout, *, fraction_done: Array | float = 0.0) -> Batch:
    """Demonstrations as a rule that learns from them alone gets them, without advantages.

    policy: the one that is being cloned. demonstrations: rows `[T, N]`. fraction_done: of the training.
    """
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), demonstrations)
    zeros = jnp.zeros_like(rows.reward)
    return Batch(
        obs=demonstrations.inputs,
        action=rows.action,
        # Measured against the policy as it is: who the demonstrator was may not be known.
        log_prob=action_distribution(policy, demonstrations.inputs).log_prob(rows.action),
        advantage=zeros,
        value_target=zeros,
        weight=rows.valid.astype(zeros.dtype),
        trajectory=Trajectory(demonstrations),
        fraction_done=fraction_done,
    )
