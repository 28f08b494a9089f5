"""Simulated robots without a simulator: dictionaries, time limits, and models that differ from episode to episode."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.environments.suites.playground import PlaygroundEnvironment
from klimb.policies.network_options import NetworkOptions
from klimb.training.networks import Networks


class State(NamedTuple):
    """As the libraries' states: what they share."""

    data: jax.Array
    obs: Any
    reward: jax.Array
    done: jax.Array
    info: dict


class Model(NamedTuple):
    """Of a cart: its mass, what does not differ among robots, and what is not there."""

    mass: Any
    gravity: Any
    nothing: Any = None


class Cart:
    """A cart that is pushed; with `dictionary` the critic may see its mass."""

    action_size = 1

    def __init__(self, dictionary=False):
        self._mjx_model, self.dictionary = Model(jnp.float32(2.0), jnp.float32(9.81)), dictionary

    @property
    def mjx_model(self):
        return self._mjx_model

    @property
    def unwrapped(self):
        return self

    def reset(self, rng):
        place = jax.random.uniform(rng, (2,), minval=-0.1, maxval=0.1)
        return State(place, self._obs(place), jnp.float32(0), jnp.float32(0), {"rng": rng, "steps": 0})

    def step(self, state, action):
        place, speed = state.data
        speed = speed + 0.1 * action[0] / self._mjx_model.mass
        data = jnp.stack([place + 0.1 * speed, speed])
        state.info["steps"] = state.info["steps"] + 1
        done = jnp.abs(data[0]) > 1.0
        return State(data, self._obs(data), -jnp.abs(data[0]), jnp.float32(done), state.info)

    def _obs(self, data):
        if not self.dictionary:
            return data
        return {"privileged_state": jnp.append(data, self._mjx_model.mass), "state": data}


def lighter_or_heavier(model, rng):
    """As Playground's randomizers are written: models of as many robots, and the axes of what differs."""
    mass = jax.vmap(lambda key: model.mass * jax.random.uniform(key, minval=0.5, maxval=2.0))(rng)
    axes = jax.tree.map(lambda x: None, model)._replace(mass=0)
    return model._replace(mass=mass), axes


def test_the_time_limit_is_klimbs_and_truncates():
    env = PlaygroundEnvironment("cart", Cart(), 3)
    assert klimb.check_env(env, steps=20).trainable
    state, _ = env.reset(jax.random.key(0))
    ends = []
    for _ in range(3):
        after = env.step(jax.random.key(1), state, jnp.zeros(1))
        state = after.state
        ends.append((bool(after.terminated), bool(after.truncated)))
    assert ends == [(False, False), (False, False), (False, True)]
    assert state.inner.info["steps"] == 3
    fallen = env.step(jax.random.key(1), state._replace(inner=state.inner._replace(data=jnp.ones(2))), jnp.ones(1))
    assert (bool(fallen.terminated), bool(fallen.truncated)) == (True, True)


def test_repeated_actions_are_one_step_with_the_sum_of_the_rewards():
    once, thrice = PlaygroundEnvironment("cart", Cart(), 8), PlaygroundEnvironment("cart", Cart(), 8, action_repeat=3)
    assert thrice.max_episode_steps == 3
    state, _ = once.reset(jax.random.key(0))
    repeated, _ = thrice.reset(jax.random.key(0))
    rewards, ends = 0.0, []
    for _ in range(3):
        for _ in range(3):
            single = once.step(jax.random.key(1), state, jnp.ones(1))
            state, rewards = single.state, rewards + single.reward
        after = thrice.step(jax.random.key(1), repeated, jnp.ones(1))
        repeated = after.state
        np.testing.assert_allclose(after.obs, single.obs, rtol=1e-6)
        np.testing.assert_allclose(after.reward, rewards, rtol=1e-6)
        rewards = 0.0
        ends.append(bool(after.truncated))
    assert ends == [False, False, True]
    assert repeated.time == 9


def test_a_step_does_not_write_into_the_state_that_it_is_given():
    env = PlaygroundEnvironment("cart", Cart(), 9)
    state, _ = env.reset(jax.random.key(0))
    env.step(jax.random.key(1), state, jnp.zeros(1))
    assert state.inner.info["steps"] == 0


def test_the_critic_alone_sees_the_privileged_state():
    env = PlaygroundEnvironment("cart", Cart(dictionary=True), 9)
    assert env.critic_only == ("privileged_state",)
    networks = Networks(env, NetworkOptions(hidden=(4,)))
    assert networks.template.network.sizes[0] == 2
    assert networks.critic_template.network.sizes[0] == 5
    assert Networks(env, NetworkOptions(hidden=(4,), critic_observes=("state",))).template.network.sizes[0] == 3
    policy = networks.policy(jax.random.key(0))
    assert klimb.act(policy, {"state": np.zeros(2)}).shape == (1,)


def test_models_differ_between_episodes_and_stay_the_same_within_one():
    cart = Cart(dictionary=True)
    env = PlaygroundEnvironment("cart", cart, 50, lighter_or_heavier)
    keys = jax.random.split(jax.random.key(0), 16)
    states, obs = jax.jit(jax.vmap(env.reset))(keys)
    mass = np.asarray(obs)[:, 2]
    assert len(np.unique(mass)) == 16
    assert 1.0 <= mass.min() < 1.5 < 2.5 < mass.max() <= 4.0
    after = jax.jit(jax.vmap(env.step, in_axes=(0, 0, None)))(keys, states, jnp.ones(1))
    np.testing.assert_array_equal(np.asarray(after.obs)[:, 2], mass)
    speed = np.asarray(after.obs)[:, 1] - np.asarray(obs)[:, 1]
    np.testing.assert_allclose(speed, 0.1 / mass, rtol=1e-5)
    assert cart.mjx_model.mass == 2.0  # no tracer is left in the environment
    assert klimb.check_env(env, steps=20).trainable


def test_no_tracer_is_left_where_a_step_raises():
    cart = Cart()
    env = PlaygroundEnvironment("cart", cart, 50, lighter_or_heavier)
    state, _ = env.reset(jax.random.key(0))
    cart.step = lambda state, action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        jax.jit(env.step)(jax.random.key(0), state, jnp.ones(1))
    assert cart.mjx_model.mass == 2.0
