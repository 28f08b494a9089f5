"""The variance of policy gradient estimators: one problem, one policy, the same episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.advantages import AdvantageKind, estimate_advantages
from klimb.theory.figures import style
from klimb.theory.figures.episodic import Problem, exact_gradient, exact_values, problem, simulate
from klimb.types import Rollout

NAMES: dict[AdvantageKind, str] = {
    "total_return": "total return",
    "reward_to_go": "reward-to-go",
    "reward_to_go_average": "reward-to-go − batch average",
    "value_baseline": "reward-to-go − $V(s)$",
    "gae": r"GAE, $\lambda=0.95$",
}


@dataclass(frozen=True)
class EstimatorVariance:
    """Of K estimators over M batches of `episodes` episodes.

    variance: trace of the covariance. standard_error: of the variance. mean: of the estimates.
    mean_error: the standard error of each of its components. exact: ∇J.
    """

    episodes: int
    horizon: int
    variance: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]
    mean: Float[np.ndarray, "K P"]
    mean_error: Float[np.ndarray, "K P"]
    exact: Float[np.ndarray, " P"]


def compute(batches: int = 2000, episodes: int = 16, seed: int = 0) -> EstimatorVariance:
    """Gradient estimates of random batches, with the functions that training uses and exact values.

    batches: M, at least 2. episodes: per batch, at least 1. seed: of the simulation.
    """
    task = problem()
    states, action = simulate(task, batches * episodes, seed)
    state, next_state = states[:-1], states[1:]
    value, time = exact_values(task), np.arange(task.horizon)[:, None]
    estimates = np.empty((len(NAMES), batches, task.pi.size))
    with jax.enable_x64(True):
        rollout = _rollout(task, state, action, next_state)
        arrays = jax.tree.map(
            lambda x: jnp.asarray(x).reshape(task.horizon, batches, episodes, *x.shape[2:]),
            (rollout, value[time, state], value[time + 1, next_state]),
        )
        for row, kind in enumerate(NAMES):
            advantage = np.asarray(_advantages(kind, *arrays)).reshape(state.shape)
            estimates[row] = _gradients(task, state, action, advantage, batches)
        exact = exact_gradient(task)
    squares = np.sum(np.square(estimates - estimates.mean(axis=1, keepdims=True)), axis=2)
    return EstimatorVariance(
        episodes=episodes,
        horizon=task.horizon,
        variance=squares.sum(axis=1) / (batches - 1),
        standard_error=squares.std(axis=1, ddof=1) / np.sqrt(batches),
        mean=estimates.mean(axis=1),
        mean_error=estimates.std(axis=1, ddof=1) / np.sqrt(batches),
        exact=exact,
    )


def _rollout(
    task: Problem, state: Int[np.ndarray, "T N"], action: Int[np.ndarray, "T N"], next_state: Int[np.ndarray, "T N"]
) -> Rollout:
    """All episodes as one rollout that ends with its last row."""
    last = np.zeros(state.shape, bool)
    last[-1] = True
    return Rollout(
        obs=jnp.asarray(state, float),
        action=jnp.asarray(action),
        log_prob=jnp.log(jnp.asarray(task.pi)[state, action]),
        reward=jnp.asarray(task.reward[state, action]),
        terminated=jnp.asarray(last),
        truncated=jnp.zeros(last.shape, bool),
        successor=jnp.asarray(next_state, float),
        valid=jnp.ones(last.shape, bool),
    )


def _advantages(
    kind: AdvantageKind, rollout: Rollout, value: Float[Array, "T M N"], next_value: Float[Array, "T M N"]
) -> Float[Array, "T M N"]:
    """Advantages of each of the M batches by itself, because one estimator subtracts the batch's average."""

    def of_one(*parts: Any) -> Float[Array, "T N"]:
        return estimate_advantages(kind, *parts, gamma=1.0, gae_lambda=0.95, n_step=1).advantage

    return jax.jit(jax.vmap(of_one, in_axes=1, out_axes=1))(rollout, value, next_value)


def _gradients(
    task: Problem,
    state: Int[np.ndarray, "T N"],
    action: Int[np.ndarray, "T N"],
    advantage: Float[np.ndarray, "T N"],
    batches: int,
) -> Float[np.ndarray, "M P"]:
    """Mean over a batch's episodes of Σ_t ∇log π(a_t|s_t) Â_t; for logits ∇log π is 1{a} − π in the row of s."""
    batch = np.arange(state.shape[1]) // (state.shape[1] // batches)
    row = (batch * task.pi.size + state * task.pi.shape[1] + action).reshape(-1)
    sums = np.bincount(row, advantage.reshape(-1), batches * task.pi.size).reshape(batches, *task.pi.shape)
    gradient = sums - task.pi * sums.sum(axis=2, keepdims=True)
    return gradient.reshape(batches, -1) * batches / state.shape[1]


def summary(data: EstimatorVariance) -> list[str]:
    """Every estimator's variance, and its ratio to the first one's. data: of the figure."""
    return [
        f"{kind:<21} variance {variance:8.4f} ± {error:.4f}   {_share(variance / data.variance[0])}"
        for kind, variance, error in zip(NAMES, data.variance, data.standard_error, strict=True)
    ]


@style.with_style
def draw(data: EstimatorVariance) -> Figure:
    """One dot per estimator with its 95 % interval, on a logarithmic scale. data: of the figure."""
    figure = style.page(9.0, 3.7)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.grid(axis="x", which="major")
    left = 10 ** np.floor(np.log10(data.variance.min() / 1.5))
    colours = (style.ORANGE, style.GOLD, style.PINK, style.BLUE, style.GREEN)
    for row, (variance, error, colour) in enumerate(zip(data.variance, data.standard_error, colours, strict=True)):
        axes.plot([left, variance], [row, row], color=colour, alpha=0.35, linewidth=2)
        ends = variance + 1.96 * error * np.array([-1, 1])
        axes.plot(ends, [row, row], color=colour, linewidth=4)
        axes.plot(variance, row, "o", color=colour, markersize=9, markeredgecolor="white")
        text = _with_error(variance, 1.96 * error)
        if row > 0:
            text += f"    {_share(variance / data.variance[0])} of the first"
        style.annotate(axes, text, (variance, float(row)), (12.0, 0.0), colour)
    _name_rows(axes, colours)
    axes.set_xlim(left, 6 * data.variance.max())
    axes.set_xlabel(f"variance of the estimate of $\\nabla J$ from {data.episodes} episodes  (trace of its covariance)")
    about = f"5 states, 3 actions, {data.horizon} steps\nwith rewards of about 1\n±: 95 % interval"
    place: dict[str, Any] = {
        "transform": axes.transAxes,
        "ha": "right",
        "va": "bottom",
        "color": style.QUIET,
        "linespacing": 1.3,
    }
    axes.text(0.985, 0.05, about, **place)
    axes.set_title("The same episodes, less and less noise")
    return figure


def _name_rows(axes: Axes, colours: tuple[str, ...]) -> None:
    axes.set_yticks(range(len(NAMES)), list(NAMES.values()), fontsize=12)
    for tick, colour in zip(axes.get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(NAMES) - 0.4, -0.6)


def _share(ratio: float) -> str:
    return "1" if ratio == 1 else f"1/{1 / ratio:.3g}"


def _with_error(value: float, error: float) -> str:
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
