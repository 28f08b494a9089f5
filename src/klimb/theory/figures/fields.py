"""Two vector fields over (k, σ): ∇J leads to σ = 0 first and then slowly along it, F⁻¹∇J to the optimum directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.integrate import solve_ivp

from klimb.theory.figures import style
from klimb.theory.figures.linear_quadratic import LinearQuadratic

OPTIMUM = np.array([-1.0, 0.0])
STARTS = np.array([[-1.85, 0.8], [-1.92, 0.45], [-1.6, 0.9], [-0.55, 0.8], [-0.25, 0.85], [-0.08, 0.6]])
MARK_EVERY = 20
"""Steps between two dots on a path."""


@dataclass(frozen=True)
class Fields:
    """Unit arrows and P ascent paths of both methods, in steps of one length.

    k, sigma: the grid of `objective`. arrows: where the arrows are. vanilla, natural: their directions.
    """

    gamma: float
    step: float
    k: Float[np.ndarray, " K"]
    sigma: Float[np.ndarray, " G"]
    objective: Float[np.ndarray, "G K"]
    arrows: Float[np.ndarray, "2 g h"]
    vanilla: Float[np.ndarray, "2 g h"]
    natural: Float[np.ndarray, "2 g h"]
    vanilla_paths: Float[np.ndarray, "P N 2"]
    natural_paths: Float[np.ndarray, "P N 2"]


def compute(gamma: float = 0.99, step: float = 0.01, steps: int = 120) -> Fields:
    """Fields and paths in the box where γ(1 + k)² < 1.

    gamma: discount per step, in (0, 1). step: length of a step in (k, σ), positive. steps: per path; a path that has
    reached the optimum stays there.
    """
    problem = LinearQuadratic(gamma)
    k, sigma = np.linspace(-2, 0, 401), np.linspace(0.005, 1, 200)
    arrows = np.stack(np.meshgrid(np.linspace(-1.92, -0.08, 19), np.linspace(0.06, 0.96, 10)))
    return Fields(
        gamma=gamma,
        step=step,
        k=k,
        sigma=sigma,
        objective=np.asarray(problem.objective(*np.meshgrid(k, sigma))),
        arrows=arrows,
        vanilla=_unit(problem.gradient(*arrows)),
        natural=_unit(problem.natural_gradient(*arrows)),
        vanilla_paths=np.stack([ascend(problem.gradient, start, step, steps) for start in STARTS]),
        natural_paths=np.stack([ascend(problem.natural_gradient, start, step, steps) for start in STARTS]),
    )


def ascend(
    field: Callable[[float, float], Float[np.ndarray, "2"]], start: Float[np.ndarray, "2"], step: float, steps: int
) -> Float[np.ndarray, "N 2"]:
    """Points along the field line from `start`, up to the optimum.

    By an implicit integrator: near σ = 0 the vanilla field turns so sharply that explicit steps would oscillate.

    field: the vector at (k, σ). start: (k, σ). step: distance between points. steps: number of points after the start.
    """

    def direction(_: float, theta: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """theta: (k, σ)."""
        return _unit(field(theta[0], theta[1]))

    def distance_left(_: float, theta: Float[np.ndarray, "2"]) -> float:
        """theta: (k, σ). Zero, which ends the integration, one step from the optimum."""
        return float(np.linalg.norm(theta - OPTIMUM) - step)

    distance_left.terminal = True  # type: ignore[attr-defined]
    lengths = step * np.arange(steps + 1)
    solution = solve_ivp(
        direction,
        (0, lengths[-1]),
        start,
        "Radau",
        lengths,
        events=distance_left,
        rtol=1e-6,
        atol=1e-9,
        max_step=10 * step,
    )
    path = solution.y.T
    return np.concatenate([path, np.repeat(path[-1:], len(lengths) - len(path), axis=0)])


def summary(data: Fields) -> list[str]:
    """Where the two methods are after the same number of steps. data: of the figure."""
    steps = data.natural_paths.shape[1] - 1
    distances = [np.linalg.norm(paths[:, -1] - OPTIMUM, axis=1) for paths in (data.vanilla_paths, data.natural_paths)]
    below = np.argmax(data.vanilla_paths[0, :, 1] < 0.05)
    return [
        f"γ = {data.gamma:g}, {steps} steps of length {data.step:g} from {len(STARTS)} starts",
        f"distance from (−1, 0) at the end: vanilla at most {distances[0].max():.3f}, natural {distances[1].max():.3f}",
        f"vanilla from k = {STARTS[0, 0]:g}: σ < 0.05 after {below} steps, with k still at "
        f"{data.vanilla_paths[0, below, 0]:.3f}",
    ]


@style.with_style
def draw(data: Fields) -> Figure:
    """Two panels: contours of J, the field's directions, and ascent paths. data: of the figure."""
    figure = style.page(11.0, 3.75)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, data, data.vanilla, data.vanilla_paths, style.ORANGE)
    _panel(right, data, data.natural, data.natural_paths, style.BLUE)
    left.set_title(r"Vanilla gradient  $\nabla J$: down first, then along the floor")
    right.set_title(r"Natural gradient  $F^{-1}\nabla J$: both at once")
    left.set_ylabel(r"standard deviation  $\sigma$")
    steps = data.natural_paths.shape[1] - 1
    shapes = (
        ("o", 7, "start"),
        ("o", 3.5, f"every {MARK_EVERY} steps"),
        ("s", 6, f"after {steps} steps"),
        ("*", 12, "optimum"),
    )
    handles = [
        Line2D([], [], color=style.INK, linestyle="", marker=m, markersize=size, label=n) for m, size, n in shapes
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, handletextpad=0.2, columnspacing=2.5
    )
    return figure


def _panel(
    axes: Axes, data: Fields, field: Float[np.ndarray, "2 g h"], paths: Float[np.ndarray, "P N 2"], colour: str
) -> None:
    shades = LinearSegmentedColormap.from_list("gap", ["#ffffff", "#dfe5ea", "#c3ccd5"])
    gap = np.log10(-0.5 - data.objective + 1e-9)
    levels = np.arange(-1.5, 4.1, 0.5)
    axes.contourf(data.k, data.sigma, gap, levels=levels, cmap=shades, extend="both")
    axes.contour(data.k, data.sigma, gap, levels=levels, colors="white", linewidths=0.8)
    axes.quiver(*data.arrows, *field, color="#8d969f", pivot="mid", angles="xy", scale=24, width=0.0026, headwidth=4.5)
    for path in paths:
        axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=2)
        axes.plot(path[::MARK_EVERY, 0], path[::MARK_EVERY, 1], "o", color=colour, markersize=3.5, clip_on=False)
        axes.plot(*path[0], "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=1)
        axes.plot(
            *path[-1],
            "s",
            color=colour,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=1,
            zorder=6,
            clip_on=False,
        )
    axes.plot(*OPTIMUM, "*", color=style.INK, markersize=13, markeredgecolor="white", clip_on=False, zorder=7)
    axes.set(xlim=(-2, 0), ylim=(0, 1), aspect="equal", xlabel=r"gain  $k$")
    axes.set_xticks([-2, -1.5, -1, -0.5, 0])


def _unit(vectors: Float[np.ndarray, "axis ..."]) -> Float[np.ndarray, "axis ..."]:
    return vectors / np.linalg.norm(vectors, axis=0)
