"""Each method's steps are what they are called, and the order in which they arrive."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.theory.figures import policy_iteration
from klimb.theory.figures.policy_iteration import GAMMA, MEMBERS, START, PolicyIteration


@pytest.fixture(scope="module")
def drawn() -> PolicyIteration:
    return policy_iteration.compute(iterations=300)


def by_hand(pi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V and Q of the two states, without the library."""
    transition = np.zeros((2, 3, 2))
    transition[0] = [[1, 0], [0, 1], [1, 0]]
    transition[1] = [[0, 1], [1, 0], [1, 0]]
    reward = np.array([[0.4, 0, 0], [1, -1, -1]])
    value = np.linalg.solve(np.eye(2) - GAMMA * np.einsum("sa,sat->st", pi, transition), np.sum(pi * reward, axis=1))
    return value, reward + GAMMA * transition @ value


def test_policy_iteration_needs_two_steps(drawn: PolicyIteration) -> None:
    tables = drawn.policies["greedy"]
    np.testing.assert_array_equal(tables[0], START)
    for old, new in itertools.pairwise(tables[:4]):
        np.testing.assert_array_equal(new, np.eye(3)[by_hand(old)[1].argmax(axis=1)])
    np.testing.assert_allclose(drawn.objective["greedy"][1:4], [4, 9, 9], rtol=1e-12)
    assert drawn.optimal == pytest.approx(9, rel=1e-12)


def test_objectives_are_those_of_the_policies_and_never_fall(drawn: PolicyIteration) -> None:
    for name in MEMBERS:
        objective = drawn.objective[name]
        values = [by_hand(table)[0][0] for table in drawn.policies[name][::50]]
        np.testing.assert_allclose(objective[::50], values, rtol=1e-10)
        assert np.diff(objective).min() > -1e-12


def test_soft_steps_multiply_by_the_exponential_and_stay_in_the_trust_region(drawn: PolicyIteration) -> None:
    for name, multiplier in zip(("soft", "softer"), drawn.multipliers, strict=True):
        old, new = drawn.policies[name][1:3]
        expected = old * np.exp(by_hand(old)[1] / multiplier)
        np.testing.assert_allclose(new, expected / expected.sum(axis=1, keepdims=True), rtol=1e-9)
    problem = policy_iteration.problem()
    for old, new in itertools.pairwise(drawn.policies["trust_region"][:6]):
        kl = np.sum(new * np.log(new / old), axis=1)
        visits = np.asarray(problem.state_distribution(jnp.asarray(old)))
        assert visits @ kl == pytest.approx(drawn.max_kl, rel=1e-4)


def test_the_plain_gradient_is_that_of_j(drawn: PolicyIteration) -> None:
    with jax.enable_x64(True):
        problem = policy_iteration.problem()
        logits = jnp.log(jnp.asarray(START))
        gradient = jax.grad(lambda x: problem.objective(jax.nn.softmax(x)))(logits)
        expected = np.asarray(jax.nn.softmax(logits + gradient))
    np.testing.assert_allclose(drawn.policies["plain"][1], expected, rtol=1e-10)


def test_the_softer_the_step_the_later_it_arrives_and_the_plain_gradient_does_not(drawn: PolicyIteration) -> None:
    arrival = [int(np.argmax(drawn.objective[name] > 8.5)) for name in MEMBERS if name != "plain"]
    assert arrival == sorted(arrival)
    assert 0 < arrival[0] <= arrival[-1] < 300
    assert drawn.objective["plain"].max() < 4.01
