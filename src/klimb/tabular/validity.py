"""Checks that arrays are an MDP and that undiscounted problems end, with errors that name the row and the number."""

from __future__ import annotations

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Array, Bool, Float

from klimb.tabular.transitions import Numbers, SparseTransition, Transition


def require_mdp(transition: Numbers | SparseTransition, reward: np.ndarray, initial: np.ndarray, gamma: float) -> None:
    """ValueError when shapes, probabilities, rewards or γ are not those of an MDP.

    transition: p(s'|s, a), `[S, A, S]` or sparse. reward: r(s, a), `[S, A]`. initial: ρ(s), `[S]`. gamma: γ.
    """
    _require_shapes(transition, reward, initial)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma} is outside [0, 1]")
    if not np.isfinite(reward).all():
        row = tuple(int(i) for i in np.argwhere(~np.isfinite(reward))[0])
        raise ValueError(f"reward{list(row)} = {reward[row]} is not finite")
    table = transition.probability if isinstance(transition, SparseTransition) else transition
    for name, rows in (("transition", np.asarray(table)), ("initial", initial[None])):
        _require_distributions(name, rows)


def _require_shapes(transition: Numbers | SparseTransition, reward: np.ndarray, initial: np.ndarray) -> None:
    if isinstance(transition, SparseTransition):
        successor, probability = np.asarray(transition.successor), np.asarray(transition.probability)
        shapes_fit = reward.ndim == 2 and successor.ndim == 3 and successor.shape == probability.shape
        if not shapes_fit or successor.shape[:2] != reward.shape or initial.shape != reward.shape[:1]:
            raise ValueError(
                f"successor {successor.shape}, probability {probability.shape}, reward {reward.shape} and initial "
                f"{initial.shape} do not fit: they have to be [S, A, K], [S, A, K], [S, A] and [S]"
            )
        outside = (successor < 0) | (successor >= len(reward))
        if outside.any():
            row = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(f"successor{list(row)} = {successor[row]} is not a state: there are {len(reward)} states")
        return
    shape = np.shape(transition)
    if reward.ndim != 2 or shape != (*reward.shape, reward.shape[0]) or initial.shape != reward.shape[:1]:
        raise ValueError(
            f"transition {shape}, reward {reward.shape} and initial {initial.shape} do not fit: "
            "they have to be [S, A, S], [S, A] and [S]"
        )


def _require_distributions(name: str, table: np.ndarray) -> None:
    rows = table.reshape(-1, table.shape[-1])
    # Written so that a NaN counts as wrong.
    wrong = ~((np.abs(rows.sum(-1) - 1) <= 1e-6) & (rows >= 0).all(-1))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        index = [int(i) for i in np.unravel_index(first, table.shape[:-1])] if name != "initial" else ""
        raise ValueError(
            f"{name}{index} is not a probability distribution: its sum is {rows[first].sum():.6g}, "
            f"its smallest entry {rows[first].min():.6g}"
        )


def require_policy(pi: Float[Array, "S A"], shape: tuple[int, ...]) -> None:
    """ValueError when a table is not π(a|s) for S states and A actions.

    pi: the table. shape: (S, A).
    """
    if np.shape(pi) != shape:
        raise ValueError(f"the policy's table is {list(np.shape(pi))}, the problem is [S, A] = {list(shape)}")
    _require_distributions("policy", np.asarray(pi))


def absorbing_states(transition: Transition, reward: np.ndarray) -> Bool[np.ndarray, " S"]:
    """Whether each state is absorbing: no action leaves it, and all its rewards are 0.

    transition: p(s'|s, a). reward: r(s, a), `[S, A]`.
    """
    states = np.arange(len(reward))
    if isinstance(transition, SparseTransition):
        is_itself = np.asarray(transition.successor) == states[:, None, None]
        stay_probability = np.where(is_itself, np.asarray(transition.probability), 0).sum(-1)
    else:
        stay_probability = np.asarray(transition)[states, :, states]
    return ((stay_probability == 1) & (reward == 0)).all(-1)


def require_reachable_end(transition: Transition, absorbing: np.ndarray) -> None:
    """For γ = 1: ValueError when no policy reaches an absorbing state from some state, whose value is then undefined.

    transition: p(s'|s, a). absorbing: where an episode is over, `[S]`.
    """
    stuck = ~_can_reach(_graph(transition, None), absorbing)
    if stuck.any():
        state = int(np.flatnonzero(stuck)[0])
        raise ValueError(
            f"gamma = 1 needs an end, and from state {state} no policy reaches one (a state that no action leaves and "
            "whose rewards are 0): give gamma < 1, or a horizon with TabularMDP.finite_horizon"
        )


def require_proper(transition: Transition, absorbing: Array, pi: Array) -> None:
    """For γ = 1: ValueError when a policy may never end from some state. Not checked under tracing.

    transition: p(s'|s, a). absorbing: states where an episode is over, `[S]`. pi: π(a|s), `[S, A]`.
    """
    leaves = jax.tree.leaves((transition, absorbing, pi))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    stuck = ~_can_reach(_graph(transition, np.asarray(pi)), np.asarray(absorbing))
    if stuck.any():
        raise ValueError(
            f"gamma = 1 needs a policy that ends, and from state {int(np.flatnonzero(stuck)[0])} this one never does: "
            "give gamma < 1, or another policy"
        )


def _graph(transition: Transition, pi: np.ndarray | None) -> scipy.sparse.csr_array:
    """An edge s → s' where a step is possible: under π, or without one under some policy."""
    if isinstance(transition, SparseTransition):
        successor, probability = np.asarray(transition.successor), np.asarray(transition.probability)
    else:
        probability = np.asarray(transition)
        successor = np.broadcast_to(np.arange(probability.shape[-1]), probability.shape)
    possible = probability > 0 if pi is None else (probability > 0) & (pi[..., None] > 0)
    state, _, _ = np.nonzero(possible)
    count = probability.shape[0]
    return scipy.sparse.csr_array((np.ones(len(state)), (state, successor[possible])), shape=(count, count))


def _can_reach(graph: scipy.sparse.csr_array, ends: np.ndarray) -> np.ndarray:
    """Whether there is a path from each node to an end: searched backwards from an extra node next to all ends."""
    count = len(ends)
    backwards = scipy.sparse.lil_array((count + 1, count + 1))
    backwards[:count, :count] = graph.T
    backwards[count, np.flatnonzero(ends)] = 1
    reached = scipy.sparse.csgraph.breadth_first_order(backwards.tocsr(), count, return_predecessors=False)
    reaches_end = np.zeros(count + 1, bool)
    reaches_end[reached] = True
    return reaches_end[:count]
