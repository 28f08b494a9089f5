"""The split by mistakes against an enumeration of every path, and where its printed form is no distribution."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from klimb.theory.mistakes import mistake_probability, mistaken_marginals
from klimb.theory.surrogate import state_variation
from problems import make_mdp

STATES, ACTIONS, HORIZON = 3, 2, 4


def policies(seed: int, deterministic: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pi, new = rng.dirichlet(np.ones(ACTIONS), size=(2, STATES))
    return (np.eye(ACTIONS)[pi.argmax(axis=1)] if deterministic else pi), new


def enumerated(mdp, pi: np.ndarray, new: np.ndarray, epsilon: float) -> np.ndarray:
    """P(s_t = s and a mistake before t): over all states, actions and, for each action, which stage it came from."""
    transition, initial = np.asarray(mdp.transition), np.asarray(mdp.initial)
    mass = np.zeros((HORIZON, STATES))
    for t in range(1, HORIZON):
        for path in itertools.product(range(STATES), *[range(ACTIONS), range(2), range(STATES)] * t):
            chance, state, erred = initial[path[0]], path[0], False
            for action, rest, successor in zip(path[1::3], path[2::3], path[3::3], strict=True):
                kept = (1 - epsilon) * pi[state, action]
                chance *= (new[state, action] - kept if rest else kept) * transition[state, action, successor]
                erred, state = erred or bool(rest), successor
            mass[t, state] += chance * erred
    return mass


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_mistaken_part_is_that_of_all_paths_with_a_mistake(x64, deterministic):
    mdp = make_mdp(1, STATES, ACTIONS)
    pi, new = policies(2, deterministic)
    epsilon = float(mistake_probability(jnp.asarray(pi), jnp.asarray(new)))
    assert 0 < epsilon < 1
    mistaken = np.asarray(mistaken_marginals(mdp, jnp.asarray(pi), jnp.asarray(new), epsilon, HORIZON))
    np.testing.assert_allclose(mistaken, enumerated(mdp, pi, new, epsilon), atol=1e-14)
    np.testing.assert_allclose(mistaken.sum(axis=1), 1 - (1 - epsilon) ** np.arange(HORIZON), atol=1e-14)
    assert mistaken.min() >= 0


def test_a_deterministic_policy_needs_the_total_variation_and_another_one_more(x64):
    for seed in range(5):
        for deterministic in (True, False):
            pi, new = map(jnp.asarray, policies(seed, deterministic))
            epsilon, variation = mistake_probability(pi, new), jnp.max(state_variation(pi, new))
            if deterministic:
                assert float(epsilon) == pytest.approx(float(variation), rel=1e-12)
            else:
                assert float(epsilon) > float(variation)


def test_with_the_total_variation_alone_the_printed_mistakes_are_no_distribution(x64):
    """π is even, π' certain, and each action leads to a state of its own: p_mistake would be (1.5, −0.5)."""
    transition = np.tile(np.eye(2), (2, 1, 1))
    mdp = make_mdp(0, 2, 2)
    mdp = type(mdp)(transition, np.zeros((2, 2)), np.array([1.0, 0.0]), 0.9)
    pi, new = jnp.array([[0.5, 0.5]] * 2), jnp.array([[1.0, 0.0]] * 2)
    printed = mistaken_marginals(mdp, pi, new, 0.5, 2)[1] / 0.5
    np.testing.assert_allclose(printed, [1.5, -0.5], atol=1e-14)
    assert float(mistake_probability(pi, new)) == 1.0


def test_no_difference_has_no_mistakes(x64):
    mdp, (pi, _) = make_mdp(3, STATES, ACTIONS), policies(0, False)
    same = jnp.asarray(pi)
    assert float(mistake_probability(same, same)) == 0.0
    np.testing.assert_array_equal(mistaken_marginals(mdp, same, same, 0.0, HORIZON), np.zeros((HORIZON, STATES)))
