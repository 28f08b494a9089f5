"""Two policies that are never more than ε apart, and how far apart the states drift that they lead to."""

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
    """TV(p_π'^t, p_π^t) for t = 0 … T − 1: of R random problems, and of one where a wrong action can't be undone."""

    epsilon: float
    random_epsilon: Float[np.ndarray, " R"]
    random: Float[np.ndarray, "R T"]
    corridor: Float[np.ndarray, " T"]
    coupling_bound: Float[np.ndarray, " T"]
    linear_bound: Float[np.ndarray, " T"]


def numbers(epsilon: float = 0.05, horizon: int = 51, problems: int = 8) -> Bounds:
    """Both kinds of problem, with two policies whose worst state has TV = ε."""
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
    """TV = ½ Σ_s |p_π'(s_t = s) − p_π(s_t = s)| for every t."""
    difference = _marginals(mdp, new, horizon) - _marginals(mdp, pi, horizon)
    return 0.5 * np.abs(np.asarray(difference)).sum(axis=1)


_marginals = eqx.filter_jit(TabularMDP.state_marginals)


def _random_pair(seed: int, epsilon: float) -> tuple[TabularMDP, Array, Array]:
    """Policies that are ε apart in every state, or as far as probabilities allow."""
    # Few successors: where every state can follow every other, the past is forgotten at once.
    mdp = TabularMDP.random(seed, 12, 3, 0.9, successors=2)
    pi, other = np.random.default_rng(seed).dirichlet(np.full(3, 0.4), size=(2, 12))
    apart = 0.5 * np.abs(other - pi).sum(axis=1, keepdims=True)
    return mdp, jnp.asarray(pi), jnp.asarray(pi + np.minimum(1, epsilon / apart) * (other - pi))


def _corridor(epsilon: float) -> tuple[TabularMDP, Array, Array]:
    """State 0 is on track, where action 0 stays and action 1 leads to state 1, for good."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = 1
    transition[1, :, 1] = 1
    mdp = TabularMDP(transition, np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0]), 0.9)
    return mdp, jnp.array([[1.0, 0.0]] * 2), jnp.array([[1 - epsilon, epsilon]] * 2)


def summary(numbers: Bounds) -> list[str]:
    """How much of the bound is used."""
    last = numbers.random.shape[1] - 1
    share = numbers.random[:, 1:] / numbers.coupling_bound[1:]
    gap = np.abs(numbers.corridor - numbers.coupling_bound).max()
    return [
        f"ε = {numbers.epsilon:g}; at t = {last} the bounds are {numbers.coupling_bound[-1]:.4f} (coupling) and "
        f"{numbers.linear_bound[-1]:.4f} (linear)",
        f"{len(share)} random problems: TV at t = {last} up to {numbers.random[:, -1].max():.4f}, "
        f"at most {share.max():.1%} of the bound at any t",
        f"one wrong action for good: TV − (1 − (1 − ε)ᵗ) is 0 to {gap:.0e}",
    ]


@style.drawn
def draw(numbers: Bounds) -> Figure:
    """One panel a kind of problem, the same two bounds in both."""
    figure = style.page(11.0, 4.1)
    left, right = figure.subplots(1, 2, sharey=True)
    time = np.arange(len(numbers.corridor))
    for axes in (left, right):
        _draw_bounds(axes, numbers, time)
    for curve in numbers.random:
        left.plot(time, curve, color=style.BLUE, linewidth=1.4, alpha=0.7)
    right.plot(time[::2], numbers.corridor[::2], "o", color=style.BLUE, markersize=4.5, markeredgecolor="white")
    height = numbers.random[:, -1].max() + 0.04
    text = f"{len(numbers.random)} random problems, $\\epsilon={numbers.epsilon:g}$"
    style.label(left, text, float(time[-1] - 1), height, style.BLUE, ha="right", fontsize=12)
    at = int(0.7 / numbers.epsilon)
    text = "every wrong action\nis for good"
    style.label(right, text, at + 1.5, numbers.corridor[at] - 0.03, style.BLUE, fontsize=12, va="top", linespacing=1.3)
    left.set_title("States that mix forget most of the difference")
    right.set_title("One wrong action, and no way back: the bound is tight")
    left.set_ylabel(r"$\mathrm{TV}(p^t_{\pi'},\,p^t_{\pi})$")
    return figure


def _draw_bounds(axes: Axes, numbers: Bounds, time: np.ndarray) -> None:
    axes.grid(axis="y")
    axes.plot(time, numbers.linear_bound, color=style.QUIET, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.plot(time, numbers.coupling_bound, color=style.ORANGE, linewidth=2.2)
    axes.set(xlim=(0, time[-1]), ylim=(0, 1.02), xlabel=r"time  $t$")
    at = int(0.62 / numbers.epsilon)
    style.label(axes, r"$\epsilon t$", at - 1.5, numbers.linear_bound[at], style.QUIET, ha="right", fontsize=13)
    at = min(int(1.5 / numbers.epsilon), len(time) - 1)
    text = r"$1-(1-\epsilon)^t$"
    style.label(axes, text, at + 2.0, numbers.coupling_bound[at] - 0.01, style.ORANGE, va="top", fontsize=13)
