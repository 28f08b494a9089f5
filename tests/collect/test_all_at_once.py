"""Environments that simulate all copies at once: their states hold arrays that the copies share."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import klimb
from klimb import PPO, TRPO
from klimb.training import copies
from problems import assert_same_bits, slow_except

SMALL = {"num_envs": 4, "num_steps": 16, "env_steps": 4 * 16 * 3, "hidden": (4,), "critic_num_minibatches": 2}
LIMIT = 5


class Walk(klimb.CompiledEnvironment):
    """A walk on a line from a random place, for `LIMIT` steps; one copy at a time."""

    id = "walk"
    max_episode_steps = LIMIT
    observation_space = gymnasium.spaces.Box(-10, 10, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, key):
        place = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        return (place, jnp.int32(0)), place

    def step(self, key, state, action):
        place, time = state
        place = place + 0.1 * action + 0.01 * jax.random.normal(key, (1,))
        over = jnp.abs(place[0]) > 1.2
        return klimb.Transition((place, time + 1), place, -jnp.abs(place[0]), over, time + 1 >= LIMIT)


class Arena(NamedTuple):
    """State of all copies. steps: that the arena has made: one number for all of them."""

    place: Array
    time: Array
    steps: Array


class WalkOfAll(Walk):
    """The same, of all copies at once: it can't be vmapped."""

    id = "walk of all"
    one_seed_at_once = True

    def reset(self, key):
        raise AssertionError("one copy alone")

    def step(self, key, state, action):
        raise AssertionError("one copy alone")

    def reset_all(self, keys):
        # As a simulator's call from outside of JAX: with a second axis it fails.
        assert keys.ndim == 1
        (place, time), obs = jax.vmap(super().reset)(keys)
        return Arena(place, time, jnp.zeros(3)), obs

    def step_all(self, keys, state, action):
        after = jax.vmap(super().step)(keys, (state.place, state.time), action)
        return after._replace(state=Arena(*after.state, state.steps + 1))

    def restarted(self, ended, first, state):
        chosen = super().restarted(ended, (first.place, first.time), (state.place, state.time))
        return Arena(*chosen, state.steps)

    def of_copy(self, state, copy):
        return Arena(state.place[copy], state.time[copy], state.steps)


@pytest.mark.parametrize("rule", slow_except({TRPO()}, [TRPO(), PPO(num_minibatches=2)]), ids=["trpo", "ppo"])
def test_a_training_is_the_one_with_one_copy_at_a_time(rule, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where seeds are computed side by side, those of such an environment are not.
    monkeypatch.setattr(copies, "side_by_side", lambda: True)
    all_at_once = klimb.train(WalkOfAll(), rule, num_seeds=2, **SMALL)
    monkeypatch.setattr(copies, "side_by_side", lambda: False)
    one_by_one = klimb.train(Walk(), rule, num_seeds=2, **SMALL)
    for a, b in zip(all_at_once.policies, one_by_one.policies, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert [r["episodes"] for r in all_at_once.history] == [r["episodes"] for r in one_by_one.history]


def test_what_copies_share_is_saved_and_goes_on(tmp_path) -> None:
    options = {**SMALL, "num_seeds": 2, "checkpoint_every": 1}
    whole = klimb.train(WalkOfAll(), TRPO(), run_dir=tmp_path / "whole", **options)
    klimb.train(WalkOfAll(), TRPO(), run_dir=tmp_path / "cut", **{**options, "env_steps": 4 * 16})
    cut = klimb.resume(tmp_path / "cut", env=WalkOfAll(), env_steps=options["env_steps"])
    for a, b in zip(whole.policies, cut.policies, strict=True):
        assert_same_bits(a, b)


def test_evaluations_and_films_step_all_at_once() -> None:
    env = WalkOfAll()
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    result = klimb.evaluate(policy, env, episodes=7, seed=1)
    same = klimb.evaluate(policy, Walk(), episodes=7, seed=1)
    np.testing.assert_allclose(result.returns, same.returns, rtol=1e-5)
    assert result.lengths.max() <= LIMIT

    class Seen(WalkOfAll):
        def render(self, state):
            assert state.place.shape == (1,)
            assert state.steps.shape == (3,)
            return np.full((8, 8, 3), int(state.steps[0]), np.uint8)

    clip = klimb.film(policy, Seen(), seed=1)
    assert clip.pictures[:, 0, 0, 0].tolist() == list(range(len(clip.reward) + 1))
