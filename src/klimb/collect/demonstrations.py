"""Demonstrations: whole episodes that somebody has recorded, with what they were recorded from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num

from klimb.environments.registry import Environment
from klimb.errors import DemonstrationError
from klimb.policies.action_spec import ActionSpec
from klimb.types import Rollout

FOR_TRAINING = (
    "importance weights need them: klimb record without --deterministic keeps them, --demonstrator cloned "
    "estimates them, and data without any can be cloned (klimb train behaviour-cloning)"
)
"""What a training can do about demonstrations without log-probs."""


@dataclass(frozen=True)
class Demonstrations:
    """R rows of whole episodes, one after the other: every array has R rows, which is checked here.

    obs: before the step. action: in the environment's units, and for Gaussian policies not clipped. log_prob: of the
    action that was sampled, in nats; NaN where the demonstrator's probabilities are not known. reward: of the step.
    terminated, truncated: whether the episode ended with the step, or was cut off there. next_obs: the true successor.
    actions: the action space they were made for. environment: its name. source: where they are from, for messages.

    Raises DemonstrationError when the arrays are no whole, finite episodes.
    """

    obs: Num[np.ndarray, "..."]
    action: Num[np.ndarray, "..."]
    log_prob: Float[np.ndarray, "..."]
    reward: Float[np.ndarray, "..."]
    terminated: Bool[np.ndarray, "..."]
    truncated: Bool[np.ndarray, "..."]
    next_obs: Num[np.ndarray, "..."]
    actions: ActionSpec
    environment: str
    source: str = "the demonstrations"

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_finite()
        self._check_ends()
        self._check_actions()

    @cached_property
    def ended(self) -> Bool[np.ndarray, " R"]:
        """Rows that end an episode."""
        return self.terminated | self.truncated

    @property
    def num_episodes(self) -> int:
        return int(self.ended.sum())

    @cached_property
    def lengths(self) -> np.ndarray:
        """Steps of each episode."""
        return np.diff(np.flatnonzero(self.ended), prepend=-1)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode."""
        return np.add.reduceat(self.reward.astype(np.float64), np.cumsum(self.lengths) - self.lengths)

    def check_fit(self, environment: Environment) -> None:
        """DemonstrationError when observations or actions are not the environment's.

        environment: in which a policy is to learn from them.
        """
        shape = environment.observation_space.shape
        if self.obs.shape[1:] != shape:
            raise DemonstrationError(
                f"{self.source} was recorded on {self.environment} and has observations of shape "
                f"{self.obs.shape[1:]}; {environment.id} gives {shape}"
            )
        if not self.actions.fits(environment.actions):
            raise DemonstrationError(
                f"{self.source} was recorded on {self.environment} and has the actions {self.actions}; "
                f"{environment.id} takes {environment.actions}"
            )

    def check_log_probs(self, remedy: str = FOR_TRAINING) -> None:
        """DemonstrationError when the demonstrator's log-probs are missing or not finite.

        remedy: what stands behind it in the message.
        """
        good = np.isfinite(self.log_prob)
        if good.all():
            return
        first, wrong = int(np.flatnonzero(~good)[0]), int((~good).sum())
        what = "are missing" if np.isnan(self.log_prob[~good]).all() else f"are not finite ({self.log_prob[first]})"
        raise DemonstrationError(
            f"{self.source}: behaviour log-probs {what} in {wrong} of {len(good)} rows, the first is row {first}; "
            f"{remedy}"
        )

    def rollout(self, max_columns: int = 32) -> Rollout:
        """`[T, N]`: whole episodes packed into N columns of about the same length, padded with `valid` False.

        Longest first into the shortest column so far, which keeps the padding small. max_columns: the largest N.
        """
        columns: list[list[int]] = [[] for _ in range(min(max_columns, self.num_episodes))]
        filled = np.zeros(len(columns), int)
        for episode in np.argsort(-self.lengths, kind="stable"):
            shortest = int(np.argmin(filled))
            columns[shortest].append(int(episode))
            filled[shortest] += self.lengths[episode]
        start = np.cumsum(self.lengths) - self.lengths
        row = np.full((int(filled.max()), len(columns)), -1)
        for n, episodes in enumerate(columns):
            rows = np.concatenate([start[e] + np.arange(self.lengths[e]) for e in episodes])
            row[: len(rows), n] = rows
        valid = row >= 0
        time = np.arange(len(self.reward)) - np.repeat(start, self.lengths)

        def packed(column: np.ndarray) -> jax.Array:
            x = column[np.maximum(row, 0)]
            return jnp.asarray(np.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, np.zeros((), x.dtype)))

        terminated = packed(self.terminated)
        return Rollout(
            obs=packed(self.obs),
            action=packed(self.action),
            log_prob=packed(self.log_prob),
            reward=packed(self.reward),
            terminated=terminated,
            # An episode that terminates on the clock's last tick has terminated: its value is zero.
            truncated=packed(self.truncated) & ~terminated,
            successor=packed(self.next_obs),
            valid=jnp.asarray(valid),
            time=packed(time.astype(np.int32)),
        )

    def _check_shapes(self) -> None:
        for name in ("reward", "log_prob", "terminated", "truncated"):
            shape = getattr(self, name).shape
            if len(shape) != 1:
                raise DemonstrationError(
                    f"{self.source}: {name} has the shape {shape}; it has to be one number per row"
                )
        rows = len(self.reward)
        if rows == 0:
            raise DemonstrationError(f"{self.source} is empty: it has no steps")
        for name in ("obs", "action", "log_prob", "terminated", "truncated", "next_obs"):
            shape = getattr(self, name).shape
            if shape[:1] != (rows,):
                has = f"{shape[0]} rows" if shape else "no rows"
                raise DemonstrationError(f"{self.source}: {name} has {has}, reward has {rows}")
        if self.obs.shape != self.next_obs.shape:
            raise DemonstrationError(f"{self.source}: obs is {self.obs.shape} and next_obs {self.next_obs.shape}")

    def _check_finite(self) -> None:
        for name in ("obs", "action", "reward", "next_obs"):
            column = getattr(self, name)
            good = np.isfinite(column).reshape(len(column), -1).all(1)
            if not good.all():
                first = int(np.flatnonzero(~good)[0])
                raise DemonstrationError(
                    f"{self.source}: {name} of row {first} is not finite ({(~good).sum()} such rows)"
                )

    def _check_ends(self) -> None:
        rows = len(self.reward)
        if not self.ended[-1]:
            cut = rows - 1 - (int(np.flatnonzero(self.ended)[-1]) if self.ended.any() else -1)
            raise DemonstrationError(
                f"{self.source} is cut off: the last {cut} of its {rows} rows belong to an episode without an end; "
                "record it again, or leave these rows out"
            )

    def _check_actions(self) -> None:
        problem = self.actions.problem(self.action)
        if problem is not None:
            raise DemonstrationError(f"{self.source}: {problem}")
