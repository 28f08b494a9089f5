"""Two constraint sets around one θ: the gradient answers to the circle, the natural gradient to the Fisher ellipse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.theory.figures import style
from klimb.theory.figures.linear_quadratic import LinearQuadratic

SIZES = np.array([0.4, 0.1, 0.01])


@dataclass(frozen=True)
class ConstraintSets:
    """Closed curves of N points δ around θ, and the two steps. `shrinking` is KL(π_old‖π_new) = ε/√ε for E sizes ε."""

    theta: Float[np.ndarray, "2"]
    epsilon: float
    gradient: Float[np.ndarray, "2"]
    fisher: Float[np.ndarray, "2"]
    circle: Float[np.ndarray, "2 N"]
    ellipse: Float[np.ndarray, "2 N"]
    kl_old_new: Float[np.ndarray, "2 N"]
    kl_new_old: Float[np.ndarray, "2 N"]
    vanilla_step: Float[np.ndarray, "2"]
    natural_step: Float[np.ndarray, "2"]
    shrinking: Float[np.ndarray, "E 2 N"]


def numbers(epsilon: float = 0.05, k: float = -1.5, sigma: float = 0.3, gamma: float = 0.99) -> ConstraintSets:
    """The sets ‖δ‖² ≤ ε, ½ δᵀFδ ≤ ε and mean KL ≤ ε in both directions, and the best linear step of the first two.

    δ = √(ε/‖g‖²) g maximises gᵀδ on the circle, δ = √(2ε/(gᵀF⁻¹g)) F⁻¹g on the ellipse.
    """
    problem = LinearQuadratic(gamma)
    angle = np.linspace(0, 2 * np.pi, 361)
    rays = np.stack([np.cos(angle), np.sin(angle)])
    gradient, fisher = problem.gradient(k, sigma), problem.fisher(k, sigma)
    contours = {
        way: kl_contour(problem, k, sigma, rays, epsilon, old_new=way == "old_new") for way in ("old_new", "new_old")
    }
    # In the ellipse's own units all rays are alike, so that small and large sets are drawn equally finely.
    own_rays = rays / np.sqrt(fisher)[:, None]
    return ConstraintSets(
        theta=np.array([k, sigma]),
        epsilon=epsilon,
        gradient=gradient,
        fisher=fisher,
        circle=np.sqrt(epsilon) * rays,
        ellipse=np.sqrt(2 * epsilon) * own_rays,
        kl_old_new=contours["old_new"],
        kl_new_old=contours["new_old"],
        vanilla_step=np.sqrt(epsilon / (gradient @ gradient)) * gradient,
        natural_step=np.sqrt(2 * epsilon / (gradient @ (gradient / fisher))) * gradient / fisher,
        shrinking=np.stack([kl_contour(problem, k, sigma, own_rays, e, old_new=True) / np.sqrt(e) for e in SIZES]),
    )


def kl_contour(
    problem: LinearQuadratic, k: float, sigma: float, rays: Float[np.ndarray, "2 N"], epsilon: float, *, old_new: bool
) -> Float[np.ndarray, "2 N"]:
    """Where the mean KL is exactly ε along each ray from θ: it rises along all of them, so each meets it once.

    By bisection of all rays at once, down to rounding.
    """
    # Downwards σ ends at 0, where the KL is infinite in both directions.
    down = rays[1] < 0
    farthest = np.where(down, -sigma / np.where(down, rays[1], 1), np.inf)
    low, high = np.zeros(rays.shape[1]), np.minimum(np.sqrt(epsilon), farthest)

    def inside(length: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        return problem.mean_kl(k, sigma, length * rays, old_new=old_new) < epsilon

    while np.any(short := inside(high)):
        high = np.where(short, np.minimum(2 * high, farthest), high)
    for _ in range(80):
        middle = (low + high) / 2
        short = inside(middle)
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return rays * (low + high) / 2


def summary(numbers: ConstraintSets) -> list[str]:
    """The two steps, and how far the real KL of the same bound is from the ellipse."""
    between = numbers.vanilla_step @ numbers.natural_step
    between /= np.linalg.norm(numbers.vanilla_step) * np.linalg.norm(numbers.natural_step)
    radii = np.linalg.norm(numbers.shrinking[-1], axis=0)
    ratio = np.linalg.norm(numbers.ellipse, axis=0) / np.sqrt(numbers.epsilon) / radii
    return [
        f"θ = (k, σ) = ({numbers.theta[0]:g}, {numbers.theta[1]:g}), ε = {numbers.epsilon:g}",
        "gradient step (Δk, Δσ) = ({:+.4f}, {:+.4f}); natural step ({:+.4f}, {:+.4f})".format(
            *numbers.vanilla_step, *numbers.natural_step
        ),
        f"angle between the two steps: {np.degrees(np.arccos(between)):.1f}°",
        f"ellipse over true KL radius at ε = {SIZES[-1]:g}: {ratio.min():.3f} to {ratio.max():.3f}",
    ]


@style.drawn
def draw(numbers: ConstraintSets) -> Figure:
    """The sets around θ on the left; on the right KL contours of shrinking ε, each in units of √ε."""
    figure = style.page(11.0, 4.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.22, 1])
    _draw_sets(left, numbers)
    _draw_shrinking(right, numbers)
    return figure


def _draw_sets(axes: Axes, numbers: ConstraintSets) -> None:
    k, sigma = numbers.theta
    for curve, colour, line in (
        (numbers.circle, style.ORANGE, "-"),
        (numbers.ellipse, style.BLUE, "-"),
        (numbers.kl_old_new, style.GREEN, (0, (5, 2))),
        (numbers.kl_new_old, style.PINK, (0, (1.5, 1.5))),
    ):
        axes.plot(k + curve[0], sigma + curve[1], color=colour, linestyle=line)
    axes.fill(k + numbers.circle[0], sigma + numbers.circle[1], color=style.ORANGE, alpha=0.06, linewidth=0)
    axes.fill(k + numbers.ellipse[0], sigma + numbers.ellipse[1], color=style.BLUE, alpha=0.09, linewidth=0)
    for step, colour in ((numbers.vanilla_step, style.ORANGE), (numbers.natural_step, style.BLUE)):
        style.arrow(axes, (k, sigma), (k + step[0], sigma + step[1]), colour)
    axes.plot(k, sigma, "o", color=style.INK, markersize=6, zorder=6)
    axes.set(xlabel=r"gain  $k$", ylabel=r"standard deviation  $\sigma$", aspect="equal")
    axes.set_title(r"What “a step of size $\epsilon$” means decides where it goes")
    _label_sets(axes, numbers)


def _label_sets(axes: Axes, numbers: ConstraintSets) -> None:
    k, sigma = numbers.theta
    radius = np.sqrt(numbers.epsilon)
    style.label(axes, r"$\|\delta\|^2=\epsilon$", k, sigma + 0.8 * radius, style.ORANGE, ha="center", fontsize=13)
    beside = k + 1.04 * numbers.kl_old_new[0].max()
    for text, colour, height in (
        (r"mean $\mathrm{KL}(\pi_{\mathrm{old}}\|\pi_{\mathrm{new}})=\epsilon$", style.GREEN, 0.26),
        (r"$\frac{1}{2}\,\delta^{\!\top}\!F\delta=\epsilon$", style.BLUE, 0.0),
        (r"mean $\mathrm{KL}(\pi_{\mathrm{new}}\|\pi_{\mathrm{old}})=\epsilon$", style.PINK, -0.26),
    ):
        style.label(axes, text, beside, sigma + height * radius, colour, va="center", fontsize=13)
    vanilla, natural = numbers.vanilla_step, numbers.natural_step
    options: dict[str, Any] = {"fontsize": 12, "va": "center"}
    style.label(axes, r"$\propto\nabla J$", k + vanilla[0], sigma + 0.75 * vanilla[1], style.ORANGE, **options)
    above = sigma + 0.1 * radius
    style.label(axes, r"$\propto F^{-1}\nabla J$", k + 0.4 * natural[0], above, style.BLUE, **options)
    style.label(axes, r"$\theta$", k - 0.12 * radius, sigma, style.INK, ha="center", va="center", fontsize=13)


def _draw_shrinking(axes: Axes, numbers: ConstraintSets) -> None:
    own = np.sqrt(numbers.fisher / 2)[:, None]
    axes.fill(*(own * numbers.ellipse / np.sqrt(numbers.epsilon)), color=style.BLUE, alpha=0.09, linewidth=0)
    axes.plot(*(own * numbers.ellipse / np.sqrt(numbers.epsilon)), color=style.BLUE)
    style.label(
        axes, r"$\frac{1}{2}\,\delta^{\!\top}\!F\delta=\epsilon$", 0.0, -0.3, style.BLUE, ha="center", fontsize=13
    )
    for curve, size, width in zip(numbers.shrinking, SIZES, (1.0, 1.4, 1.8), strict=True):
        x, y = own * curve
        axes.plot(x, y, color=style.GREEN, linewidth=width, linestyle=(0, (5, 2)))
        style.label(axes, rf"$\epsilon={size:g}$", 0.0, y.max(), style.GREEN, opaque=True, ha="center", va="center")
    axes.set(
        xlabel=r"$\delta_k\,\sqrt{F_{kk}/2\epsilon}$",
        ylabel=r"$\delta_\sigma\,\sqrt{F_{\sigma\sigma}/2\epsilon}$",
        aspect="equal",
        xlim=(-1.6, 1.6),
        ylim=(-1.2, 2.1),
    )
    axes.set_title(r"The true KL becomes the ellipse as $\epsilon\to 0$")
