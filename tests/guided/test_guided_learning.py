"""Does guided policy search learn? Its own page has the numbers; here is what has to hold."""

from __future__ import annotations

import jax
import pytest

import klimb
from klimb.guided.search import GuidedPolicySearch
from klimb.policies.actions import action_spec
from klimb.policies.networks import NetworkPolicy
from problems import trained_apart


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_importance_sampling_swings_the_pendulum_up(tmp_path) -> None:
    """From defaults, within 75 000 steps."""
    env = klimb.make("Pendulum-v1")
    untrained = NetworkPolicy(3, action_spec(env.action_space), hidden=(64, 64), key=jax.random.key(0))
    assert klimb.evaluate(untrained, env, episodes=50).mean < -900
    policy = trained_apart(tmp_path / "run", "guided", "Pendulum-v1", "--env-steps", "75000")
    assert klimb.evaluate(policy, env, episodes=50).mean >= -300


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["mirror_descent", pytest.param("constrained", marks=pytest.mark.long)])
def test_with_the_simulators_derivatives_a_pole_is_balanced_whose_reward_has_no_slope(method: str) -> None:
    """The reward is 1 until the pole falls, so that all there is to climb is the value after the look-ahead."""
    pytest.importorskip("mujoco")
    env = klimb.make("gymnasium:InvertedPendulum-v5")
    untrained = NetworkPolicy(4, action_spec(env.action_space), hidden=(64, 64), key=jax.random.key(0))
    assert klimb.evaluate(untrained, env, episodes=20).mean < 100
    rule = GuidedPolicySearch(method=method, dynamics="simulator", look_ahead=16)
    run = klimb.train(env.id, rule, env_steps=20_000, num_envs=16, num_steps=64, initial_log_std=-0.5)
    assert klimb.evaluate(run.policy, env, episodes=20).mean > 900
    # One step from where every row began, and one for each of four coordinates of the state and one of the action.
    assert run.history[0]["simulator_steps"] == 6 * 16 * 64
