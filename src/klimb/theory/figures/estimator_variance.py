"""What each idea takes off the noise of the policy gradient: one problem, one policy, the same episodes."""

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
    """Of K estimators over M batches of `episodes`: variance, trace of the covariance, and its standard error."""

    episodes: int
    horizon: int
    variance: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]
    mean: Float[np.ndarray, "K P"]
    mean_error: Float[np.ndarray, "K P"]
    exact: Float[np.ndarray, " P"]


def numbers(batches: int = 2000, episodes: int = 16, seed: int = 0) -> EstimatorVariance:
    """Gradient estimates of seeded batches, with the very functions that training uses, and exact values."""
    task = problem()
    state, action = simulate(task, batches * episodes, seed)
    now, after = state[:-1], state[1:]
    value, time = exact_values(task), np.arange(task.horizon)[:, None]
    estimates = np.empty((len(NAMES), batches, task.pi.size))
    with jax.enable_x64(True):
        rollout = _rollout(task, now, action, after)
        arrays = jax.tree.map(
            lambda x: jnp.asarray(x).reshape(task.horizon, batches, episodes, *x.shape[2:]),
            (rollout, value[time, now], value[time + 1, after]),
        )
        for row, kind in enumerate(NAMES):
            advantage = np.asarray(_advantages(kind, *arrays)).reshape(now.shape)
            estimates[row] = _gradients(task, now, action, advantage, batches)
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
    task: Problem, state: Int[np.ndarray, "T N"], action: Int[np.ndarray, "T N"], after: Int[np.ndarray, "T N"]
) -> Rollout:
    last = np.zeros(state.shape, bool)
    last[-1] = True
    columns = {
        "obs": state.astype(float),
        "action": action,
        "log_prob": np.log(task.pi)[state, action],
        "reward": task.reward[state, action],
        "terminated": last,
        "truncated": np.zeros_like(last),
        "next_obs": after.astype(float),
        "valid": np.ones_like(last),
    }
    return Rollout(**{name: jnp.asarray(column) for name, column in columns.items()})


def _advantages(
    kind: AdvantageKind, rollout: Rollout, value: Float[Array, "T M N"], next_value: Float[Array, "T M N"]
) -> Float[Array, "T M N"]:
    """Batch by batch: the average of one batch is no business of another's."""

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


def summary(numbers: EstimatorVariance) -> list[str]:
    """Every estimator's variance, and its share of the first one's."""
    return [
        f"{kind:<21} variance {variance:8.4f} ± {error:.4f}   {_share(variance / numbers.variance[0])}"
        for kind, variance, error in zip(NAMES, numbers.variance, numbers.standard_error, strict=True)
    ]


@style.drawn
def draw(numbers: EstimatorVariance) -> Figure:
    """A dot an estimator with its 95 % interval, on a scale of factors."""
    figure = style.page(9.0, 3.7)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.grid(axis="x", which="major")
    left = 10 ** np.floor(np.log10(numbers.variance.min() / 1.5))
    colours = (style.ORANGE, style.GOLD, style.PINK, style.BLUE, style.GREEN)
    for row, (variance, error, colour) in enumerate(
        zip(numbers.variance, numbers.standard_error, colours, strict=True)
    ):
        axes.plot([left, variance], [row, row], color=colour, alpha=0.35, linewidth=2)
        ends = variance + 1.96 * error * np.array([-1, 1])
        axes.plot(ends, [row, row], color=colour, linewidth=4)
        axes.plot(variance, row, "o", color=colour, markersize=9, markeredgecolor="white")
        text = _with_error(variance, 1.96 * error)
        if row > 0:
            text += f"    {_share(variance / numbers.variance[0])} of the first"
        style.beside(axes, text, (variance, float(row)), (12.0, 0.0), colour)
    _name_rows(axes, colours)
    axes.set_xlim(left, 6 * numbers.variance.max())
    axes.set_xlabel(
        f"variance of the estimate of $\\nabla J$ from {numbers.episodes} episodes  (trace of its covariance)"
    )
    about = f"5 states, 3 actions, {numbers.horizon} steps\nof about 1 reward each"
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
