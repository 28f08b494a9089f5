"""First derivatives of Gymnasium's MuJoCo environments, by finite differences over their simulator states."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from klimb.environments import simulator_state
from klimb.environments.host import DerivativeSizes

STEP = 1e-6
"""Length of a difference, in the units of positions, velocities and actions. MuJoCo computes in double precision."""


def derivative_sizes(env: gym.Env) -> DerivativeSizes | None:
    """What the derivatives of an environment are; None where it can't be differentiated.

    It can where `simulator_state` knows the class, and the physics is MuJoCo's with as many positions as velocities:
    the rotations of free bodies (Ant, Humanoid) are four numbers with three velocities.

    env: any, with its wrappers.
    """
    if not simulator_state.is_mujoco(env):
        return None
    model: Any = env.unwrapped.model  # type: ignore[attr-defined]
    if model.nq != model.nv or model.na != 0:
        return None
    observations, actions = env.observation_space.shape, env.action_space.shape
    assert observations is not None
    assert actions is not None
    return DerivativeSizes(2 * model.nv, math.prod(observations), math.prod(actions))


class Differentiator:
    """A copy of an environment that is put into simulator states and steps from there. It is never seen from outside.

    env: a new one, that `derivative_sizes` has sizes for.
    """

    def __init__(self, env: gym.Env) -> None:
        sizes = derivative_sizes(env)
        assert sizes is not None
        env.reset(seed=0)
        self._env, self._sizes, self.numbers = env, sizes, sizes.numbers
        # Without the wrappers, which count steps and check types.
        self._inner: Any = env.unwrapped
        self._low, self._high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]

    def __call__(
        self, state: Float[np.ndarray, " S"], action: Float[np.ndarray, " A"]
    ) -> Float[np.ndarray, " numbers"]:
        """The derivatives of one step, the arrays of `klimb.types.Derivatives` one after the other.

        Where the action is beyond its bounds the environment clips it, so it changes nothing there. Where a
        difference ends the episode and the step did not, or the other way round, the reward's derivative is 0
        instead of a jump divided by the length of the difference.

        state: `physics_state` before the step. action: as the policy sampled it.
        """
        size, actions = self._sizes.state, self._sizes.action
        clipped = np.clip(action, self._low, self._high).astype(np.float64)
        free = clipped == action
        # Inwards at a bound.
        signs = np.where(clipped + STEP > self._high, -1.0, 1.0)
        seen, base = self._observed(state, clipped), self._stepped(state, clipped)
        dynamics, next_slope = np.zeros((size, size + actions)), np.zeros((self._sizes.obs, size + actions))
        obs_slope, reward = np.zeros((self._sizes.obs, size)), np.zeros(size + actions)
        for i in range(size + actions):
            moved, acted, length = state.copy(), clipped.copy(), STEP
            if i < size:
                # MuJoCo's state begins with the time; positions and velocities follow.
                moved[1 + i] += STEP
                obs_slope[:, i] = (self._observed(moved, acted) - seen) / length
            elif free[i - size]:
                length = signs[i - size] * STEP
                acted[i - size] += length
            else:
                continue
            after = self._stepped(moved, acted)
            dynamics[:, i] = (after.state - base.state) / length
            next_slope[:, i] = (after.obs - base.obs) / length
            if after.terminated == base.terminated:
                reward[i] = (after.reward - base.reward) / length
        return np.concatenate([x.ravel() for x in (dynamics, obs_slope, next_slope, reward)])

    def close(self) -> None:
        """Release the environment."""
        self._env.close()

    def _put(self, state: np.ndarray, action: np.ndarray) -> None:
        """Put the simulator into a state, with everything computed that the environment reads."""
        simulator_state.set_physics_state(self._inner, state)
        self._inner.data.ctrl[:] = action

    def _observed(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        self._put(state, action)
        return np.asarray(self._inner._get_obs(), np.float64).ravel()

    def _stepped(self, state: np.ndarray, action: np.ndarray) -> _Stepped:
        self._put(state, action)
        obs, reward, terminated, _, _ = self._inner.step(action)
        data = self._inner.data
        return _Stepped(
            np.concatenate([data.qpos, data.qvel]),
            np.asarray(obs, np.float64).ravel(),
            float(reward),
            bool(terminated),
        )


class _Stepped(NamedTuple):
    """What a step led to. state: positions and velocities."""

    state: np.ndarray
    obs: np.ndarray
    reward: float
    terminated: bool
