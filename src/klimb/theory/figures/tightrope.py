"""The tightrope walker: where no mistake can be undone, all that is lost grows with the square of the time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.bounds import episodic_advantage_bound, linear_mismatch_bound, state_mismatch_bound
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.transitions import following
from klimb.theory.figures import style

FALLEN = 1
"""The state beside the rope; 0 is on it."""


@dataclass(frozen=True)
class Tightrope:
    """Expectations over episodes of T = 1 … H steps of a walker who errs with probability ε in each step on the rope.

    mistakes: steps that begin or end off the rope, where nobody has shown what to do. on_a_floor: the same where
    one steps back on at once. linear: Σ_t ε (t + 1), the bound on the mistakes.
    gap: |J(π') − J(π) − Ā(π')| for a reward of 1 a step that is no mistake. guarantee: 2 C Σ_t (1 − (1 − ε)ᵗ) with
    C = max |E_{a∼π'} A^π_t|. crude: 2 H r_max Σ_t ε t, the lectures' form of it.
    """

    epsilon: float
    mistakes: Float[np.ndarray, " H"]
    on_a_floor: Float[np.ndarray, " H"]
    linear: Float[np.ndarray, " H"]
    gap: Float[np.ndarray, " H"]
    guarantee: Float[np.ndarray, " H"]
    crude: Float[np.ndarray, " H"]


def compute(epsilon: float = 0.01, horizon: int = 400) -> Tightrope:
    """Exact state distributions and values of the walker, for every length of the episode.

    epsilon: ε, in (0, 1). horizon: H, the longest episode.
    """
    with jax.enable_x64(True):
        rope, expert, walker = walk(epsilon, returns=False)
        floor, *_ = walk(epsilon, returns=True)
        time = np.arange(horizon)
        gap, worst = _gaps(rope, expert, walker, horizon)
        return Tightrope(
            epsilon=epsilon,
            mistakes=np.cumsum(_mistakes(rope, walker, horizon)),
            on_a_floor=np.cumsum(_mistakes(floor, walker, horizon)),
            linear=np.cumsum(np.asarray(linear_mismatch_bound(epsilon, time + 1))),
            gap=gap,
            guarantee=2 * worst * np.cumsum(np.asarray(state_mismatch_bound(epsilon, time))),
            crude=2
            * np.asarray(episodic_advantage_bound(1.0, time + 1))
            * np.cumsum(np.asarray(linear_mismatch_bound(epsilon, time))),
        )


def walk(epsilon: float, *, returns: bool) -> tuple[TabularMDP, Array, Array]:
    """The problem, the expert who never errs, and the walker who errs with probability ε. Reward 1 for no mistake.

    epsilon: ε. returns: whether one is back on the rope after a mistake, as on a floor; else one never is.
    """
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = 1
    transition[0, 1, 0 if returns else FALLEN] = 1
    transition[FALLEN, :, FALLEN] = 1
    mdp = TabularMDP(transition, np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0]), 0.99)
    return mdp, jnp.array([[1.0, 0.0]] * 2), jnp.array([[1 - epsilon, epsilon]] * 2)


def _mistakes(mdp: TabularMDP, pi: Array, horizon: int) -> Float[np.ndarray, " H"]:
    """The probability, at each time, of a step that has no reward."""
    return 1 - np.asarray(mdp.state_marginals(pi, horizon) @ jnp.sum(pi * mdp.reward, axis=1))


def _gaps(
    mdp: TabularMDP, pi: Array, new: Array, horizon: int
) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " H"]]:
    """|J(π') − J(π) − Ā(π')| and C, undiscounted, for episodes of 1 … H steps."""

    def earlier(values: Array, _: None) -> tuple[Array, Array]:
        """V^π with one more step to go, and E_{a∼π'}[A^π] of that step."""
        action_values = mdp.reward + following(mdp.transition, values)
        return jnp.sum(pi * action_values, axis=1), jnp.sum((new - pi) * action_values, axis=1)

    _, gain = jax.lax.scan(earlier, jnp.zeros(mdp.num_states), length=horizon)
    drift = mdp.state_marginals(new, horizon) - mdp.state_marginals(pi, horizon)
    # Row t, column k: the state at time t, with k steps after it. The time and what is left are T − 1 together.
    shift = np.asarray(drift @ gain.T)
    gap = np.array([abs(np.trace(np.fliplr(shift[:length, :length]))) for length in range(1, horizon + 1)])
    return gap, np.maximum.accumulate(np.abs(gain).max(axis=1))


def summary(data: Tightrope) -> list[str]:
    """What the longest episode costs, and the bounds. data: of the figure."""
    longest = len(data.mistakes)
    at = min(round(0.1 / data.epsilon), longest) - 1
    return [
        f"ε = {data.epsilon:g}; mistakes in {at + 1} steps: {data.mistakes[at]:.4f} on the rope, "
        f"{data.on_a_floor[at]:.4f} on a floor, bound {data.linear[at]:.4f}",
        f"in {longest} steps: {data.mistakes[-1]:.2f}, {data.on_a_floor[-1]:.2f}, bound {data.linear[-1]:.2f}",
        f"error of the surrogate in {longest} steps: {data.gap[-1]:.2f}, guaranteed {data.guarantee[-1]:.2f} with the "
        f"exact C and {data.crude[-1]:.0f} with H r_max for C and ε t; in {at + 1} steps "
        f"{data.gap[at]:.5f}, {data.guarantee[at]:.5f} and {data.crude[at]:.4f}",
    ]


@style.with_style
def draw(data: Tightrope) -> Figure:
    """Mistakes on the left, the error of the surrogate on the right, both on logarithmic axes. data: of the figure."""
    figure = style.page(11.0, 4.4)
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(data.mistakes) + 1)
    _draw_mistakes(left, data, steps)
    _draw_errors(right, data, steps)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlim=(1, steps[-1]), xlabel="steps  $T$")
        axes.set_xticks([1, 10, 100], ["1", "10", "100"])
        axes.grid(axis="both")
    return figure


def _draw_mistakes(axes: Axes, data: Tightrope, steps: np.ndarray) -> None:
    axes.plot(steps, steps, color=style.QUIET, linewidth=1.3, linestyle=(0, (1.5, 2)))
    axes.plot(steps, data.linear, color=style.ORANGE)
    axes.plot(steps, data.mistakes, color=style.BLUE, linewidth=2.6)
    axes.plot(steps, data.on_a_floor, color=style.GREEN)
    axes.set(ylabel="expected mistakes", ylim=(0.5 * data.epsilon, 3 * data.linear[-1]))
    axes.set_title("Mistakes of the walker and their bound")
    end = float(steps[-1])
    style.annotate(axes, "every step: $T$", (end, end), (6.0, 4.0), style.QUIET)
    style.annotate(axes, r"$\epsilon\,T(T+1)/2$", (end, data.linear[-1]), (6.0, 10.0), style.ORANGE)
    style.annotate(axes, "on the rope", (end, data.mistakes[-1]), (6.0, -14.0), style.BLUE)
    style.annotate(axes, "on a floor:\n$\\epsilon\\,T$", (end, data.on_a_floor[-1]), (6.0, 0.0), style.GREEN)


def _draw_errors(axes: Axes, data: Tightrope, steps: np.ndarray) -> None:
    for curve, colour, width, name in (
        (data.crude, style.QUIET, 1.6, r"with $H\,r_{\max}$" + "\nand $\\epsilon\\,t$"),
        (data.guarantee, style.ORANGE, 1.8, "with the\nexact $C$"),
        (data.gap, style.BLUE, 2.6, "true error"),
    ):
        # An episode of one step has no later states to be wrong about.
        axes.plot(steps[1:], curve[1:], color=colour, linewidth=width)
        shift = {style.BLUE: -6.0, style.ORANGE: 4.0}.get(colour, 0.0)
        style.annotate(axes, name, (float(steps[-1]), curve[-1]), (6.0, shift), colour)
    axes.set(ylabel=r"$|J(\pi^{\prime})-J(\pi)-\bar{A}(\pi^{\prime})|$")
    axes.set_title("Error of the surrogate, and two bounds on it")
