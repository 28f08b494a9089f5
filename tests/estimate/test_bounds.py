"""The constants of the guarantees and the mismatch on average: never exceeded, and attained where they can be."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from klimb import TabularMDP
from klimb.estimate import bounds


def fork(gamma: float) -> tuple[TabularMDP, np.ndarray, np.ndarray]:
    """A first choice between reward 1 for ever and reward 0 for ever; π takes the bad one, π' the good one."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 1] = transition[0, 1, 2] = 1
    transition[1, :, 1] = transition[2, :, 2] = 1
    reward = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    pi, new = np.tile([0.0, 1.0], (3, 1)), np.tile([1.0, 0.0], (3, 1))
    return TabularMDP(transition, reward, np.array([1.0, 0.0, 0.0]), gamma), pi, new


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_the_constant_from_rewards_is_attained(x64, gamma):
    mdp, pi, new = fork(gamma)
    advantage = np.asarray(mdp.advantages(jnp.asarray(pi)))
    largest = np.abs(advantage).max()
    worst = np.abs(np.sum(new * advantage, axis=1)).max()
    assert worst == pytest.approx(float(bounds.advantage_bound(1.0, gamma)), rel=1e-12)
    assert worst == pytest.approx(largest, rel=1e-12)
    # 2 ε max|A| is twice as much as C where all of the advantages that differ are of one sign.
    assert float(bounds.worst_gain_bound(1.0, largest)) == pytest.approx(2 * worst, rel=1e-12)


def test_the_estimate_of_c_is_attained_between_opposite_advantages():
    """π is even between A = +1 and A = −1; π' takes the good one: ε = ½, C = 1 = 2 ε max|A|."""
    assert float(bounds.worst_gain_bound(0.5, 1.0)) == 1.0


@pytest.mark.parametrize("horizon", [1, 3, 10])
def test_the_constant_of_episodes_is_attained(x64, horizon):
    mdp, pi, _ = fork(0.9)
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)
    episode = TabularMDP.finite_horizon(transition, reward, np.asarray(mdp.initial), horizon)
    table = np.concatenate([np.tile(pi, (horizon, 1)), np.full((1, 2), 0.5)])
    largest = np.abs(np.asarray(episode.advantages(jnp.asarray(table)))).max()
    assert largest == pytest.approx(float(bounds.episodic_advantage_bound(1.0, horizon)), rel=1e-12)


def test_without_discount_only_equal_rewards_have_a_constant():
    assert np.isinf(bounds.advantage_bound(1.0, 1.0))
    assert float(bounds.advantage_bound(0.0, 1.0)) == 0.0


def test_the_mismatch_on_average_is_summed_over_the_steps_before():
    summed = bounds.summed_mismatch_bound(np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(summed, [0.0, 0.1, 0.3, 0.6], rtol=1e-6)


def test_the_mismatch_on_average_is_attained_where_a_product_is_exceeded(x64):
    """After a first mistake π' errs no more, and all of its mistakes are made where π goes: they add up."""
    transition = np.zeros((4, 2, 4))
    transition[0, 0, 1] = transition[0, 1, 2] = 1  # 0.2 to state 1, where π and π' part for certain
    transition[1, 0, 1] = transition[1, 1, 3] = transition[2, :, 2] = transition[3, :, 3] = 1
    mdp = TabularMDP(transition, np.zeros((4, 2)), np.array([1.0, 0.0, 0.0, 0.0]), 0.9)
    pi = jnp.array([[0.2, 0.8], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    new = jnp.array([[0.4, 0.6], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    old_states, new_states = mdp.state_marginals(pi, 3), mdp.state_marginals(new, 3)
    mean = old_states @ (0.5 * jnp.abs(new - pi).sum(axis=1))
    np.testing.assert_allclose(mean[:2], 0.2, rtol=1e-12)
    mismatch = 0.5 * jnp.abs(new_states - old_states).sum(axis=1)
    assert float(mismatch[2]) == pytest.approx(0.4, rel=1e-12)
    assert float(mismatch[2]) == pytest.approx(float(bounds.summed_mismatch_bound(mean)[2]), rel=1e-12)
    assert float(mismatch[2]) > 1 - 0.8**2
