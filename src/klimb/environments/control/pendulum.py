"""Pendulum-v1: swing a pendulum up with a torque too weak to lift it directly, and hold it there."""

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
class Pendulum(ClassicControl):
    """The same environment as Gymnasium's Pendulum-v1.

    Physics: angle θ from upright [rad], not wrapped, and rate θ̇ [rad/s]. Action: torque u [N m], clipped.

        θ̈ = 3g/(2ℓ) sin θ + 3/(m ℓ²) u
        reward = −(θ² + 0.1 θ̇² + 0.001 u²), θ wrapped to [−π, π], of the state *before* the step

    integrated by semi-implicit Euler (the new rate, clipped, moves the angle). The task never terminates.
    """

    id = "jax:Pendulum-v1"

    gravity: float = 10.0  # m/s²
    mass: float = 1.0  # kg
    length: float = 1.0  # m
    time_step: float = 0.05  # s
    max_torque: float = 2.0  # N m
    max_rate: float = 8.0  # rad/s
    initial_angle: float = math.pi  # rad, starts uniformly within ± this
    initial_rate: float = 1.0  # rad/s, likewise
    max_episode_steps: int = 200

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of (cos θ, sin θ, θ̇)."""
        high = np.array([1, 1, self.max_rate], np.float32)
        return gymnasium.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The box of torques u [N m]."""
        return gymnasium.spaces.Box(-self.max_torque, self.max_torque, (1,), np.float32)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 2"]:
        """θ and θ̇ uniform within ±`initial_angle` and ±`initial_rate`."""
        unit = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return unit * jnp.array([self.initial_angle, self.initial_rate])

    def dynamics(self, physics: Float[Array, " 2"], action: Float[Array, " 1"]) -> Float[Array, " 2"]:
        """The state one time step later.

        physics: (θ, θ̇). action: (u,).
        """
        angle, rate = physics
        acceleration = 3 * self.gravity / (2 * self.length) * jnp.sin(angle) + 3 / (
            self.mass * self.length**2
        ) * self._torque(physics, action)
        rate = jnp.clip(rate + self.time_step * acceleration, -self.max_rate, self.max_rate)
        return jnp.stack([angle + self.time_step * rate, rate])

    def reward(
        self, physics: Float[Array, " 2"], action: Float[Array, " 1"], successor: Float[Array, " 2"]
    ) -> Float[Array, ""]:
        """The reward of the state before the step.

        physics: (θ, θ̇) before the step. action: (u,). successor: is not used.
        """
        angle, rate = physics
        wrapped = angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
        torque = self._torque(physics, action)
        return -(jnp.square(wrapped) + 0.1 * jnp.square(rate) + 0.001 * jnp.square(torque))

    def observe(self, physics: Float[Array, " 2"]) -> Float[Array, " 3"]:
        """(cos θ, sin θ, θ̇)."""
        angle, rate = physics
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), rate])

    def terminal(self, physics: Float[Array, " 2"]) -> Bool[Array, ""]:
        """False: the task never ends."""
        return jnp.zeros((), bool)

    def unbounded(self) -> Pendulum:
        """The same with `max_torque` = ∞: no action is clipped."""
        return dataclasses.replace(self, max_torque=math.inf)

    def _torque(self, physics: Float[Array, " 2"], action: Float[Array, " 1"]) -> Float[Array, ""]:
        return jnp.clip(action[0].astype(physics.dtype), -self.max_torque, self.max_torque)
