"""Swing-ups by growing horizons; the pendulum's against dynamic programming on a grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from klimb.environments.control.cartpole_swing_up import CartPoleSwingUp
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import ConfigError
from klimb.guided.planning.growing import plan_growing
from klimb.guided.planning.ilqr import Settings
from klimb.guided.planning.problem import Problem
from klimb.guided.planning.trajectory import Plan

PENDULUM = Pendulum(max_torque=4.0)  # twice the limits, so that it never clips within them
LIMIT, HORIZON = 2.0, 150
STATES = np.random.default_rng(0).uniform(-1, 1, (10, 2)) * [np.pi, 1.0]


def pendulum_cost(state: jax.Array, action: jax.Array) -> jax.Array:
    return -PENDULUM.reward(state, action, state)


def pendulum(horizon: int) -> Problem:
    limits = (jnp.asarray([-LIMIT]), jnp.asarray([LIMIT]))
    return Problem(PENDULUM.dynamics, pendulum_cost, horizon, 1, limits=limits)


def swing_up(restarts: int) -> Plan:
    problem = pendulum(HORIZON)
    starts = problem.random_actions(jax.random.key(1), restarts)
    settings = Settings(max_iterations=100, cost_tolerance=1e-5)
    program = jax.vmap(lambda x: plan_growing(problem, x, starts, first=60, growth=30, settings=settings))
    return jax.jit(program)(jnp.asarray(STATES, jnp.float32))


def wrapped(angle: np.ndarray) -> np.ndarray:
    return angle - 2 * np.pi * np.round(angle / (2 * np.pi))


@pytest.mark.slow
def test_the_pendulum_is_swung_up_from_everywhere() -> None:
    plans = swing_up(restarts=6)
    assert np.max(np.abs(wrapped(np.asarray(plans.states[:, -10:, 0])))) < 0.1
    assert np.max(np.abs(plans.states[:, -10:, 1])) < 0.5
    assert np.max(np.abs(plans.actions)) == LIMIT


@pytest.mark.long
@pytest.mark.slow
def test_the_swing_up_costs_what_dynamic_programming_finds() -> None:
    reference = Grid(angles=721, rates=641, torques=11).cost(STATES)
    costs = np.asarray(swing_up(restarts=32).cost)
    np.testing.assert_array_less(costs, 1.02 * reference)
    # The reference is a path of its own, so that only its discretisation can be undercut.
    np.testing.assert_array_less(0.98 * reference, costs)


@pytest.mark.long
@pytest.mark.slow
def test_the_pole_on_the_cart_is_swung_up_from_three_states() -> None:
    environment = CartPoleSwingUp()
    limit = jnp.full(1, environment.max_force)
    problem = Problem(environment.dynamics, environment.cost, 150, 1, limits=(-limit, limit))
    for seed in range(3):
        state = environment.initial(jax.random.key(seed))
        actions = problem.random_actions(jax.random.key(100 + seed), 16)
        last = np.asarray(plan_growing(problem, state, actions, first=60, growth=30).states[-10:])
        assert np.max(np.abs(wrapped(last[:, 2]))) < 0.1
        assert np.max(np.abs(last[:, 3])) < 0.5


@pytest.mark.slow
def test_one_stage_of_the_whole_horizon_is_the_problem_itself() -> None:
    problem, state = pendulum(20), jnp.asarray([0.5, 0.0])
    whole = plan_growing(problem, state, jnp.zeros((1, 20, 1)), first=20, growth=1)
    grown = plan_growing(problem, state, jnp.zeros((1, 20, 1)), first=8, growth=5)
    assert float(whole.cost) == pytest.approx(float(grown.cost), rel=1e-4)
    path = problem.follow(state, lambda t, _: grown.actions[t])
    assert float(grown.cost) == pytest.approx(float(path.cost), rel=1e-4)


@pytest.mark.slow
def test_the_final_cost_ends_every_stage() -> None:
    problem = Problem(lambda x, u: x + u, lambda x, u: jnp.sum(u**2), 8, 1, lambda x: 100 * jnp.sum((x - 1) ** 2))
    found = plan_growing(problem, jnp.zeros(1), jnp.zeros((1, 8, 1)), first=2, growth=3)
    np.testing.assert_allclose(found.actions, 100 / 801, rtol=1e-4)


def test_mistakes_are_named() -> None:
    problem, state = pendulum(20), jnp.zeros(2)
    with pytest.raises(ConfigError, match="growth=0"):
        plan_growing(problem, state, jnp.zeros((1, 20, 1)), first=5, growth=0)


class Grid:
    """The finite-horizon problem by dynamic programming, linear between the points of a grid over angle and rate."""

    def __init__(self, angles: int, rates: int, torques: int) -> None:
        self.angles, self.rates = angles, rates
        angle = -np.pi + 2 * np.pi * np.arange(angles) / angles
        points = np.meshgrid(angle, np.linspace(-8, 8, rates), indexing="ij")
        angle, rate = (point.ravel() for point in points)
        models = []
        for torque in np.linspace(-LIMIT, LIMIT, torques):
            index, weight = self.interpolation(*self.step(angle, rate, torque))
            rows = np.repeat(np.arange(angles * rates), 4)
            shape = (angles * rates, angles * rates)
            models.append(
                (self.step_cost(angle, rate, torque), csr_matrix((weight.ravel(), (rows, index.ravel())), shape))
            )
        self.values = [np.zeros(angles * rates)]
        for _ in range(HORIZON - 1):
            self.values.insert(0, np.min([cost + next_ @ self.values[0] for cost, next_ in models], axis=0))

    @staticmethod
    def step(angle: np.ndarray, rate: np.ndarray, torque: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rate = np.clip(rate + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
        return angle + 0.05 * rate, rate

    @staticmethod
    def step_cost(angle: np.ndarray, rate: np.ndarray, torque: np.ndarray) -> np.ndarray:
        return wrapped(angle) ** 2 + 0.1 * rate**2 + 0.001 * torque**2

    def interpolation(self, angle: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The four corners around each point, and their weights."""
        x = (angle + np.pi) / (2 * np.pi) * self.angles
        y = (rate + 8) / 16 * (self.rates - 1)
        i, j = np.floor(x).astype(int), np.clip(np.floor(y).astype(int), 0, self.rates - 2)
        fx, fy = x - i, y - j
        here, after = (i % self.angles) * self.rates + j, ((i + 1) % self.angles) * self.rates + j
        index = np.stack([here, here + 1, after, after + 1], axis=-1)
        return index, np.stack([(1 - fx) * (1 - fy), (1 - fx) * fy, fx * (1 - fy), fx * fy], axis=-1)

    def cost(self, states: np.ndarray) -> np.ndarray:
        """What the greedy policy of the value functions really costs."""
        angle, rate = states.T
        torques, total = np.linspace(-LIMIT, LIMIT, 81)[:, None], np.zeros(len(states))
        for value in self.values:
            index, weight = self.interpolation(*self.step(angle, rate, torques))
            best = np.argmin(self.step_cost(angle, rate, torques) + np.sum(weight * value[index], axis=-1), axis=0)
            torque = torques[best, 0]
            total += self.step_cost(angle, rate, torque)
            angle, rate = self.step(angle, rate, torque)
        return total
