"""MountainCarContinuous-v0: rock an underpowered car out of a valley, with as little effort as possible."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from klimb.environments.base import ClassicControl


@dataclass(frozen=True)
class MountainCarContinuous(ClassicControl):
    """The same environment as Gymnasium's MountainCarContinuous-v0 (Moore 1990).

    Physics: position p and velocity v per step, in the task's own units; the track's height is sin 3p.

        v' = v + power · clip(u, ±1) − slope · cos 3p        p' = p + v'        both clipped
        reward = 100 [goal reached] − 0.1 u², of the action before clipping

    The left end is a wall at which the car stops. Gymnasium keeps this state in float32.
    """

    id = "jax:MountainCarContinuous-v0"

    power: float = 0.0015
    max_force: float = 1.0
    slope: float = 0.0025
    min_position: float = -1.2
    max_position: float = 0.6
    max_speed: float = 0.07
    goal_position: float = 0.45
    goal_velocity: float = 0.0
    initial_low: float = -0.6  # the car starts at rest, uniformly between these positions
    initial_high: float = -0.4
    max_episode_steps: int = 999

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of (p, v)."""
        low = np.array([self.min_position, -self.max_speed], np.float32)
        high = np.array([self.max_position, self.max_speed], np.float32)
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The box of forces u."""
        return gymnasium.spaces.Box(-self.max_force, self.max_force, (1,), np.float32)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 2"]:
        """At rest, uniformly between `initial_low` and `initial_high`."""
        position = jax.random.uniform(key, minval=self.initial_low, maxval=self.initial_high)
        return jnp.stack([position, jnp.zeros_like(position)])

    def dynamics(self, physics: Float[Array, " 2"], action: Float[Array, " 1"]) -> Float[Array, " 2"]:
        """The state one time step later.

        physics: (p, v). action: (u,).
        """
        position, velocity = physics
        force = jnp.clip(action[0].astype(physics.dtype), -self.max_force, self.max_force)
        velocity += self.power * force - self.slope * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -self.max_speed, self.max_speed)
        position = jnp.clip(position + velocity, self.min_position, self.max_position)
        velocity = jnp.where(position <= self.min_position, jnp.maximum(velocity, 0), velocity)
        return jnp.stack([position, velocity])

    def reward(
        self, physics: Float[Array, " 2"], action: Float[Array, " 1"], successor: Float[Array, " 2"]
    ) -> Float[Array, ""]:
        """100 for reaching the goal, less 0.1 u².

        physics: is not used. action: (u,) before clipping. successor: the state after the step.
        """
        arrived = self.terminal(successor).astype(successor.dtype)
        return 100 * arrived - 0.1 * jnp.square(action[0].astype(successor.dtype))

    def observe(self, physics: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """The state itself."""
        return physics

    def terminal(self, physics: Float[Array, " 2"]) -> Bool[Array, ""]:
        """Whether the car is at the goal with at least `goal_velocity`."""
        return (physics[0] >= self.goal_position) & (physics[1] >= self.goal_velocity)

    def unbounded(self) -> MountainCarContinuous:
        """The same with `max_force` = ∞: no action is clipped."""
        return dataclasses.replace(self, max_force=math.inf)
