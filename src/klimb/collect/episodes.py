"""What a rollout says of the episodes that ended in it."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class EpisodeSummary(eqx.Module):
    """Episodes that ended during one rollout: how many, and their means (NaN when none ended).

    Scalars for one seed; host collectors give all K seeds at once, `seeds` = (K,).
    """

    count: Int[Array | np.ndarray, " *seeds"]
    mean_return: Float[Array | np.ndarray, " *seeds"]
    mean_length: Float[Array | np.ndarray, " *seeds"]
    faults: Int[Array | np.ndarray, " *seeds"] | None = None
    """How often an environment had to be started anew; None where they are compiled."""


def summarise(ended: Array, episode_return: Float[Array, "T N"], episode_length: Int[Array, "T N"]) -> EpisodeSummary:
    """Means over the rows where an episode `ended`; undiscounted returns, lengths in steps."""
    count = jnp.sum(ended)
    n = jnp.where(count > 0, count, jnp.nan).astype(episode_return.dtype)
    return EpisodeSummary(
        count=count,
        mean_return=jnp.sum(jnp.where(ended, episode_return, 0)) / n,
        mean_length=jnp.sum(jnp.where(ended, episode_length, 0)) / n,
    )


class EpisodeTally:
    """Episodes of host environments, K seeds of N copies each, across rollouts: where each copy stands in its own."""

    def __init__(self, num_seeds: int, num_envs: int) -> None:
        self._time = np.zeros((num_seeds, num_envs), np.int32)
        self._return = np.zeros((num_seeds, num_envs))

    def reset(self) -> None:
        """All copies at the start of an episode."""
        self._time[:] = 0
        self._return[:] = 0

    def capture(self) -> dict[str, list]:
        """As plain data."""
        return {"time": self._time.tolist(), "return": self._return.tolist()}

    def restore(self, captured: dict[str, list]) -> None:
        """The inverse. ValueError when it is of other seeds and copies."""
        time, total = np.array(captured["time"], np.int32), np.array(captured["return"], np.float64)
        if time.shape != self._time.shape or total.shape != self._time.shape:
            raise ValueError(f"{time.shape} environments where there are {self._time.shape}")
        self._time, self._return = time, total

    def count(
        self, reward: Float[np.ndarray, "T K N"], ended: Bool[np.ndarray, "T K N"], valid: Bool[np.ndarray, "T K N"]
    ) -> tuple[Int[np.ndarray, "T K N"], EpisodeSummary]:
        """The steps since each row's episode began, and what the episodes that ended in the rollout came to.

        Returns are summed in double precision, an episode at a time: one that is not finite spoils no other.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return self._count(reward, ended, valid)

    def _count(
        self, reward: Float[np.ndarray, "T K N"], ended: Bool[np.ndarray, "T K N"], valid: Bool[np.ndarray, "T K N"]
    ) -> tuple[Int[np.ndarray, "T K N"], EpisodeSummary]:
        num_steps = len(reward)
        # An episode ends with its last row; a row that only carries out a reset belongs to none.
        breaks = ended | ~valid
        rows = np.arange(num_steps, dtype=np.int32)[:, None, None]
        last = np.maximum.accumulate(np.where(breaks, rows, -1), axis=0)
        before = np.concatenate([np.full((1, *breaks.shape[1:]), -1, last.dtype), last[:-1]])
        time = np.where(before < 0, rows + self._time, rows - before - 1).astype(np.int32)
        self._time = np.where(breaks[-1], 0, time[-1] + 1).astype(np.int32)

        # Copy after copy, the rows of every episode are neighbours.
        copies = np.moveaxis(np.where(valid, reward, 0).astype(np.float64), 0, -1).reshape(-1, num_steps)
        copies[:, 0] += self._return.reshape(-1)
        cuts = np.moveaxis(breaks, 0, -1).reshape(-1, num_steps)
        starts = np.concatenate([np.ones((len(cuts), 1), bool), cuts[:, :-1]], axis=1).reshape(-1)
        sums = np.add.reduceat(copies.reshape(-1), np.flatnonzero(starts))
        total = sums[np.cumsum(starts) - 1].reshape(copies.shape)
        self._return = np.where(cuts[:, -1], 0, total[:, -1]).reshape(self._return.shape)

        over = ended & valid
        count = over.sum((0, 2))
        n = np.where(count > 0, count, np.nan)
        episode_return = np.moveaxis(total.reshape(*over.shape[1:], num_steps), -1, 0)
        return time, EpisodeSummary(
            count=count.astype(np.int32),
            mean_return=(np.where(over, episode_return, 0).sum((0, 2)) / n).astype(np.float32),
            mean_length=(np.where(over, time + 1, 0).sum((0, 2)) / n).astype(np.float32),
        )
