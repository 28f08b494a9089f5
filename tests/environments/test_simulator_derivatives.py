"""Derivatives of MuJoCo's steps: against MuJoCo's own, against what rewards are made of, and without side effects."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest

from klimb.environments import simulator_state
from klimb.environments.simulator_derivatives import Differentiator, derivative_sizes

mujoco = pytest.importorskip("mujoco")
TASKS = ("Reacher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Swimmer-v5", "HalfCheetah-v5", "Hopper-v5")


class Found(NamedTuple):
    dynamics: np.ndarray
    obs: np.ndarray
    next_obs: np.ndarray
    reward: np.ndarray


def derivatives(env: gym.Env, action: np.ndarray) -> Found:
    """Of a step from where the environment stands."""
    sizes = derivative_sizes(env)
    assert sizes is not None
    differentiator = Differentiator(gym.make(env.spec.id))
    numbers = differentiator(simulator_state.physics_state(env), action)
    differentiator.close()
    edges = np.cumsum([np.prod(shape) for shape in sizes.shapes])[:-1].astype(int)
    return Found(*(x.reshape(s) for x, s in zip(np.split(numbers, edges), sizes.shapes, strict=True)))


def stepped(name: str, steps: int = 3) -> tuple[Any, np.ndarray]:
    """An environment a few steps into an episode, and an action well within its bounds."""
    env = gym.make(name)
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(steps):
        env.step(0.3 * env.action_space.sample())
    return env, 0.3 * env.action_space.sample()


def test_dynamics_are_those_of_mujocos_own_differences() -> None:
    env, action = stepped("HalfCheetah-v5", 1)
    model, data = env.unwrapped.model, env.unwrapped.data
    data.qpos[1] = 2.0  # in the air, where no contact has a kink
    mujoco.mj_forward(model, data)
    found = derivatives(env, action)
    data.ctrl[:] = action
    of_state, of_action = np.eye(18), np.zeros((18, 6))
    for _ in range(env.unwrapped.frame_skip):
        a, b = np.zeros((18, 18)), np.zeros((18, 6))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
        of_state, of_action = a @ of_state, a @ of_action + b
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(found.dynamics, np.hstack([of_state, of_action]), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", TASKS)
def test_a_small_step_goes_where_they_say(name: str) -> None:
    """By central differences ten thousand times as long, in a random direction."""
    env, action = stepped(name)
    found, rng = derivatives(env, action), np.random.default_rng(0)
    start, size = simulator_state.physics_state(env), len(found.dynamics)
    direction = rng.normal(size=found.reward.shape)

    def moved(length: float) -> list[np.ndarray]:
        state = start.copy()
        state[1 : 1 + size] += length * direction[:size]
        simulator_state.set_physics_state(env, state)
        obs = env.unwrapped._get_obs()
        next_obs, reward, *_ = env.unwrapped.step(action + length * direction[size:])
        data = env.unwrapped.data
        return [np.concatenate([data.qpos, data.qvel]), obs, next_obs, np.array(reward)]

    length = 1e-4 if name != "Hopper-v5" else 1e-6  # on the ground contacts are stiff
    expected = [(up - down) / (2 * length) for up, down in zip(moved(length), moved(-length), strict=True)]
    promised = [found.dynamics @ direction, found.obs @ direction[:size], found.next_obs @ direction]
    for a, b in zip([*promised, found.reward @ direction], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize(("name", "weight"), [("HalfCheetah-v5", 0.1), ("Swimmer-v5", 1e-4)])
def test_rewards_are_forward_velocity_less_the_cost_of_control(name: str, weight: float) -> None:
    env, action = stepped(name)
    found, dt = derivatives(env, action), env.unwrapped.dt
    expected = found.dynamics[0] / dt
    expected[0] -= 1 / dt
    expected[len(found.dynamics) :] -= 2 * weight * action
    np.testing.assert_allclose(found.reward, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


def test_actions_beyond_their_bounds_change_nothing() -> None:
    env, _ = stepped("Reacher-v5")
    found = derivatives(env, np.array([1.5, 0.2]))
    for rows in (found.dynamics, found.next_obs, found.reward[None]):
        np.testing.assert_array_equal(rows[:, 8], 0)
        assert np.abs(rows[:, 9]).max() > 0
    # Differences point inwards at a bound, where the derivative is that of the inside.
    at, inside = derivatives(env, np.array([1.0, 0.2])), derivatives(env, np.array([1.0 - 1e-5, 0.2]))
    np.testing.assert_allclose(at.dynamics, inside.dynamics, atol=1e-3)


def test_an_end_within_the_difference_is_no_slope() -> None:
    env, _ = stepped("InvertedPendulum-v5", 0)
    sim = env.unwrapped

    def angle_after(angle: float) -> float:
        sim.set_state(np.array([0.0, angle]), np.zeros(2))
        return float(env.unwrapped.step(np.zeros(1))[0][1])

    low, high = 0.15, 0.25
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if angle_after(middle) < 0.2 else (low, middle)
    sim.set_state(np.array([0.0, low]), np.zeros(2))
    found = derivatives(env, np.zeros(1))
    np.testing.assert_array_equal(found.reward, 0)
    assert found.dynamics[1, 1] > 1


def test_what_has_none() -> None:
    for name in ("Ant-v5", "CartPole-v1"):
        assert derivative_sizes(gym.make(name)) is None
    sizes = derivative_sizes(gym.make("HalfCheetah-v5"))
    assert sizes is not None
    assert sizes.numbers == 18 * 24 + 17 * 18 + 17 * 24 + 24
