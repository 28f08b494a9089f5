"""The critic's values of a rollout's states, and how much of the value targets they explain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.policies.networks import Critic, state_values
from klimb.types import Rollout, weighted_mean


def values(critic: Critic, rollout: Rollout) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """V of every observation and of every true successor (meaningless, and not used, where terminated).

    The successor is the next row's observation unless the episode ended there, so the critic is evaluated a second
    time, for the successors that are kept, only if there are truncations.

    critic: V. rollout: `[T, N]` steps.
    """
    value = state_values(critic, rollout.obs)
    last = rollout.successor[-1:] if rollout.successor_step is None else rollout.successor[:1]
    following = jnp.concatenate([value[1:], state_values(critic, last)])

    def with_truncated_successors() -> Array:
        exact = rollout.with_successors(value, state_values(critic, rollout.successor))
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
