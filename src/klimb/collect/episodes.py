"""Returns and lengths of the episodes that end in a rollout."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class EpisodeSummary(eqx.Module):
    """The episodes that ended in one rollout.

    count: how many. mean_return, mean_length: undiscounted return and steps, NaN when none ended.
    Scalars for one seed; host collectors return all K seeds at once, `seeds` = (K,).
    """

    count: Int[Array | np.ndarray, " *seeds"]
    mean_return: Float[Array | np.ndarray, " *seeds"]
    mean_length: Float[Array | np.ndarray, " *seeds"]
    faults: Int[Array | np.ndarray, " *seeds"] | None = None
    """Number of restarts of environments after a fault; None for compiled environments."""
    late_rows: Int[Array | np.ndarray, " *seeds"] | None = None
    """Number of rows that late workers have not made; None where every worker makes all steps."""


def summarise(ended: Array, episode_return: Float[Array, "T N"], episode_length: Int[Array, "T N"]) -> EpisodeSummary:
    """The summary of one seed's rollout.

    ended: rows in which an episode ended. episode_return: undiscounted return of the episode up to each row.
    episode_length: its steps up to each row.
    """
    count = jnp.sum(ended)
    n = jnp.where(count > 0, count, jnp.nan).astype(episode_return.dtype)
    return EpisodeSummary(
        count=count,
        mean_return=jnp.sum(jnp.where(ended, episode_return, 0)) / n,
        mean_length=jnp.sum(jnp.where(ended, episode_length, 0)) / n,
    )


class EpisodeTally:
    """Returns and lengths of episodes that span rollouts, for K seeds of N copies of a host environment each."""

    def __init__(self, num_seeds: int, num_envs: int) -> None:
        self._time = np.zeros((num_seeds, num_envs), np.int32)
        self._return = np.zeros((num_seeds, num_envs))

    def reset(self) -> None:
        """Begin a new episode in every copy; running ones are forgotten."""
        self._time[:] = 0
        self._return[:] = 0

    def capture(self) -> dict[str, list]:
        """Times and returns of the running episodes, as plain data."""
        return {"time": self._time.tolist(), "return": self._return.tolist()}

    def restore(self, captured: dict[str, list]) -> None:
        """Continue from what `capture` returned. ValueError when it has other numbers of seeds or copies."""
        time, total = np.array(captured["time"], np.int32), np.array(captured["return"], np.float64)
        if time.shape != self._time.shape or total.shape != self._time.shape:
            raise ValueError(f"{time.shape} environments where there are {self._time.shape}")
        self._time, self._return = time, total

    def count(
        self,
        reward: Float[np.ndarray, "T K N"],
        ended: Bool[np.ndarray, "T K N"],
        valid: Bool[np.ndarray, "T K N"],
        made: Int[np.ndarray, " N"] | None = None,
    ) -> tuple[Int[np.ndarray, "T K N"], EpisodeSummary]:
        """The steps since each row's episode began, and the summary of the episodes that ended.

        reward: of each row. ended: rows in which an episode ended. valid: rows that are steps; the others are skipped.
        made: how many of the rows of each copy were made at all; None for all. The episode that runs after the last of
        them goes on in the next rollout.
        Returns are summed in double precision, each episode by itself, so that a non-finite one affects no other.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return self._count(reward, ended, valid, np.int32(len(reward)) if made is None else made.astype(np.int32))

    def _count(
        self,
        reward: Float[np.ndarray, "T K N"],
        ended: Bool[np.ndarray, "T K N"],
        valid: Bool[np.ndarray, "T K N"],
        made: Int[np.ndarray, " N"] | np.int32,
    ) -> tuple[Int[np.ndarray, "T K N"], EpisodeSummary]:
        num_steps = len(reward)
        rows = np.arange(num_steps, dtype=np.int32)[:, None, None]
        # An episode ends with its last row; a row that is not valid belongs to no episode, unless it was never made.
        breaks = ended | (~valid & (rows < made))
        last = np.maximum.accumulate(np.where(breaks, rows, -1), axis=0)
        before = np.concatenate([np.full((1, *breaks.shape[1:]), -1, last.dtype), last[:-1]])
        time = np.where(before < 0, rows + self._time, rows - before - 1).astype(np.int32)
        self._time = np.where(breaks[-1], 0, time[-1] + 1 - (num_steps - made)).astype(np.int32)

        # With time as the last axis, the rows of an episode are consecutive. For one copy whose episodes end in the
        # rows 1 and 4:   rewards       1  2 |  3  4  5        ends          0  1 |  0  0  1
        #                 starts        1  0 |  1  0  0        sums at 0, 2  3, 12
        #                 cumsum − 1    0  0 |  1  1  1        total         3  3 | 12 12 12
        rewards = np.moveaxis(np.where(valid, reward, 0).astype(np.float64), 0, -1).reshape(-1, num_steps)
        rewards[:, 0] += self._return.reshape(-1)
        ends = np.moveaxis(breaks, 0, -1).reshape(-1, num_steps)
        starts = np.concatenate([np.ones((len(ends), 1), bool), ends[:, :-1]], axis=1).reshape(-1)
        sums = np.add.reduceat(rewards.reshape(-1), np.flatnonzero(starts))
        total = sums[np.cumsum(starts) - 1].reshape(rewards.shape)
        self._return = np.where(ends[:, -1], 0, total[:, -1]).reshape(self._return.shape)

        finished = ended & valid
        count = finished.sum((0, 2))
        n = np.where(count > 0, count, np.nan)
        episode_return = np.moveaxis(total.reshape(*finished.shape[1:], num_steps), -1, 0)
        return time, EpisodeSummary(
            count=count.astype(np.int32),
            mean_return=(np.where(finished, episode_return, 0).sum((0, 2)) / n).astype(np.float32),
            mean_length=(np.where(finished, time + 1, 0).sum((0, 2)) / n).astype(np.float32),
        )
