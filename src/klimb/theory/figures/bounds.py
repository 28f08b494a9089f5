"""The shift of the state distribution over time between two policies with TV ≤ ε in every state, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.bounds import linear_mismatch_bound, state_mismatch_bound
from klimb.tabular.mdp import TabularMDP
from klimb.theory.figures import style
from klimb.theory.surrogate import state_variation


@dataclass(frozen=True)
class Bounds:
    """TV(p_π'^t, p_π^t) for t = 0 … T − 1: of R random problems, and of one where a wrong action can't be undone.

    epsilon: ε. random_epsilon: the total variation of the worst state, of each random problem.
    """

    epsilon: float
    random_epsilon: Float[np.ndarray, " R"]
    random: Float[np.ndarray, "R T"]
    corridor: Float[np.ndarray, " T"]
    coupling_bound: Float[np.ndarray, " T"]
    linear_bound: Float[np.ndarray, " T"]


def compute(epsilon: float = 0.05, horizon: int = 51, problems: int = 8) -> Bounds:
    """Both kinds of problem, with two policies whose worst state has TV = ε.

    epsilon: ε, in (0, 1]. horizon: time steps T. problems: number of random problems R.
    """
    with jax.enable_x64(True):
        pairs = [_random_pair(seed, epsilon) for seed in range(problems)]
        time = np.arange(horizon)
        return Bounds(
            epsilon=epsilon,
            random_epsilon=np.array([jnp.max(state_variation(pi, new)) for _, pi, new in pairs]),
            random=np.stack([drift(*pair, horizon) for pair in pairs]),
            corridor=drift(*_corridor(epsilon), horizon),
            coupling_bound=np.asarray(state_mismatch_bound(epsilon, time)),
            linear_bound=np.asarray(linear_mismatch_bound(epsilon, time)),
        )


def drift(mdp: TabularMDP, pi: Float[Array, "S A"], new: Float[Array, "S A"], horizon: int) -> Float[np.ndarray, " T"]:
    """TV = ½ Σ_s |p_π'(s_t = s) − p_π(s_t = s)| for every t.

    mdp: the problem. pi: π(a|s). new: π'(a|s). horizon: time steps T.
    """
    difference = _marginals(mdp, new, horizon) - _marginals(mdp, pi, horizon)
    return 0.5 * np.abs(np.asarray(difference)).sum(axis=1)


_marginals = eqx.filter_jit(TabularMDP.state_marginals)


def _random_pair(seed: int, epsilon: float) -> tuple[TabularMDP, Array, Array]:
    """Policies with TV = ε in every state, or as far apart as two random policies are."""
    # Few successors, because where every state can follow every other the difference vanishes at once.
    mdp = TabularMDP.random(seed, 12, 3, 0.9, successors=2)
    pi, other = np.random.default_rng(seed).dirichlet(np.full(3, 0.4), size=(2, 12))
    variation = 0.5 * np.abs(other - pi).sum(axis=1, keepdims=True)
    return mdp, jnp.asarray(pi), jnp.asarray(pi + np.minimum(1, epsilon / variation) * (other - pi))


def _corridor(epsilon: float) -> tuple[TabularMDP, Array, Array]:
    """Two states: in state 0, action 0 stays there and action 1 leads to state 1, which is never left."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = 1
    transition[1, :, 1] = 1
    mdp = TabularMDP(transition, np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0]), 0.9)
    return mdp, jnp.array([[1.0, 0.0]] * 2), jnp.array([[1 - epsilon, epsilon]] * 2)


def summary(data: Bounds) -> list[str]:
    """How tight the bounds are. data: of the figure."""
    last = data.random.shape[1] - 1
    share = data.random[:, 1:] / data.coupling_bound[1:]
    gap = np.abs(data.corridor - data.coupling_bound).max()
    return [
        f"ε = {data.epsilon:g}; at t = {last} the bounds are {data.coupling_bound[-1]:.4f} (coupling) and "
        f"{data.linear_bound[-1]:.4f} (linear)",
        f"{len(share)} random problems: TV at t = {last} up to {data.random[:, -1].max():.4f}, "
        f"at most {share.max():.1%} of the bound at any t",
        f"a wrong action that can't be undone: TV − (1 − (1 − ε)ᵗ) is 0 to {gap:.0e}",
    ]


@style.with_style
def draw(data: Bounds) -> Figure:
    """One panel per kind of problem, with the same two bounds in both. data: of the figure."""
    figure = style.page(11.0, 4.1)
    left, right = figure.subplots(1, 2, sharey=True)
    time = np.arange(len(data.corridor))
    for axes in (left, right):
        _draw_bounds(axes, data, time)
    for curve in data.random:
        left.plot(time, curve, color=style.BLUE, linewidth=1.4, alpha=0.7)
    right.plot(time[::2], data.corridor[::2], "o", color=style.BLUE, markersize=4.5, markeredgecolor="white")
    height = data.random[:, -1].max() + 0.04
    text = f"{len(data.random)} random problems, $\\epsilon={data.epsilon:g}$"
    style.label(left, text, float(time[-1] - 1), height, style.BLUE, ha="right", fontsize=12)
    at = int(0.7 / data.epsilon)
    text = "no wrong action\ncan be undone"
    style.label(right, text, at + 1.5, data.corridor[at] - 0.03, style.BLUE, fontsize=12, va="top", linespacing=1.3)
    left.set_title("If states mix, most of the difference disappears")
    right.set_title("If no wrong action can be undone, the bound is tight")
    left.set_ylabel(r"$\mathrm{TV}(p^t_{\pi'},\,p^t_{\pi})$")
    return figure


def _draw_bounds(axes: Axes, data: Bounds, time: np.ndarray) -> None:
    axes.grid(axis="y")
    axes.plot(time, data.linear_bound, color=style.QUIET, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.plot(time, data.coupling_bound, color=style.ORANGE, linewidth=2.2)
    axes.set(xlim=(0, time[-1]), ylim=(0, 1.02), xlabel=r"time  $t$")
    at = int(0.62 / data.epsilon)
    style.label(axes, r"$\epsilon t$", at - 1.5, data.linear_bound[at], style.QUIET, ha="right", fontsize=13)
    at = min(int(1.5 / data.epsilon), len(time) - 1)
    text = r"$1-(1-\epsilon)^t$"
    style.label(axes, text, at + 2.0, data.coupling_bound[at] - 0.01, style.ORANGE, va="top", fontsize=13)
