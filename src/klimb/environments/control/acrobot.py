"""Acrobot-v1: swing the tip of a two-link arm above a line, with a motor at the elbow only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from klimb.environments.base import ClassicControl
from klimb.environments.control.runge_kutta import runge_kutta


@dataclass(frozen=True)
class Acrobot(ClassicControl):
    """The same environment as Gymnasium's Acrobot-v1.

    Physics: angle θ₁ of the first link from hanging and θ₂ of the second from the first [rad], in [−π, π];
    their rates [rad/s]. Actions 0, 1, 2 are elbow torques −1, 0, 1 [N m] times `max_torque`.

        [d₁ d₂; d₂ d₃] (θ̈₁, θ̈₂) = (−φ₁, τ − φ₂ − c θ̇₁² sin θ₂)        c = m₂ ℓ₁ r₂
        d₁ = m₁ r₁² + m₂ (ℓ₁² + r₂²) + 2 I + 2 c cos θ₂        d₃ = m₂ r₂² + I        d₂ = d₃ + c cos θ₂
        φ₂ = m₂ r₂ g sin(θ₁ + θ₂)        φ₁ = (m₁ r₁ + m₂ ℓ₁) g sin θ₁ + φ₂ − c θ̇₂ (θ̇₂ + 2 θ̇₁) sin θ₂

    integrated by one Runge-Kutta step of fourth order. Source: Sutton & Barto 1998, section 11.3 (the
    "book" dynamics of Gymnasium). Reward −1 per step, 0 for the step that brings the tip above the line.
    """

    id = "jax:Acrobot-v1"

    gravity: float = 9.8  # m/s²
    mass_1: float = 1.0  # kg
    mass_2: float = 1.0  # kg
    length_1: float = 1.0  # m
    centre_1: float = 0.5  # m, from a link's joint to its centre of mass
    centre_2: float = 0.5  # m
    inertia: float = 1.0  # kg m², of each link
    max_torque: float = 1.0  # N m
    max_rate_1: float = 4 * math.pi  # rad/s
    max_rate_2: float = 9 * math.pi  # rad/s
    time_step: float = 0.2  # s
    initial_spread: float = 0.1  # every coordinate starts uniformly within ± this
    max_episode_steps: int = 500

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of (cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁, θ̇₂)."""
        high = np.array([1, 1, 1, 1, self.max_rate_1, self.max_rate_2], np.float32)
        return gymnasium.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """Torque −1, 0 or 1 on the elbow, as 0, 1, 2."""
        return gymnasium.spaces.Discrete(3)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 4"]:
        """Every coordinate uniform within ±`initial_spread`."""
        return jax.random.uniform(key, (4,), minval=-self.initial_spread, maxval=self.initial_spread)

    def dynamics(self, physics: Float[Array, " 4"], action: Int[Array, ""]) -> Float[Array, " 4"]:
        """The state one time step later.

        physics: (θ₁, θ₂, θ̇₁, θ̇₂). action: 0, 1 or 2.
        """
        torque = self.max_torque * (action.astype(physics.dtype) - 1)
        angle_1, angle_2, rate_1, rate_2 = runge_kutta(lambda x: self._rate(x, torque), physics, self.time_step)
        return jnp.stack(
            [
                _wrap(angle_1),
                _wrap(angle_2),
                jnp.clip(rate_1, -self.max_rate_1, self.max_rate_1),
                jnp.clip(rate_2, -self.max_rate_2, self.max_rate_2),
            ]
        )

    def reward(
        self, physics: Float[Array, " 4"], action: Int[Array, ""], successor: Float[Array, " 4"]
    ) -> Float[Array, ""]:
        """−1, or 0 when the tip ends above the line.

        physics, action: are not used. successor: the state after the step.
        """
        return self.terminal(successor).astype(successor.dtype) - 1

    def observe(self, physics: Float[Array, " 4"]) -> Float[Array, " 6"]:
        """(cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁, θ̇₂)."""
        angle_1, angle_2, rate_1, rate_2 = physics
        return jnp.stack([jnp.cos(angle_1), jnp.sin(angle_1), jnp.cos(angle_2), jnp.sin(angle_2), rate_1, rate_2])

    def terminal(self, physics: Float[Array, " 4"]) -> Bool[Array, ""]:
        """Whether the tip is more than one link's length above the first joint."""
        return -jnp.cos(physics[0]) - jnp.cos(physics[0] + physics[1]) > 1

    def _rate(self, physics: Float[Array, " 4"], torque: Float[Array, ""]) -> Float[Array, " 4"]:
        """The physics state's time derivative."""
        angle_1, angle_2, rate_1, rate_2 = physics
        sin, cos = jnp.sin(angle_2), jnp.cos(angle_2)
        c = self.mass_2 * self.length_1 * self.centre_2
        d3 = self.mass_2 * self.centre_2**2 + self.inertia
        d2 = d3 + c * cos
        d1 = self.mass_1 * self.centre_1**2 + self.mass_2 * self.length_1**2 + self.inertia + d3 + 2 * c * cos
        lever_1 = self.mass_1 * self.centre_1 + self.mass_2 * self.length_1
        phi2 = self.mass_2 * self.centre_2 * self.gravity * jnp.sin(angle_1 + angle_2)
        phi1 = lever_1 * self.gravity * jnp.sin(angle_1) + phi2 - c * rate_2 * (rate_2 + 2 * rate_1) * sin
        elbow = torque - phi2 - c * jnp.square(rate_1) * sin
        determinant = d1 * d3 - jnp.square(d2)
        acceleration_1 = -(d2 * elbow + d3 * phi1) / determinant
        acceleration_2 = (d1 * elbow + d2 * phi1) / determinant
        return jnp.stack([rate_1, rate_2, acceleration_1, acceleration_2])


def _wrap(angle: Float[Array, ""]) -> Float[Array, ""]:
    """The same angle in [−π, π]. The number of turns has the derivative 0."""
    return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
