"""CartPole-v1: push a cart left or right to keep the pole on it upright."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from klimb.environments.base import ClassicControl


@dataclass(frozen=True)
class CartPole(ClassicControl):
    """The same environment as Gymnasium's CartPole-v1.

    Physics: cart position x [m] and velocity ẋ [m/s], pole angle θ from upright [rad] and rate θ̇ [rad/s].

        a = (F + m ℓ θ̇² sin θ) / M                                M = mass of cart and pole
        θ̈ = (g sin θ − a cos θ) / (ℓ (4/3 − m cos² θ / M))        ẍ = a − m ℓ θ̈ cos θ / M

    integrated by explicit Euler. Source: Barto, Sutton & Anderson 1983; equations of Florian 2007, without
    friction. The reward is 1 for every step, the last one included.
    """

    id = "jax:CartPole-v1"

    gravity: float = 9.8  # m/s²
    cart_mass: float = 1.0  # kg
    pole_mass: float = 0.1  # kg
    half_length: float = 0.5  # m, from the hinge to the pole's centre of mass
    force: float = 10.0  # N, to either side
    time_step: float = 0.02  # s
    position_limit: float = 2.4  # m
    angle_limit: float = 12 * 2 * math.pi / 360  # rad
    initial_spread: float = 0.05  # every coordinate starts uniformly within ± this
    max_episode_steps: int = 500

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        # Twice the limits, so that the observation that ends an episode is still inside.
        """The box of (x, ẋ, θ, θ̇)."""
        high = np.array([2 * self.position_limit, np.inf, 2 * self.angle_limit, np.inf], np.float32)
        return gymnasium.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """Push to the left or to the right, as 0, 1."""
        return gymnasium.spaces.Discrete(2)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 4"]:
        """Every coordinate uniform within ±`initial_spread`."""
        return jax.random.uniform(key, (4,), minval=-self.initial_spread, maxval=self.initial_spread)

    def dynamics(self, physics: Float[Array, " 4"], action: Int[Array, ""]) -> Float[Array, " 4"]:
        """The state one time step later.

        physics: (x, ẋ, θ, θ̇). action: 0 or 1.
        """
        position, velocity, angle, rate = physics
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        mass = self.cart_mass + self.pole_mass
        pole_moment = self.pole_mass * self.half_length
        force = jnp.where(action == 1, self.force, -self.force)
        push = (force + pole_moment * jnp.square(rate) * sin) / mass
        inertia = self.half_length * (4 / 3 - self.pole_mass / mass * jnp.square(cos))
        angular_acceleration = (self.gravity * sin - cos * push) / inertia
        acceleration = push - pole_moment / mass * angular_acceleration * cos
        return jnp.stack(
            [
                position + self.time_step * velocity,
                velocity + self.time_step * acceleration,
                angle + self.time_step * rate,
                rate + self.time_step * angular_acceleration,
            ]
        )

    def reward(
        self, physics: Float[Array, " 4"], action: Int[Array, ""], successor: Float[Array, " 4"]
    ) -> Float[Array, ""]:
        """1.

        physics, action, successor: are not used.
        """
        return jnp.ones((), successor.dtype)

    def observe(self, physics: Float[Array, " 4"]) -> Float[Array, " 4"]:
        """The state itself."""
        return physics

    def terminal(self, physics: Float[Array, " 4"]) -> Bool[Array, ""]:
        """Whether the cart or the pole is beyond its limit."""
        return (jnp.abs(physics[0]) > self.position_limit) | (jnp.abs(physics[2]) > self.angle_limit)
