"""Two fields over (k, σ): ∇J falls down to σ = 0 and then creeps along it, F⁻¹∇J heads for the optimum."""

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
PAUSE = 20


@dataclass(frozen=True)
class Fields:
    """Unit arrows and ascent paths of both methods; P paths, all their steps of the same length."""

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


def numbers(gamma: float = 0.99, step: float = 0.01, steps: int = 120) -> Fields:
    """Fields and paths in the box where γ(1 + k)² < 1; a path stays where it is once it is at the optimum."""
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
    """Points `step` apart along the field's own line from `start`, which ends at the optimum.

    The line is followed by an implicit method: near σ = 0 the vanilla field turns so sharply that steps of the
    plain kind would bounce from one side to the other.
    """

    def direction(_: float, theta: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        return _unit(field(theta[0], theta[1]))

    def arrived(_: float, theta: Float[np.ndarray, "2"]) -> float:
        return float(np.linalg.norm(theta - OPTIMUM) - step)

    arrived.terminal = True  # type: ignore[attr-defined]
    lengths = step * np.arange(steps + 1)
    found = solve_ivp(
        direction, (0, lengths[-1]), start, "Radau", lengths, events=arrived, rtol=1e-6, atol=1e-9, max_step=10 * step
    )
    path = found.y.T
    return np.concatenate([path, np.repeat(path[-1:], len(lengths) - len(path), axis=0)])


def summary(numbers: Fields) -> list[str]:
    """Where the two methods are after the same number of steps."""
    steps = numbers.natural_paths.shape[1] - 1
    far = [np.linalg.norm(paths[:, -1] - OPTIMUM, axis=1) for paths in (numbers.vanilla_paths, numbers.natural_paths)]
    below = np.argmax(numbers.vanilla_paths[0, :, 1] < 0.05)
    return [
        f"γ = {numbers.gamma:g}, {steps} steps of length {numbers.step:g} from {len(STARTS)} starts",
        f"distance from (−1, 0) at the end: vanilla {far[0].max():.3f} at worst, natural {far[1].max():.3f}",
        f"vanilla from k = {STARTS[0, 0]:g}: σ < 0.05 after {below} steps, with k still at "
        f"{numbers.vanilla_paths[0, below, 0]:.3f}",
    ]


@style.drawn
def draw(numbers: Fields) -> Figure:
    """Two panels: contours of J, the field's directions, and ascent paths."""
    figure = style.page(11.0, 3.75)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, numbers, numbers.vanilla, numbers.vanilla_paths, style.ORANGE)
    _panel(right, numbers, numbers.natural, numbers.natural_paths, style.BLUE)
    left.set_title(r"Vanilla gradient  $\nabla J$: down first, then along the floor")
    right.set_title(r"Natural gradient  $F^{-1}\nabla J$: both at once")
    left.set_ylabel(r"standard deviation  $\sigma$")
    steps = numbers.natural_paths.shape[1] - 1
    shapes = (
        ("o", 7, "start"),
        ("o", 3.5, f"every {PAUSE} steps"),
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
    axes: Axes, numbers: Fields, field: Float[np.ndarray, "2 g h"], paths: Float[np.ndarray, "P N 2"], colour: str
) -> None:
    shades = LinearSegmentedColormap.from_list("gap", ["#ffffff", "#dfe5ea", "#c3ccd5"])
    gap = np.log10(-0.5 - numbers.objective + 1e-9)
    levels = np.arange(-1.5, 4.1, 0.5)
    axes.contourf(numbers.k, numbers.sigma, gap, levels=levels, cmap=shades, extend="both")
    axes.contour(numbers.k, numbers.sigma, gap, levels=levels, colors="white", linewidths=0.8)
    axes.quiver(
        *numbers.arrows, *field, color="#8d969f", pivot="mid", angles="xy", scale=24, width=0.0026, headwidth=4.5
    )
    for path in paths:
        axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=2)
        axes.plot(path[::PAUSE, 0], path[::PAUSE, 1], "o", color=colour, markersize=3.5, clip_on=False)
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
