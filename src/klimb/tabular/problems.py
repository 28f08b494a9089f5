"""Ready-made tabular problems, as the arrays (transition, reward, initial) that `TabularMDP` takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from klimb.errors import ConfigError, EnvironmentNotFound, nearest
from klimb.tabular.transitions import Numbers, SparseTransition, Transition

Parts = tuple[Any, np.ndarray, np.ndarray]
"""transition (a table or a `SparseTransition`), reward, initial."""

DENSE_UP_TO = 128
"""Number of states up to which a table of S² numbers per action is the faster form."""


class Outcomes(NamedTuple):
    """The K possible outcomes of every (s, a): successor, probability, reward, and whether the episode ends.

    initial: ρ(s).
    """

    successor: Int[np.ndarray, "S A K"]
    probability: Float[np.ndarray, "S A K"]
    reward: Float[np.ndarray, "S A K"]
    terminated: Bool[np.ndarray, "S A K"]
    initial: Float[np.ndarray, " S"]


def random_parts(seed: int, num_states: int, num_actions: int, successors: int | None) -> Parts:
    """The arrays of `TabularMDP.random`.

    seed: of NumPy's generator. num_states: S, at least 1. num_actions: A, at least 1. successors: states that can
    follow each (s, a), from 1 to S (else ValueError); None for all of them.
    """
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(num_states, num_actions))
    initial = rng.dirichlet(np.ones(num_states))
    if successors is None:
        return rng.dirichlet(np.full(num_states, 0.5), size=reward.shape), reward, initial
    if not 1 <= successors <= num_states:
        raise ValueError(f"successors = {successors} has to be between 1 and the number of states, {num_states}")
    probability = rng.dirichlet(np.full(successors, 0.5), size=reward.shape)
    successor = rng.integers(num_states, size=(*reward.shape, successors))
    return _dense_if_small(SparseTransition(successor, probability)), reward, initial


def chain_parts(num_states: int, slip: float) -> Parts:
    """The arrays of `TabularMDP.chain`.

    num_states: length of the line, at least 1. slip: probability of the other action, in [0, 1]. Else ValueError.
    """
    if num_states < 1:
        raise ValueError(f"num_states = {num_states}; a chain has at least 1")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip = {slip} is outside [0, 1]")
    state = np.arange(num_states)
    right_left = np.stack([np.minimum(state + 1, num_states - 1), np.maximum(state - 1, 0)], axis=-1)
    successor = np.stack([right_left, right_left[:, ::-1]], axis=1)
    probability = np.broadcast_to([1 - slip, slip], successor.shape).copy()
    reward = np.zeros((num_states, 2))
    reward[-1, 0], reward[0, 1] = 1.0, 0.1
    initial = np.zeros(num_states)
    initial[0] = 1
    return _dense_if_small(SparseTransition(successor, probability)), reward, initial


def finite_horizon_parts(transition: Transition, reward: Numbers, initial: Numbers, horizon: int) -> Parts:
    """The arrays of `TabularMDP.finite_horizon`: state t·S + s at time t, and an absorbing end.

    transition: p(s'|s, a). reward: r(s, a). initial: ρ(s). horizon: steps, at least 1 (else ValueError).
    """
    if horizon < 1:
        raise ValueError(f"horizon = {horizon} has to be at least 1")
    reward, initial = np.asarray(reward), np.asarray(initial)
    num_states, num_actions = reward.shape
    sparse = _sparse(transition)
    layer = num_states * (np.arange(horizon) + 1)[:, None, None, None]
    successor = np.minimum(layer + np.asarray(sparse.successor), horizon * num_states)
    probability = np.broadcast_to(np.asarray(sparse.probability), successor.shape)
    width = successor.shape[-1]
    end = np.full((1, num_actions, width), horizon * num_states)
    certain = np.zeros((1, num_actions, width))
    certain[..., 0] = 1
    flat = (horizon * num_states, num_actions, width)
    parts = SparseTransition(
        np.concatenate([successor.reshape(flat), end]), np.concatenate([probability.reshape(flat), certain])
    )
    rewards = np.concatenate([np.tile(reward, (horizon, 1)), np.zeros((1, num_actions))])
    first = np.concatenate([initial, np.zeros(len(rewards) - num_states)])
    return _dense_if_small(parts), rewards, first


def gymnasium_parts(env: str | Any, **options: Any) -> Parts:
    """The arrays of `TabularMDP.from_gymnasium`.

    env: an id, with `options` for `gymnasium.make`, or an environment. Raises as `gymnasium_outcomes`.
    """
    outcomes = gymnasium_outcomes(env, **options)
    successor, probability, reward, terminated, initial = outcomes
    num_states = len(initial)
    ends = np.zeros(num_states, bool)
    ends[successor[terminated & (probability > 0)]] = True
    # A state that only the last step of an episode enters (a hole of FrozenLake) becomes absorbing. A state may also be
    # passed through: say 0 → 1 → 0 where the second step sometimes ends the episode. Then 0 keeps its transitions, and
    # every step that ends an episode leads to one additional absorbing state instead.
    passed_through = _visited(outcomes)
    expected = np.sum(probability * reward, axis=-1)
    if (ends & passed_through).any():
        successor = np.where(terminated, num_states, successor)
        successor = np.concatenate([successor, np.full((1, *successor.shape[1:]), num_states)])
        probability = np.concatenate([probability, _certain(probability)])
        expected = np.concatenate([expected, np.zeros((1, expected.shape[1]))])
        initial = np.append(initial, 0.0)
    else:
        successor = np.where(ends[:, None, None], np.arange(num_states)[:, None, None], successor)
        expected = np.where(ends[:, None], 0.0, expected)
    return _dense_if_small(SparseTransition(successor, probability)), expected, initial


def gymnasium_outcomes(env: str | Any, **options: Any) -> Outcomes:
    """The table `P` of a toy-text environment, padded with outcomes of probability 0.

    env: an id, with `options` for `gymnasium.make`, or an environment.

    Raises EnvironmentNotFound for an unknown id, ConfigError for an environment without a table.
    """
    import gymnasium as gym

    if isinstance(env, str):
        identifier = env.rpartition(":")[2]
        if identifier not in gym.registry:
            raise EnvironmentNotFound(f"there is no environment {identifier!r}{nearest(identifier, gym.registry)}")
        env = gym.make(identifier, **options)
    unwrapped = env.unwrapped
    table, initial = getattr(unwrapped, "P", None), getattr(unwrapped, "initial_state_distrib", None)
    if not isinstance(table, dict) or initial is None:
        name = env.spec.id if env.spec is not None else type(unwrapped).__name__
        raise ConfigError(
            f"{name} has no table of transitions (P, initial_state_distrib); Gymnasium's toy-text environments have: "
            "FrozenLake-v1, FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4"
        )
    num_states, num_actions = len(table), len(table[0])
    width = max(len(table[s][a]) for s in range(num_states) for a in range(num_actions))
    rows = [
        table[s][a] + [(0.0, s, 0.0, False)] * (width - len(table[s][a]))
        for s in range(num_states)
        for a in range(num_actions)
    ]
    shape = (num_states, num_actions, width)
    probability, successor, reward, terminated = (
        np.array([[outcome[i] for outcome in row] for row in rows]).reshape(shape) for i in range(4)
    )
    initial = np.asarray(initial, float)
    return Outcomes(
        successor.astype(np.int32), probability.astype(float), reward.astype(float), terminated.astype(bool), initial
    )


def _visited(outcomes: Outcomes) -> Bool[np.ndarray, " S"]:
    """States in which an action is taken in some episode: the first ones, and all that follow before it ends."""
    continues = (outcomes.probability > 0) & ~outcomes.terminated
    visited = outcomes.initial > 0
    while True:
        expanded = visited.copy()
        expanded[outcomes.successor[continues & visited[:, None, None]]] = True
        if (expanded == visited).all():
            return visited
        visited = expanded


def _certain(probability: np.ndarray) -> np.ndarray:
    """Rows of one more state, whose first successor has probability 1."""
    row = np.zeros((1, *probability.shape[1:]))
    row[..., 0] = 1
    return row


def _sparse(transition: Transition) -> SparseTransition:
    if isinstance(transition, SparseTransition):
        return transition
    probability = np.asarray(transition)
    return SparseTransition(np.broadcast_to(np.arange(probability.shape[-1]), probability.shape), probability)


def _dense_if_small(sparse: SparseTransition) -> Transition:
    """As a table if there are few states; NumPy arrays either way, which `TabularMDP` checks."""
    successor, probability = np.asarray(sparse.successor), np.asarray(sparse.probability)
    num_states, num_actions, _ = successor.shape
    if num_states > DENSE_UP_TO:
        return SparseTransition(successor.astype(np.int32), probability)
    table = np.zeros((num_states, num_actions, num_states))
    state, action, _ = np.indices(successor.shape)
    np.add.at(table, (state, action, successor), probability)
    return table
