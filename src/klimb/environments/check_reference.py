"""Whether a compiled environment does what a Gymnasium environment does, step by step from the same states."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from klimb.environments.base import CompiledEnvironment
from klimb.environments.check_compiled import random_steps
from klimb.environments.faults import traceback_text
from klimb.environments.findings import Finding
from klimb.environments.trial import random_actions
from klimb.errors import ConfigError, EnvironmentNotFound, nearest, one_line

NAME = "the same as the reference"
RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""How far numbers may be apart: float32 in a program against, as a rule, float64 in Python."""
MOST_STEPS = 256


class _Visited(NamedTuple):
    """T steps: the states before them, the actions, and what came of them."""

    states: Any
    actions: Array
    next_obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def reference_finding(environment: CompiledEnvironment, reference: str, steps: int, seed: int) -> Finding:
    """The finding: where it is said which of the reference's observations, rewards and ends differ, and by how much.

    Before each step the reference is put into the environment's state; the steps of both are then compared. Both have
    to be deterministic.

    environment: compiled. reference: a Gymnasium id. steps: at most MOST_STEPS of them. seed: of states and actions.
    """
    other = _made(reference)
    if type(environment).write_reference is CompiledEnvironment.write_reference:
        return Finding(
            NAME,
            "fails",
            f"{one_line(environment.id, 60)} does not say how a state is written into {reference}",
            "give it a method write_reference(state, reference) that puts the Gymnasium environment into a state",
        )
    visited = _visit(environment, min(steps, MOST_STEPS), seed)
    found = []
    for t in range(len(visited.reward)):
        state = jax.tree.map(lambda x, t=t: np.asarray(x[t]), visited.states)
        try:
            other.reset(seed=seed)  # some note that an episode has ended
            environment.write_reference(state, other)
            obs, reward, terminated, _, _ = other.step(_as_python(environment, visited.actions[t]))
            row = np.ravel(environment.observations.encoded.flatten(obs))
            found.append((row.astype(np.float64), float(reward), bool(terminated)))
        # SystemExit: an environment that calls sys.exit() must not end the program.
        except (Exception, SystemExit) as error:
            text = f"step {t}: {type(error).__name__}: {one_line(error, 200)}"
            return Finding(NAME, "fails", text, traceback=traceback_text(error))
    other.close()
    return _compared(visited, found, reference)


def _as_python(environment: CompiledEnvironment, action: Array) -> Any:
    """An action as Gymnasium's spaces have it: numbers are Python's, since some environments look them up in tables."""
    whole = environment.actions.unflatten(np.asarray(action))
    return jax.tree.map(lambda x: x.item() if np.ndim(x) == 0 else x, whole)


def _made(reference: str) -> Any:
    """The Gymnasium environment, without its time limit, which is not a part of states."""
    identifier = reference.removeprefix("gymnasium:")
    if identifier not in gym.registry:
        raise EnvironmentNotFound(
            f"the reference is no Gymnasium id: {one_line(reference, 80)!r}{nearest(identifier[:80], gym.registry)}"
        )
    try:
        return gym.make(identifier, disable_env_checker=True).unwrapped
    except (gym.error.Error, ImportError) as error:
        raise ConfigError(f"the reference {identifier} can't be made: {one_line(error)}") from error


def _visit(environment: CompiledEnvironment, steps: int, seed: int) -> _Visited:
    """Steps with random actions, with a reset after every end."""
    actions = jnp.asarray(random_actions(environment.action_space, environment.actions, steps, seed))
    states, taken, next_obs, reward, terminated, *_ = random_steps(environment, actions, seed)
    rows = np.asarray(next_obs, np.float64).reshape(steps, -1)
    seen = rows[:, : environment.observations.encoded.size]
    return _Visited(states, taken, seen, np.asarray(reward, np.float64), np.asarray(terminated))


def _compared(visited: _Visited, found: list[tuple[np.ndarray, float, bool]], reference: str) -> Finding:
    steps = len(found)
    others = np.stack([obs for obs, _, _ in found]), np.array([reward for _, reward, _ in found])
    wrong = []
    for what, own, other in (("observation", visited.next_obs, others[0]), ("reward", visited.reward, others[1])):
        gap = np.abs(own - other)
        excess = gap - ABSOLUTE - RELATIVE * np.abs(other)
        if excess.max() > 0 or not np.isfinite(gap).all():
            where = np.unravel_index(np.nanargmax(np.where(np.isfinite(gap), excess, np.inf)), gap.shape)
            number = f", number {where[1]}" if len(where) > 1 else ""
            wrong.append(f"{what} of step {where[0]}{number}: {own[where]:.6g} and not {other[where]:.6g}")
    ends = np.array([end for _, _, end in found])
    if (ends != visited.terminated).any():
        t = int(np.argmax(ends != visited.terminated))
        wrong.append(f"step {t} {'terminates' if visited.terminated[t] else 'does not terminate'}")
    if wrong:
        remedy = "compare the formulas of this step; random transitions can't be compared"
        return Finding(NAME, "fails", f"{reference} does something else: {'; '.join(wrong)}", remedy)
    gap = max(np.abs(visited.next_obs - others[0]).max(), np.abs(visited.reward - others[1]).max())
    return Finding(NAME, "ok", f"{steps} steps as {reference} makes them; the largest difference is {gap:.1g}")
