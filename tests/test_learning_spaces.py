"""Rules learn tasks with actions of two kinds, with masks, and with observations of several parts."""

from __future__ import annotations

import jax
import pytest

import klimb
from klimb import PPO, TRPO, BehaviourCloning
from mixed_tasks import BEST, CompiledValves, valves

SIZES = {"num_envs": 16, "num_steps": 64, "hidden": (32, 32), "gamma": 0.9}
UNTRAINED, LEARNED = 0.65 * BEST, 0.8 * BEST


def untrained_return(env):
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(32, 32), key=jax.random.key(0))
    return klimb.evaluate(policy, env, episodes=100).mean


@pytest.mark.slow
@pytest.mark.parametrize("rule", [TRPO(), PPO()], ids=lambda rule: type(rule).__name__)
def test_a_choice_and_a_number_are_learned_together(rule):
    env = CompiledValves(masked=False)
    assert untrained_return(env) < UNTRAINED
    run = klimb.train(env, rule, env_steps=40_000, **SIZES)
    assert klimb.evaluate(run.policy, env, episodes=100).mean > LEARNED


@pytest.mark.slow
def test_parts_of_a_dictionary_are_learned_from():
    env = valves("observation")
    assert untrained_return(env) < UNTRAINED
    run = klimb.train(env, TRPO(), env_steps=40_000, **SIZES)
    assert klimb.evaluate(run.policy, env, episodes=100).mean > LEARNED


@pytest.mark.slow
def test_a_clone_of_recorded_episodes_has_both_kinds_of_actions():
    env = CompiledValves()
    teacher = klimb.train(env, TRPO(), env_steps=40_000, **SIZES).policy
    recorded = klimb.record(teacher, env, episodes=50)
    clone = klimb.train(env, BehaviourCloning(), demonstrations=recorded, hidden=(32, 32)).policy
    assert klimb.evaluate(clone, env, episodes=100).mean > LEARNED


@pytest.mark.long
@pytest.mark.slow
def test_taxi_with_its_mask_is_solved():
    """Without the mask the same training stays at −200 for many more steps (docs/environments.md)."""
    env = klimb.make("gymnasium:Taxi-v4")
    assert untrained_return(env) < -150
    run = klimb.train(env, TRPO(), env_steps=130_000, num_envs=16, num_steps=128)
    assert klimb.evaluate(run.policy, env, episodes=100).mean > 7
