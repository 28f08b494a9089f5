"""CartPoleSwingUp-v0: push a cart so that the pole hanging from it swings up, and hold it there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from klimb.environments.base import ClassicControl, Clocked
from klimb.environments.control.runge_kutta import runge_kutta
from klimb.environments.rendering.canvas import BLUE, INK, ORANGE, PAPER, Canvas


@dataclass(frozen=True)
class CartPoleSwingUp(ClassicControl):
    """A cart on an endless track and a uniform pole that starts hanging; differentiable everywhere.

    Physics: cart position x [m] and velocity ẋ [m/s], pole angle θ from upright [rad], not wrapped, and rate
    θ̇ [rad/s]. Action: force F on the cart [N].

        a = (F − b ẋ + m ℓ θ̇² sin θ) / M                          M = mass of cart and pole
        θ̈ = (g sin θ − a cos θ) / (ℓ (4/3 − m cos² θ / M))        ẍ = a − m ℓ θ̈ cos θ / M
        reward = −(1 − cos θ + c₁ (√(1 + x²) − 1) + c₂ ẋ² + c₃ θ̇² + c₄ F²), of the state *before* the step

    integrated by one Runge-Kutta step of fourth order. Source: Barto, Sutton & Anderson 1983, in the form of Florian
    2007 with viscous friction of the cart; constants like Deisenroth's (2010). The track has no walls: the reward
    keeps the cart near the middle with a smooth absolute value of x (Tassa, Erez & Todorov 2012), which is quadratic
    within a metre and only linear far out, so that it does not dominate the other terms. The task never terminates.

    The collector clips actions to the box. `dynamics` and `reward` do not, so that the gradient at a force beyond the
    bounds points back to them. The only non-convex term of the cost is 1 − cos θ, below the horizontal; it is
    ½ |(cos θ, sin θ) − (1, 0)|², whose Gauss-Newton Hessian is 1 everywhere.
    """

    id = "jax:CartPoleSwingUp-v0"

    gravity: float = 9.82  # m/s²
    cart_mass: float = 0.5  # kg
    pole_mass: float = 0.5  # kg
    half_length: float = 0.3  # m, from the hinge to the pole's centre of mass
    friction: float = 0.1  # N s/m, of the cart
    max_force: float = 10.0  # N
    time_step: float = 0.025  # s
    position_cost: float = 0.2  # 1
    velocity_cost: float = 0.01  # s²/m²
    rate_cost: float = 0.002  # s²/rad²
    force_cost: float = 0.001  # 1/N²
    velocity_scale: float = 3.0  # m/s that are observed as 1
    rate_scale: float = 8.0  # rad/s that are observed as 1
    initial_spread: float = 0.05  # every coordinate starts uniformly within ± this of hanging at rest
    max_episode_steps: int = 200

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of (x, scaled ẋ, cos θ, sin θ, scaled θ̇)."""
        high = np.array([np.inf, np.inf, 1, 1, np.inf], np.float32)
        return gymnasium.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The box of forces F [N]."""
        return gymnasium.spaces.Box(-self.max_force, self.max_force, (1,), np.float32)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 4"]:
        """Every coordinate uniform within ±`initial_spread` of hanging at rest."""
        unit = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        return self.initial_spread * unit + jnp.array([0.0, 0.0, math.pi, 0.0])

    def dynamics(self, physics: Float[Array, " 4"], action: Float[Array, " 1"]) -> Float[Array, " 4"]:
        """The state one time step later.

        physics: (x, ẋ, θ, θ̇). action: (F,), not clipped.
        """
        force = action[0].astype(physics.dtype)
        return runge_kutta(lambda x: self._rate(x, force), physics, self.time_step)

    def reward(
        self, physics: Float[Array, " 4"], action: Float[Array, " 1"], successor: Float[Array, " 4"]
    ) -> Float[Array, ""]:
        """The reward of the state before the step.

        physics: (x, ẋ, θ, θ̇) before the step. action: (F,). successor: is not used.
        """
        position, velocity, angle, rate = physics
        return -(
            1
            - jnp.cos(angle)
            + self.position_cost * (jnp.sqrt(1 + jnp.square(position)) - 1)
            + self.velocity_cost * jnp.square(velocity)
            + self.rate_cost * jnp.square(rate)
            + self.force_cost * jnp.square(action[0].astype(physics.dtype))
        )

    def observe(self, physics: Float[Array, " 4"]) -> Float[Array, " 5"]:
        """(x, scaled ẋ, cos θ, sin θ, scaled θ̇)."""
        position, velocity, angle, rate = physics
        return jnp.stack(
            [position, velocity / self.velocity_scale, jnp.cos(angle), jnp.sin(angle), rate / self.rate_scale]
        )

    def terminal(self, physics: Float[Array, " 4"]) -> Bool[Array, ""]:
        """False: the task never ends."""
        return jnp.zeros((), bool)

    def energy(self, physics: Float[Array, " 4"]) -> Float[Array, ""]:
        """Kinetic and potential energy [J], 0 at rest with the pole level: constant without force and friction."""
        _, velocity, angle, rate = physics
        pole_moment = self.pole_mass * self.half_length
        return (
            (self.cart_mass + self.pole_mass) / 2 * jnp.square(velocity)
            + pole_moment * velocity * rate * jnp.cos(angle)
            + 2 / 3 * pole_moment * self.half_length * jnp.square(rate)
            + pole_moment * self.gravity * jnp.cos(angle)
        )

    @property
    def steps_per_second(self) -> float:
        """Steps in a second of the pole's time."""
        return 1 / self.time_step

    def render(self, state: Clocked) -> UInt8[np.ndarray, "H W 3"]:
        """Cart and pole from the side. The track has no end: a cart that leaves the picture comes in again on the
        other side."""
        half = 2.0
        position, _, angle, _ = np.asarray(state.physics, float)
        x = (position + half) % (2 * half) - half
        canvas = Canvas(half)
        canvas.line((-half, 0), (half, 0), 0.02, INK)
        canvas.line((x - 0.15, 0), (x + 0.15, 0), 0.2, BLUE)
        tip = (x + 2 * self.half_length * np.sin(angle), 2 * self.half_length * np.cos(angle))
        canvas.line((x, 0), tip, 0.07, ORANGE)
        canvas.disc((x, 0), 0.03, PAPER)
        return canvas.picture()

    def _rate(self, physics: Float[Array, " 4"], force: Float[Array, ""]) -> Float[Array, " 4"]:
        """The physics state's time derivative."""
        _, velocity, angle, rate = physics
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        mass = self.cart_mass + self.pole_mass
        pole_moment = self.pole_mass * self.half_length
        push = (force - self.friction * velocity + pole_moment * jnp.square(rate) * sin) / mass
        inertia = self.half_length * (4 / 3 - self.pole_mass / mass * jnp.square(cos))
        angular_acceleration = (self.gravity * sin - cos * push) / inertia
        acceleration = push - pole_moment / mass * angular_acceleration * cos
        return jnp.stack([velocity, acceleration, rate, angular_acceleration])
