"""The T-maze (Bakker 2002): what is seen in the first step says where to turn at the end of a corridor.

    klimb train trpo t_maze:TMaze --memory gru

A policy without memory sees the same at the junction whatever it saw at first: it turns right half of the time, and its
expected return is at most 0. One that remembers reaches 1.
"""

from __future__ import annotations

from typing import NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from klimb import CompiledEnvironment, Transition

ON, LEFT, RIGHT = 0, 1, 2


class Place(NamedTuple):
    """The cell, 0 to the corridor's length; whether left is the right turn; and the steps so far."""

    cell: Int[Array, ""]
    left: Bool[Array, ""]
    time: Int[Array, ""]


class TMaze(CompiledEnvironment):
    """Observations are (+1 or −1 in the first step and 0 later, whether this is the junction).

    Actions are to go on, to turn left, and to turn right. A turn at the junction ends the episode with 1 or −1; turning
    into a wall of the corridor, or going on at the junction, costs 0.1.
    """

    id = "t_maze:TMaze"
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    length = 20
    max_episode_steps = 80

    def reset(self, key: PRNGKeyArray) -> tuple[Place, Array]:
        place = Place(jnp.int32(0), jax.random.bernoulli(key), jnp.int32(0))
        return place, self._seen(place)

    def step(self, key: PRNGKeyArray, state: Place, action: Array) -> Transition:
        junction = state.cell == self.length
        turned, right = action != ON, jnp.where(state.left, action == LEFT, action == RIGHT)
        after = Place(state.cell + (~junction & ~turned), state.left, state.time + 1)
        at_wall = turned != junction
        reward = jnp.where(at_wall, -0.1, jnp.where(junction, jnp.where(right, 1.0, -1.0), 0.0))
        over = after.time >= self.max_episode_steps
        return Transition(after, self._seen(after), reward, junction & turned, over)

    def _seen(self, place: Place) -> Array:
        signal = jnp.where(place.time > 0, 0, jnp.where(place.left, 1, -1))
        return jnp.stack([signal, place.cell == self.length]).astype(jnp.float32)
