"""PlanarReacher-v0: bring the fingertip of a two-link arm to a target, and keep it there."""

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
from klimb.environments.rendering.canvas import BLUE, ORANGE, PAPER, Canvas


@dataclass(frozen=True)
class Reacher(ClassicControl):
    """Two uniform links in a horizontal plane, with a motor in each joint; differentiable everywhere.

    Physics: angle θ₁ of the first link from the x axis and θ₂ of the second from the first [rad], not wrapped;
    their rates [rad/s]; the target's position [m], constant in an episode. Action: torques τ of shoulder and elbow
    [N m].

        M(θ₂) θ̈ = τ − b θ̇ − h (−θ̇₂ (2 θ̇₁ + θ̇₂), θ̇₁²)        h = m₂ ℓ₁ r₂ sin θ₂        c = m₂ ℓ₁ r₂ cos θ₂
        M₁₁ = m₁ r₁² + I₁ + m₂ ℓ₁² + M₂₂ + 2 c        M₁₂ = M₂₁ = M₂₂ + c        M₂₂ = m₂ r₂² + I₂
        reward = −(|fingertip − target|² + c₁ |τ|²), of the state *before* the step

    with centres of mass r = ℓ/2 and moments of inertia I = m ℓ²/12, integrated by one Runge-Kutta step of fourth
    order. Source: Spong, Hutchinson & Vidyasagar 2006, section 7.4; observations are those of Gymnasium's Reacher-v5,
    in the same order. The task never terminates.

    The collector clips actions to the box. `dynamics` and `reward` do not, so that the gradient at a torque beyond the
    bounds points back to them.
    """

    id = "jax:PlanarReacher-v0"

    mass_1: float = 1.0  # kg
    mass_2: float = 1.0  # kg
    length_1: float = 0.5  # m
    length_2: float = 0.5  # m
    damping: float = 0.2  # N m s, of each joint
    max_torque: float = 2.0  # N m, of each joint
    time_step: float = 0.05  # s
    torque_cost: float = 0.01  # m²/(N m)²
    # Not 0: to first order a straight arm can't move its fingertip outwards or inwards.
    initial_elbow: float = 1.0  # rad
    initial_spread: float = 0.1  # angles and rates start uniformly within ± this of (0, initial_elbow, 0, 0)
    nearest_target: float = 0.2  # m, from the shoulder
    farthest_target: float = 0.9  # m
    max_episode_steps: int = 100

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of (cos θ, sin θ, target, θ̇, fingertip − target)."""
        far, reach = self.farthest_target, self.farthest_target + self.length_1 + self.length_2
        # Rounding may take a sum of coordinates slightly beyond its bound.
        high = np.array([1, 1, 1, 1, far, far, np.inf, np.inf, reach, reach], np.float32) * np.float32(1 + 1e-5)
        high[:4] = 1
        return gymnasium.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The box of torques τ [N m]."""
        return gymnasium.spaces.Box(-self.max_torque, self.max_torque, (2,), np.float32)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " 6"]:
        """Arm near (0, `initial_elbow`) at rest; target uniform over the ring between nearest and farthest target."""
        key_arm, key_target = jax.random.split(key)
        unit = jax.random.uniform(key_arm, (4,), minval=-1.0, maxval=1.0)
        arm = self.initial_spread * unit + jnp.array([0.0, self.initial_elbow, 0.0, 0.0])
        area, direction = jax.random.uniform(key_target, (2,))
        near, far = self.nearest_target**2, self.farthest_target**2
        distance = jnp.sqrt(near + (far - near) * area)
        angle = 2 * math.pi * direction
        return jnp.concatenate([arm, distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])])

    def dynamics(self, physics: Float[Array, " 6"], action: Float[Array, " 2"]) -> Float[Array, " 6"]:
        """The state one time step later.

        physics: (θ₁, θ₂, θ̇₁, θ̇₂, target x, target y). action: τ, not clipped.
        """
        arm, torque = physics[:4], action.astype(physics.dtype)
        return jnp.concatenate([runge_kutta(lambda x: self._rate(x, torque), arm, self.time_step), physics[4:]])

    def reward(
        self, physics: Float[Array, " 6"], action: Float[Array, " 2"], successor: Float[Array, " 6"]
    ) -> Float[Array, ""]:
        """The reward of the state before the step.

        physics: before the step. action: τ. successor: is not used.
        """
        error = self.fingertip(physics) - physics[4:]
        effort = jnp.sum(jnp.square(action.astype(physics.dtype)))
        return -(jnp.sum(jnp.square(error)) + self.torque_cost * effort)

    def observe(self, physics: Float[Array, " 6"]) -> Float[Array, " 10"]:
        """(cos θ, sin θ, target, θ̇, fingertip − target), two numbers each."""
        angles, rates, target = physics[:2], physics[2:4], physics[4:]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), target, rates, self.fingertip(physics) - target])

    def terminal(self, physics: Float[Array, " 6"]) -> Bool[Array, ""]:
        """False: the task never ends."""
        return jnp.zeros((), bool)

    @property
    def steps_per_second(self) -> float:
        """Steps in a second of the arm's time."""
        return 1 / self.time_step

    def render(self, state: Clocked) -> UInt8[np.ndarray, "H W 3"]:
        """The arm from above, and the target."""
        inner, outer, _, _, *target = np.asarray(state.physics, float)
        elbow = self.length_1 * np.array([np.cos(inner), np.sin(inner)])
        tip = elbow + self.length_2 * np.array([np.cos(inner + outer), np.sin(inner + outer)])
        canvas = Canvas(1.2 * (self.length_1 + self.length_2))
        canvas.disc(tuple(target), 0.06, ORANGE)
        canvas.line((0, 0), tuple(elbow), 0.09, BLUE)
        canvas.line(tuple(elbow), tuple(tip), 0.07, BLUE)
        for joint in ((0, 0), tuple(elbow), tuple(tip)):
            canvas.disc(joint, 0.025, PAPER)
        return canvas.picture()

    def fingertip(self, physics: Float[Array, " 6"]) -> Float[Array, " 2"]:
        """Position of the end of the second link [m], relative to the shoulder."""
        inner, outer = physics[0], physics[0] + physics[1]
        x = self.length_1 * jnp.cos(inner) + self.length_2 * jnp.cos(outer)
        y = self.length_1 * jnp.sin(inner) + self.length_2 * jnp.sin(outer)
        return jnp.stack([x, y])

    def inertia(self, physics: Float[Array, " D"]) -> Float[Array, "2 2"]:
        """M(θ₂) [kg m²]: the kinetic energy is ½ θ̇ᵀ M θ̇, constant without torques and damping."""
        elbow = self.mass_2 * self.length_2**2 / 3
        c = self.mass_2 * self.length_1 * self.length_2 / 2 * jnp.cos(physics[1])
        shoulder = (self.mass_1 / 3 + self.mass_2) * self.length_1**2 + elbow + 2 * c
        return jnp.stack([jnp.stack([shoulder, elbow + c]), jnp.stack([elbow + c, jnp.full_like(c, elbow)])])

    def _rate(self, arm: Float[Array, " 4"], torque: Float[Array, " 2"]) -> Float[Array, " 4"]:
        """The time derivative of angles and rates."""
        rate_1, rate_2 = arm[2], arm[3]
        (m11, m12), (_, m22) = self.inertia(arm)
        h = self.mass_2 * self.length_1 * self.length_2 / 2 * jnp.sin(arm[1])
        push_1 = torque[0] - self.damping * rate_1 + h * rate_2 * (2 * rate_1 + rate_2)
        push_2 = torque[1] - self.damping * rate_2 - h * jnp.square(rate_1)
        determinant = m11 * m22 - jnp.square(m12)
        acceleration_1 = (m22 * push_1 - m12 * push_2) / determinant
        acceleration_2 = (m11 * push_2 - m12 * push_1) / determinant
        return jnp.stack([rate_1, rate_2, acceleration_1, acceleration_2])
