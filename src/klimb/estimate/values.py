"""The critic's values of a rollout's states, and how much of the value targets they explain."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from klimb.policies.critic import Critic, state_values
from klimb.policies.memory import forget, part_carries
from klimb.types import Rollout, Sequences, weighted_mean


def values(critic: Critic, rollout: Rollout) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """V of every observation and of every true successor (meaningless, and not used, where terminated).

    The successor is the next row's observation unless the episode ended there, so the critic is evaluated a second
    time, for the successors that are kept, only if there are truncations.

    critic: V. rollout: `[T, N]` steps.
    """
    if critic.carry_size is not None:
        return _values_with_memory(critic, rollout)
    value = state_values(critic, rollout.obs)
    last = rollout.successor[-1:] if rollout.successor_step is None else rollout.successor[:1]
    following = jnp.concatenate([value[1:], state_values(critic, last)])

    def with_truncated_successors() -> Array:
        exact = rollout.with_successors(value, state_values(critic, rollout.successor))
        return jnp.where(rollout.truncated, exact, following)

    return value, jax.lax.cond(jnp.any(rollout.truncated), with_truncated_successors, lambda: following)


def remember(critic: Critic, rollout: Rollout, carry: PyTree) -> tuple[Rollout, PyTree]:
    """A rollout with what the critic remembers at the start of each of its parts, and what it remembers at its end.

    critic: V. rollout: `[T, N]` steps. carry: what it remembers at the start, `[N, G]`; () without memory.
    """
    if critic.carry_size is None:
        return rollout, carry
    assert rollout.carry is not None, "the policy has no memory"
    whole = dataclasses.replace(rollout, carry=rollout.carry[:1], critic_carry=carry[None])
    assert isinstance(whole.inputs, Sequences)
    _, carries = critic.replay(whole.inputs)
    parts = part_carries(carry, carries, len(rollout.carry))
    return dataclasses.replace(rollout, critic_carry=parts), forget(carries[-1], jnp.zeros(len(carry), bool))


def _values_with_memory(critic: Critic, rollout: Rollout) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """`values` of a critic that remembers: that of a successor follows from what it remembers after the step."""
    sequences = rollout.inputs
    assert isinstance(sequences, Sequences)
    rows, carries = critic.replay(sequences)
    shape = rollout.reward.shape
    value = rows.reshape(shape)
    after = sequences.in_rows(carries).reshape(*shape, -1)
    if rollout.successor_step is not None:
        # Where a column has fewer successors the step is T, and what comes of it is dropped.
        after = after[jnp.minimum(rollout.successor_step, shape[0] - 1), jnp.arange(shape[1])]
    first = slice(-1, None) if rollout.successor_step is None else slice(1)
    following = jnp.concatenate([value[1:], critic.values_after(rollout.successor[first], after[first])])

    def with_truncated_successors() -> Array:
        exact = rollout.with_successors(value, critic.values_after(rollout.successor, after))
        return jnp.where(rollout.truncated, exact, following)

    return value, jax.lax.cond(jnp.any(rollout.truncated), with_truncated_successors, lambda: following)


def explained_variance(
    value: Float[Array, " B"], target: Float[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """1 − Var(target − V)/Var(target): 1 for a perfect critic, 0 for a constant, negative for a worse one.

    value: V. target: value targets. weight: of each row, not negative. NaN where all targets are equal.
    """

    def variance(x: Array) -> Array:
        return weighted_mean(jnp.square(x - weighted_mean(x, weight)), weight)

    total = variance(target)
    return jnp.where(total > 0, 1 - variance(target - value) / jnp.where(total > 0, total, 1), jnp.nan)
