"""A small problem with episodes of one length, whose values and policy gradient are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.tabular.mdp import TabularMDP


@dataclass(frozen=True)
class Problem:
    """Undiscounted episodes of exactly `horizon` steps, so that no estimator needs a factor γᵗ. pi: π(a|s)."""

    transition: Float[np.ndarray, "S A S"]
    reward: Float[np.ndarray, "S A"]
    initial: Float[np.ndarray, " S"]
    pi: Float[np.ndarray, "S A"]
    horizon: int


def problem(seed: int = 3, states: int = 5, actions: int = 3, horizon: int = 20) -> Problem:
    """A random problem. Rewards vary around 1, the same mean for all actions, which a baseline can remove.

    seed: of NumPy's generator. states, actions: their numbers. horizon: steps per episode.
    """
    rng = np.random.default_rng(seed)
    logits = 0.5 * rng.normal(size=(states, actions))
    pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    transition = rng.dirichlet(np.full(states, 0.5), size=(states, actions))
    return Problem(
        transition, 1 + 0.5 * rng.normal(size=(states, actions)), rng.dirichlet(np.ones(states)), pi, horizon
    )


def simulate(task: Problem, count: int, seed: int) -> tuple[Int[np.ndarray, "T1 N"], Int[np.ndarray, "T N"]]:
    """The states, including the one after the last step, and the actions of `count` episodes.

    task: the problem. count: episodes. seed: of NumPy's generator.
    """
    rng = np.random.default_rng(seed)

    def draw_from(probabilities: Float[np.ndarray, "N K"]) -> Int[np.ndarray, " N"]:
        return (rng.random((count, 1)) > np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)

    states = [draw_from(np.tile(task.initial, (count, 1)))]
    actions = []
    for _ in range(task.horizon):
        actions.append(draw_from(task.pi[states[-1]]))
        states.append(draw_from(task.transition[states[-1], actions[-1]]))
    return np.stack(states), np.stack(actions)


def exact_values(task: Problem) -> Float[np.ndarray, "T1 S"]:
    """V_t(s), the expected sum of the rewards of the remaining steps, and 0 at the end. task: the problem."""
    value = np.zeros((task.horizon + 1, len(task.initial)))
    for t in reversed(range(task.horizon)):
        value[t] = np.sum(task.pi * (task.reward + task.transition @ value[t + 1]), axis=1)
    return value


def exact_gradient(task: Problem) -> Float[np.ndarray, " P"]:
    """∇J in the logits, by differentiating the exact J of the problem that stops after T steps. task: the problem."""
    mdp = TabularMDP.finite_horizon(task.transition, task.reward, task.initial, task.horizon)

    def objective(logits: Float[Array, "S A"]) -> Float[Array, ""]:
        layers = jnp.tile(jax.nn.softmax(logits), (task.horizon, 1))
        end = jnp.full((1, logits.shape[1]), 1 / logits.shape[1])
        return mdp.objective(jnp.concatenate([layers, end]))

    return np.asarray(jax.grad(objective)(jnp.log(jnp.asarray(task.pi)))).reshape(-1)
