"""The gymnax adapter against gymnax's own `step_env`, and what it refuses."""

from __future__ import annotations

import functools
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.environments.registry import make
from klimb.environments.suites.gymnax import GymnaxEnvironment, make_gymnax

gymnax = pytest.importorskip("gymnax")

# MNISTBandit downloads its images.
NAMES = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]


def an_action(env):
    return jnp.zeros(env.action_space.shape, "int32" if env.action_space.shape == () else "float32")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite", "Breakout-MinAtar"])
def test_steps_equal_gymnax(name):
    env, (peer, params) = make_gymnax(name), gymnax.make(name)
    first, *keys = jax.random.split(jax.random.key(0), 12)
    action = an_action(env)
    state, obs = env.reset(first)
    peer_obs, peer_state = peer.reset_env(first, params)
    np.testing.assert_array_equal(obs, np.reshape(peer_obs, obs.shape))  # boards are vectors
    step, peer_step = jax.jit(env.step), jax.jit(peer.step_env)
    for key in keys:
        after = step(key, state, action)
        peer_obs, peer_state, reward, terminated, _ = peer_step(key, peer_state, action, params)
        state = after.state
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), after.state, peer_state)
        np.testing.assert_allclose(after.obs, np.reshape(peer_obs, after.obs.shape), rtol=1e-6)
        np.testing.assert_allclose(after.reward, reward, rtol=1e-6)
        assert (bool(after.terminated), bool(after.truncated)) == (bool(terminated), False)


def test_the_time_limit_is_truncation_and_nothing_resets():
    env = make_gymnax("Pendulum-v1")
    state, _ = env.reset(jax.random.key(0))
    last = state.replace(time=jnp.int32(env.max_episode_steps - 1))
    before, after = (env.step(jax.random.key(1), s, an_action(env)) for s in (state, last))
    assert (bool(before.terminated), bool(before.truncated)) == (False, False)
    assert (bool(after.terminated), bool(after.truncated)) == (False, True)
    assert after.state.time == env.max_episode_steps
    np.testing.assert_array_equal(after.obs, before.obs)


def test_a_fallen_pole_is_termination_and_nothing_resets():
    env = make_gymnax("CartPole-v1")
    state, _ = env.reset(jax.random.key(0))
    after = env.step(jax.random.key(1), state.replace(theta=jnp.float32(0.5)), jnp.int32(0))
    assert (bool(after.terminated), bool(after.truncated)) == (True, False)
    assert after.obs[2] > 0.4


@pytest.mark.parametrize("name", NAMES)
def test_types_are_stable_and_match_the_spaces(name):
    env = make_gymnax(name)
    assert env.id == f"gymnax:{name}"
    assert isinstance(env.observation_space, gymnasium.spaces.Box)
    state, obs = jax.eval_shape(env.reset, jax.random.key(0))
    after = jax.eval_shape(env.step, jax.random.key(0), state, an_action(env))
    assert after.obs == obs
    assert (obs.shape, obs.dtype) == (env.observation_space.shape, env.observation_space.dtype)
    # Weak types included: a scan's carry must come back as it went in.
    assert jax.tree.leaves(after.state) == jax.tree.leaves(state)
    assert after.reward.dtype == jnp.float32
    assert after.terminated.dtype == after.truncated.dtype == bool


def test_spaces_are_converted():
    assert make_gymnax("CartPole-v1").action_space == gymnasium.spaces.Discrete(2)
    pendulum, peer = make_gymnax("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    assert pendulum.action_space == peer.action_space
    assert pendulum.observation_space == peer.observation_space


def test_discrete_observations_are_one_hot():
    env = make_gymnax("FrozenLake-misc")
    _, obs = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs, np.eye(16)[0])


def test_an_environment_is_static_under_jit_and_compiles_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def reset(env, key):
        traces.append(env.id)
        return env.reset(key)

    for _ in range(2):
        reset(make("gymnax:Acrobot-v1"), jax.random.key(0))
    assert traces == ["gymnax:Acrobot-v1"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no environment 'Breakout-MinAtari'; did you mean 'Breakout-MinAtar'"):
        make_gymnax("Breakout-MinAtari")


def test_without_gymnax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"pip install 'klimb\[gymnax\]'"):
        make_gymnax("CartPole-v1 without gymnax")


def test_what_is_no_space_is_refused():
    class Wordless:
        def observation_space(self, params):
            return "anything"

    with pytest.raises(ValueError, match="gymnax:Wordless's observation space is anything"):
        GymnaxEnvironment("gymnax:Wordless", Wordless(), None)
