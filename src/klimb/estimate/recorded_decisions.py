"""What a policy would have done in recorded states: log-probs of the recorded actions, and actions of its own."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.errors import DemonstrationError
from klimb.policies.action_spec import ActionSpec
from klimb.policies.discrete_actions import Discrete
from klimb.policies.distributions import Categorical
from klimb.policies.memory import Memory, carry_size
from klimb.policies.networks import NetworkPolicy
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.types import Sequences

MAX_CHOICES = 64
"""Actions of a discrete space up to which expectations over the policy are sums over all of them."""
SAMPLES = 16
"""Samples of the policy in each state, in place of such a sum."""


class Decisions(NamedTuple):
    """R recorded steps, and the decisions of the evaluated policy in their states.

    log_prob: log π(a|s) of the recorded actions. action: these as D numbers, for a model of Q; of a discrete space
    one-hot. own, weight: M actions for every state, or the same ones for all (`[M, 1, D]`), and their weights:
    Σ_m weight_m f(s, own_m) is E_{a∼π} f(s, a), exactly for few discrete actions, and else without bias.
    """

    log_prob: Float[np.ndarray, " R"]
    action: Float[np.ndarray, "R D"]
    own: Float[np.ndarray, "M _ D"]
    weight: Float[np.ndarray, "M R"]


def decisions(policy: PyTree, demonstrations: Demonstrations, *, seed: int = 0) -> Decisions:
    """The decisions of a policy in recorded states. A policy with memory reads every episode from its start.

    policy: a callable pytree. demonstrations: of R rows. seed: of the policy's samples.

    Raises DemonstrationError when the policy is for other spaces, or its log-probs are not numbers.
    """
    require_same_spaces(policy, demonstrations)
    actions = demonstrations.actions
    read, row = _inputs(policy, demonstrations)
    recorded, summed = jnp.asarray(demonstrations.action), _is_summed(actions)
    of_recorded, probs, drawn = _of_policy(policy, read, row, recorded, summed, seed)
    log_prob, action = np.asarray(of_recorded, np.float64), as_numbers(actions, demonstrations.action)
    wrong = int(np.isnan(log_prob).sum())
    if wrong:
        raise DemonstrationError(
            f"{demonstrations.source}: the policy's log-probs are not numbers in {wrong} of {len(log_prob)} rows"
        )
    if probs is not None:
        return Decisions(log_prob, action, np.eye(action.shape[1])[:, None], np.asarray(probs, np.float64).T)
    own = as_numbers(actions, np.asarray(drawn).reshape(-1, *actions.shape)).reshape(SAMPLES, *action.shape)
    return Decisions(log_prob, action, own, np.full(own.shape[:2], 1 / SAMPLES))


def require_same_spaces(policy: PyTree, demonstrations: Demonstrations) -> None:
    """DemonstrationError when a policy was made for other observations or actions than were recorded.

    policy: only of klimb's own networks it is known what they were made for.
    """
    if not isinstance(policy, NetworkPolicy):
        return
    shape = demonstrations.obs.shape[1:]
    if policy.observations.shape != shape:
        raise DemonstrationError(
            f"{demonstrations.source} was recorded on {demonstrations.environment} and has observations of shape "
            f"{shape}; the policy reads {policy.observations.shape}"
        )
    if not policy.actions.fits(demonstrations.actions):
        raise DemonstrationError(
            f"{demonstrations.source} was recorded on {demonstrations.environment} and has the actions "
            f"{demonstrations.actions}; the policy has {policy.actions}"
        )


def as_numbers(actions: ActionSpec, action: np.ndarray) -> Float[np.ndarray, "R D"]:
    """Actions as rows of numbers: one-hot of a discrete space of at most `MAX_CHOICES` actions.

    actions: their space. action: `[R, *act]`.
    """
    if _is_summed(actions):
        return np.eye(actions.num_choices)[action]
    return action.reshape(len(action), -1).astype(np.float64)


def _is_summed(actions: ActionSpec) -> bool:
    return isinstance(actions, Discrete) and actions.n <= MAX_CHOICES


@eqx.filter_jit
@full_precision
def _of_policy(
    policy: PyTree, read: Array | Sequences, row: Array | None, action: Array, summed: bool, seed: int
) -> tuple[Array, Array | None, Array | None]:
    """(log-probs of recorded actions, probabilities of all actions, samples): of the last two one is None.

    read: what the policy reads. row: where the recorded rows stand in it; None for the same order.
    action: in the environment's units. summed: whether probabilities are wanted.
    """
    distribution = action_distribution(policy, read)
    if row is not None:
        distribution = jax.tree.map(lambda x: x[row], distribution)
    log_prob = distribution.log_prob(distribution.from_environment(action))
    if summed and isinstance(distribution, Categorical):
        return log_prob, distribution.probs, None
    noise = distribution.noise(jax.random.key(seed), (SAMPLES,))
    return log_prob, None, jax.vmap(lambda x: distribution.to_environment(distribution.sample_from(x)))(noise)


def _inputs(policy: PyTree, demonstrations: Demonstrations) -> tuple[Array | Sequences, Array | None]:
    """What a policy reads, and where the recorded rows stand in it; None for the same order."""
    memory = Memory(carry_size(policy))
    if memory.size is None:
        return jnp.asarray(demonstrations.obs), None
    number, lengths = demonstrations.num_episodes, demonstrations.lengths
    # With as many columns as episodes each has one of its own, the longest episode the first.
    rollout = demonstrations.rollout(number)
    carry = memory.empty(number)
    assert carry is not None
    column = np.empty(number, int)
    column[np.argsort(-lengths, kind="stable")] = np.arange(number)
    time = np.arange(len(demonstrations.reward)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row = time * number + np.repeat(column, lengths)
    return dataclasses.replace(rollout, carry=carry[None]).inputs, jnp.asarray(row)
