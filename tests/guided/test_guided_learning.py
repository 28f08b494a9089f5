"""Does guided policy search learn? Its own page has the numbers; here is what has to hold."""

from __future__ import annotations

import jax
import pytest

import klimb
from klimb.guided.search import GuidedPolicySearch
from klimb.policies.actions import action_spec
from klimb.policies.networks import NetworkPolicy


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_importance_sampling_swings_the_pendulum_up() -> None:
    """From defaults, within 75 000 steps."""
    env = klimb.make("Pendulum-v1")
    untrained = NetworkPolicy(3, action_spec(env.action_space), hidden=(64, 64), key=jax.random.key(0))
    assert klimb.evaluate(untrained, env, episodes=50).mean < -900
    run = klimb.train("Pendulum-v1", GuidedPolicySearch(), env_steps=75_000)
    assert run.history[-1]["env_steps"] >= 75_000
    assert klimb.evaluate(run.policy, env, episodes=50).mean >= -300
