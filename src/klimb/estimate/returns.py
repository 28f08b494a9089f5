"""Discounted sums of rewards along the time axis, within episodes."""

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
    """G_t = r_t + γ G_{t+1}, the rewards from t on (causality: an action does not change the rewards before it).

    reward: r_t. terminated: the episode ended with this step. truncated: it was cut off there.
    gamma: discount per step, in [0, 1].
    bootstrap_value: V of the true successor of each row. It stands for the rewards not seen where the data is cut
    off (truncated, or the last row without termination); None for 0.
    """
    bootstrap = jnp.zeros_like(reward) if bootstrap_value is None else bootstrap_value
    last_bootstrap = jnp.zeros_like(reward[-1]) if bootstrap_value is None else bootstrap_value[-1]

    def accumulate(next_return: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        """next_return: G_{t+1}. row: reward, terminated, truncated and bootstrap value of step t."""
        reward, terminated, truncated, value = row
        next_return = jnp.where(terminated, 0, jnp.where(truncated, value, next_return))
        total = reward + gamma * next_return
        return total, total

    _, total = jax.lax.scan(accumulate, last_bootstrap, (reward, terminated, truncated, bootstrap), reverse=True)
    return total


def total_returns(
    reward_to_go: Float[Array, "T N"], terminated: Bool[Array, "T N"], truncated: Bool[Array, "T N"]
) -> Float[Array, "T N"]:
    """The whole return of the episode each row belongs to: the reward-to-go of the episode's first row in the data.

    An episode that began before the first row counts from the first row on.

    reward_to_go: G_t. terminated, truncated: the episode ends with this step.
    """

    def propagate(first: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """first: the return of the episode's first row. row: G_t, and whether an episode begins there."""
        value, begins = row
        first = jnp.where(begins, value, first)
        return first, first

    ended = terminated | truncated
    begins = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
    _, total = jax.lax.scan(propagate, reward_to_go[0], (reward_to_go, begins))
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
    """r_t + … + γ^{n−1} r_{t+n−1} + γⁿ V(s_{t+n}); fewer steps where the episode or the data ends sooner.

    reward: r_t. value: V(s_t). next_value: V of the true successors. terminated: the episode ended with this step.
    truncated: it was cut off there. gamma: discount per step, in [0, 1]. n_step: n, at least 1.
    """
    cut_off = truncated.at[-1].set(True)

    def one_step_more(_: Array, target: Array) -> Array:
        following = jnp.concatenate([target[1:], next_value[-1:]])
        after = jnp.where(terminated, 0, jnp.where(cut_off, next_value, following))
        return reward + gamma * after

    return jax.lax.fori_loop(0, n_step, one_step_more, value)
