"""Discounted sums of rewards along the time axis, cut at the ends of episodes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def rewards_to_go(
    reward: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    *,
    gamma: float | Array,
    bootstrap_value: Float[Array, "T N"] | None = None,
) -> Float[Array, "T N"]:
    """G_t = r_t + γ G_{t+1}, the rewards from t on (causality: what came before t is not t's doing).

    Where the data is cut off (truncated, or the last row without termination) the sum goes on with
    `bootstrap_value`, the value of the true successor of each row; without it, it stops there.
    """
    bootstrap = jnp.zeros_like(reward) if bootstrap_value is None else bootstrap_value
    tail = jnp.zeros_like(reward[-1]) if bootstrap_value is None else bootstrap_value[-1]

    def backwards(after: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        r, over, cut, value = row
        after = jnp.where(over, 0, jnp.where(cut, value, after))
        total = r + gamma * after
        return total, total

    _, total = jax.lax.scan(backwards, tail, (reward, terminated, truncated, bootstrap), reverse=True)
    return total


def total_returns(
    reward_to_go: Float[Array, "T N"], terminated: Bool[Array, "T N"], truncated: Bool[Array, "T N"]
) -> Float[Array, "T N"]:
    """The whole return of the episode each row belongs to: the reward-to-go of the episode's first row in the data.

    An episode that began before the data did counts from the first row on.
    """

    def forwards(first: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        value, begins = row
        first = jnp.where(begins, value, first)
        return first, first

    over = terminated | truncated
    begins = jnp.concatenate([jnp.ones_like(over[:1]), over[:-1]])
    _, total = jax.lax.scan(forwards, reward_to_go[0], (reward_to_go, begins))
    return total


def n_step_returns(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    *,
    gamma: float | Array,
    n_step: int,
) -> Float[Array, "T N"]:
    """r_t + … + γ^{n−1} r_{t+n−1} + γⁿ V(s_{t+n}); fewer steps where the episode or the data ends sooner."""
    cut = truncated.at[-1].set(True)

    def longer(_: Array, target: Array) -> Array:
        following = jnp.concatenate([target[1:], next_value[-1:]])
        after = jnp.where(terminated, 0, jnp.where(cut, next_value, following))
        return reward + gamma * after

    return jax.lax.fori_loop(0, n_step, longer, value)
