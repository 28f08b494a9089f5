"""Demonstrations as first guides: the action sequences that plans start from."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb.collect.demonstrations import Demonstrations
from klimb.policies.actions import Box


@dataclass(frozen=True, eq=False)
class DemonstratedActions:
    """What K demonstrated episodes did, as starting points of plans.

    first_obs: of each episode. actions: as the environment took them; after the end of an episode they are zero.
    scale: standard deviation of the demonstrations' observations, 1 where it is 0.
    """

    first_obs: Float[np.ndarray, "K O"]
    actions: Float[np.ndarray, "K T A"]
    scale: Float[np.ndarray, " O"]

    @classmethod
    def of(cls, demonstrations: Demonstrations, bounds: Box, horizon: int) -> DemonstratedActions:
        """The episodes' first `horizon` actions, clipped to the bounds.

        demonstrations: with the environment's observations and actions. bounds: of the actions. horizon: T, at least 1.
        """
        rows = len(demonstrations.reward)
        obs = demonstrations.obs.reshape(rows, -1)
        taken = np.clip(demonstrations.action.reshape(rows, -1), bounds.low, bounds.high)
        lengths = demonstrations.lengths
        begins = np.cumsum(lengths) - lengths
        actions = np.zeros((len(lengths), horizon, taken.shape[1]), np.float32)
        for episode, begin, length in zip(actions, begins, np.minimum(lengths, horizon), strict=True):
            episode[:length] = taken[begin : begin + length]
        deviation = obs.std(axis=0)
        return cls(obs[begins], actions, np.where(deviation > 0, deviation, 1).astype(obs.dtype))

    def nearest(self, obs: Float[Array, " *obs"], count: int) -> Float[Array, "R T A"]:
        """The actions of the episodes that began nearest to an observation, the nearest first; R = min(count, K).

        obs: where a plan starts. count: at least 1.
        """
        distance = jnp.sum(jnp.square((self.first_obs - obs.reshape(-1)) / self.scale), axis=1)
        _, episodes = jax.lax.top_k(-distance, min(count, len(self.actions)))
        return jnp.asarray(self.actions)[episodes]
