"""Classic control against Gymnasium, the independent oracle: from the same physics state, the same step."""

from __future__ import annotations

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from klimb.environments.base import Clocked
from klimb.environments.control.acrobot import Acrobot
from klimb.environments.control.cartpole import CartPole
from klimb.environments.control.mountain_car_continuous import MountainCarContinuous
from klimb.environments.control.pendulum import Pendulum

ENVIRONMENTS = [CartPole(), Pendulum(), MountainCarContinuous(), Acrobot()]
each_environment = pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: env.id)

# Physics states are drawn from these boxes, which reach past every limit, wall and wrap.
REACH = {
    CartPole: [2.5, 3, 0.22, 3],
    Pendulum: [4 * np.pi, 8],
    MountainCarContinuous: [1.2, 0.07],
    Acrobot: [np.pi, np.pi, 4 * np.pi, 9 * np.pi],
}


def skilled(env, obs):
    """A policy that balances the pole, reaches the flag or swings the tip up; the pendulum is only pushed."""
    match env:
        case CartPole():
            return (obs @ jnp.array([0.1, 0.3, 3, 1]) > 0).astype(int)
        case Pendulum():
            return obs[1:2]
        case MountainCarContinuous():
            return jnp.sign(obs[1:2])
        case Acrobot():
            return 1 - jnp.sign(obs[4]).astype(int)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def peer_of(env, **options):
    peer = gymnasium.make(env.id.removeprefix("jax:"), disable_env_checker=True, **options)
    peer.reset(seed=0)
    return peer


def peer_step(peer, physics, action):
    """(next physics, obs, reward, terminated) of Gymnasium from a given physics state."""
    task = peer.unwrapped
    task.state, task.steps_beyond_terminated = np.array(physics), None
    obs, reward, terminated, _, _ = task.step(action)
    return np.array(task.state, float), np.array(obs), float(reward), terminated


def random_cases(env, n=600, seed=0):
    """Physics states [n, D], the last third of them close to the task's limits, and actions [n, ...]."""
    rng = np.random.default_rng(seed)
    reach = np.array(REACH[type(env)])
    physics = rng.uniform(-1, 1, (n, len(reach))) * reach
    near = physics[2 * n // 3 :]
    match env:
        case CartPole():
            near[:, 2] = np.sign(near[:, 2]) * env.angle_limit + rng.normal(0, 0.02, len(near))
        case MountainCarContinuous():
            physics[:, 0] = np.minimum(physics[:, 0], env.max_position)
            near[:, 0] = np.where(near[:, 1] > 0, env.goal_position, env.min_position + 0.03) - 0.03
        case Acrobot():
            near[:, :2] = np.pi * np.sign(near[:, :2]) + rng.normal(0, 0.1, (len(near), 2))
    return physics, random_actions(env, rng, n)


def random_actions(env, rng, n):
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return rng.integers(env.action_space.n, size=n)
    # Twice the bounds: clipping, and what the reward makes of an action out of bounds, are part of the task.
    return rng.uniform(2 * env.action_space.low, 2 * env.action_space.high, (n, 1))


def all_steps(env, physics, actions):
    key = jax.random.key(0)
    states = Clocked(jnp.asarray(physics), jnp.zeros(len(physics), jnp.int32))
    return jax.jit(jax.vmap(env.step, in_axes=(None, 0, 0)))(key, states, jnp.asarray(actions))


def check_steps(env, peer):
    physics, actions = random_cases(env)
    step = all_steps(env, physics, actions)
    expected = [peer_step(peer, *case) for case in zip(physics, actions, strict=True)]
    successor, obs, reward, terminated = (np.array(column) for column in zip(*expected, strict=True))
    # Gymnasium rounds observations, and the mountain car's state, to float32.
    exact = 1e-6 if isinstance(env, MountainCarContinuous) else 1e-10
    np.testing.assert_allclose(step.state.physics, successor, rtol=exact, atol=1e-12)
    np.testing.assert_allclose(step.obs, obs, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(step.reward, reward, rtol=1e-10)
    np.testing.assert_array_equal(step.terminated, terminated)
    if not isinstance(env, Pendulum):
        assert 0.05 < terminated.mean() < 0.95
    assert not step.truncated.any()


@each_environment
@pytest.mark.usefixtures("x64")
def test_one_step_equals_gymnasium(env):
    check_steps(env, peer_of(env))


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (Pendulum(gravity=9.81), {"g": 9.81}),
        (MountainCarContinuous(goal_velocity=0.03), {"goal_velocity": 0.03}),
    ],
    ids=["gravity", "goal_velocity"],
)
@pytest.mark.usefixtures("x64")
def test_one_step_with_other_constants_equals_gymnasium(env, options):
    check_steps(env, peer_of(env, **options))


@each_environment
def test_one_step_in_float32_is_close_to_gymnasium(env):
    physics, actions = random_cases(env)
    physics, peer = physics.astype(np.float32), peer_of(env)
    actions = actions.astype(np.int32 if actions.ndim == 1 else np.float32)
    step = all_steps(env, physics, actions)
    assert step.obs.dtype == step.reward.dtype == jnp.float32
    expected = [peer_step(peer, *case) for case in zip(physics.astype(float), actions, strict=True)]
    # Observations, not angles: π and −π are one place.
    np.testing.assert_allclose(step.obs, [e[1] for e in expected], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(step.reward, [e[2] for e in expected], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(step.terminated, [e[3] for e in expected])


@each_environment
@pytest.mark.parametrize("acting", ["skilled", "random"])
@pytest.mark.usefixtures("x64")
def test_a_whole_episode_equals_gymnasium(env, acting):
    if isinstance(env, CartPole):
        # The upright pole multiplies rounding errors by e every 13 steps: after 500 nothing is comparable.
        env = dataclasses.replace(env, max_episode_steps=200)
    state, _ = env.reset(jax.random.key(1))
    noise = jnp.asarray(random_actions(env, np.random.default_rng(1), env.max_episode_steps))

    def advance(state, random_action):
        action = skilled(env, env.observe(state.physics)) if acting == "skilled" else random_action
        step = env.step(jax.random.key(0), state, action)
        return step.state, (step, action)

    _, (episode, actions) = jax.jit(lambda state: jax.lax.scan(advance, state, noise))(state)
    episode, actions = jax.tree.map(np.asarray, (episode, actions))

    peer = peer_of(env, max_episode_steps=env.max_episode_steps)
    peer.unwrapped.state = np.asarray(state.physics)
    # The mountain car's float32 state in Gymnasium drifts from the exact one over an episode.
    drift = 1e-4 if isinstance(env, MountainCarContinuous) else 1e-8
    for t in range(env.max_episode_steps):
        obs, reward, terminated, truncated, _ = peer.step(actions[t])
        physics = episode.state.physics[t]
        np.testing.assert_allclose(physics, peer.unwrapped.state, rtol=drift, atol=drift)
        np.testing.assert_allclose(episode.obs[t], obs, rtol=1e-6 + drift, atol=1e-6 + drift)
        np.testing.assert_allclose(episode.reward[t], reward, rtol=1e-6, atol=1e-6)
        assert (episode.terminated[t], episode.truncated[t]) == (terminated, truncated)
        if terminated or truncated:
            break
    solved_early = isinstance(env, (MountainCarContinuous, Acrobot)) and acting == "skilled"
    fell = isinstance(env, CartPole) and acting == "random"
    assert terminated == (solved_early or fell)
    assert truncated == (not terminated)
    assert terminated or t + 1 == env.max_episode_steps


@each_environment
def test_the_clock_truncates_at_the_limit_and_does_not_terminate(env):
    state, _ = env.reset(jax.random.key(0))
    action = skilled(env, env.observe(state.physics))
    step = jax.jit(env.step)
    for time, expected in [(0, False), (env.max_episode_steps - 2, False), (env.max_episode_steps - 1, True)]:
        after = step(jax.random.key(0), Clocked(state.physics, jnp.int32(time)), action)
        assert (bool(after.truncated), bool(after.terminated)) == (expected, False)
        assert after.state.time == time + 1


def test_an_episode_may_terminate_and_be_truncated_in_one_step():
    env = CartPole(max_episode_steps=7)
    falling = jnp.array([0.0, 0.0, env.angle_limit, 1.0])
    early, late = (env.step(jax.random.key(0), Clocked(falling, jnp.int32(t)), jnp.int32(1)) for t in (0, 6))
    assert (bool(early.terminated), bool(early.truncated)) == (True, False)
    assert (bool(late.terminated), bool(late.truncated)) == (True, True)


@each_environment
def test_initial_states_are_distributed_as_gymnasiums(env):
    peer, n = peer_of(env), 2000
    state, obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(3), n))
    expected = []
    for _ in range(n):
        peer.reset()
        expected.append(peer.unwrapped.state)
    physics, expected = np.asarray(state.physics), np.array(expected)
    assert not state.time.any()
    np.testing.assert_array_equal(obs, jax.vmap(env.observe)(state.physics))
    for ours, theirs in zip(physics.T, expected.T, strict=True):
        assert scipy.stats.ks_2samp(ours, theirs, method="asymp").pvalue > 1e-3
        margin = 0.01 * np.ptp(theirs)
        assert theirs.min() - margin <= ours.min() <= theirs.min() + margin
        assert theirs.max() - margin <= ours.max() <= theirs.max() + margin
    correlation = np.corrcoef(physics.T[physics.std(axis=0) > 0])
    assert np.abs(correlation - np.eye(len(correlation)) if correlation.ndim else 0).max() < 0.1


@each_environment
def test_spaces_and_time_limit_equal_gymnasiums(env):
    peer = peer_of(env)
    assert env.observation_space == peer.observation_space
    assert env.action_space == peer.action_space
    assert env.max_episode_steps == peer.spec.max_episode_steps


@each_environment
@pytest.mark.usefixtures("x64")
def test_jit_changes_nothing(env):
    physics, actions = random_cases(env, n=3)
    compiled = all_steps(env, physics, actions)
    key = jax.random.key(0)
    for i in range(len(physics)):
        eager = env.step(key, Clocked(jnp.asarray(physics[i]), jnp.int32(0)), jnp.asarray(actions[i]))
        for one, column in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
            np.testing.assert_allclose(one, column[i], rtol=1e-12, atol=1e-14)


@each_environment
@pytest.mark.usefixtures("x64")
def test_derivatives_equal_finite_differences(env):
    physics, actions = random_cases(env, n=90)
    physics, actions = jnp.asarray(0.7 * physics[:60]), jnp.asarray(0.4 * actions[:60])
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)

    def outcome(variables, action):
        state, action = (variables, action) if discrete else (variables[:-1], variables[-1:])
        successor = env.dynamics(state, action)
        reward = env.reward(state, action, successor)
        return jnp.concatenate([successor, env.observe(successor), reward[None]])

    def central_difference(variables, action, h=1e-6):
        shifts = h * jnp.eye(len(variables))
        sides = [jax.vmap(lambda d, s=s: outcome(variables + s * d, action))(shifts) for s in (1, -1)]
        return ((sides[0] - sides[1]) / (2 * h)).T

    variables = physics if discrete else jnp.concatenate([physics, actions], axis=1)
    actions = random_actions(env, np.random.default_rng(0), 60)
    exact = jax.jit(jax.vmap(jax.jacrev(outcome)))(variables, actions)
    numeric = jax.jit(jax.vmap(central_difference))(variables, actions)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-6)


@each_environment
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_every_float_has_the_dtype_of_the_physics(env, dtype):
    state = Clocked(jax.ShapeDtypeStruct((len(REACH[type(env)]),), dtype), jax.ShapeDtypeStruct((), "int32"))
    sample = env.action_space.sample()
    action = jax.ShapeDtypeStruct(np.shape(sample), "int32" if np.ndim(sample) == 0 else "float32")
    with jax.numpy_dtype_promotion("strict"):
        after = jax.eval_shape(env.step, jax.random.key(0), state, action)
    assert {after.state.physics.dtype, after.obs.dtype, after.reward.dtype} == {jnp.dtype(dtype)}
    assert after.state.time.dtype == jnp.int32
    assert after.terminated.dtype == after.truncated.dtype == bool
    # A weak type in the carry of a scan would compile the training loop twice.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


@each_environment
def test_environments_are_values(env):
    assert env == type(env)()
    assert hash(env) == hash(type(env)())
    assert env != type(env)(max_episode_steps=3)
