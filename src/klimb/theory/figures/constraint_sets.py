"""Two constraint sets around one θ: the circle leads to the gradient, the Fisher ellipse to the natural gradient."""

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
    """Closed curves of N points δ around θ, and the two steps.

    shrinking: the contours KL(π_old‖π_new) = ε for E sizes ε, in units of √ε.
    """

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


def compute(epsilon: float = 0.05, k: float = -1.5, sigma: float = 0.3, gamma: float = 0.99) -> ConstraintSets:
    """The sets ‖δ‖² ≤ ε, ½ δᵀFδ ≤ ε and mean KL ≤ ε in both directions, and the best linear step of the first two.

    δ = √(ε/‖g‖²) g maximises gᵀδ on the circle, δ = √(2ε/(gᵀF⁻¹g)) F⁻¹g on the ellipse.

    epsilon: ε, positive. k, sigma: θ, with σ > 0. gamma: discount per step, with γ(1 + k)² < 1.
    """
    problem = LinearQuadratic(gamma)
    angle = np.linspace(0, 2 * np.pi, 361)
    rays = np.stack([np.cos(angle), np.sin(angle)])
    gradient, fisher = problem.gradient(k, sigma), problem.fisher(k, sigma)
    contours = {
        way: kl_contour(problem, k, sigma, rays, epsilon, old_new=way == "old_new") for way in ("old_new", "new_old")
    }
    # Scaled to the ellipse, where the KL rises equally along all rays: the points are spread evenly over the curves.
    fisher_rays = rays / np.sqrt(fisher)[:, None]
    return ConstraintSets(
        theta=np.array([k, sigma]),
        epsilon=epsilon,
        gradient=gradient,
        fisher=fisher,
        circle=np.sqrt(epsilon) * rays,
        ellipse=np.sqrt(2 * epsilon) * fisher_rays,
        kl_old_new=contours["old_new"],
        kl_new_old=contours["new_old"],
        vanilla_step=np.sqrt(epsilon / (gradient @ gradient)) * gradient,
        natural_step=np.sqrt(2 * epsilon / (gradient @ (gradient / fisher))) * gradient / fisher,
        shrinking=np.stack([kl_contour(problem, k, sigma, fisher_rays, e, old_new=True) / np.sqrt(e) for e in SIZES]),
    )


def kl_contour(
    problem: LinearQuadratic, k: float, sigma: float, rays: Float[np.ndarray, "2 N"], epsilon: float, *, old_new: bool
) -> Float[np.ndarray, "2 N"]:
    """The point on each ray from θ where the mean KL is ε: the KL rises along every ray, so there is exactly one.

    By bisection of all rays at once, down to rounding.

    problem: the policy's. k, sigma: θ. rays: directions. epsilon: ε, positive.
    old_new: KL(π_old‖π_new), else KL(π_new‖π_old).
    """
    # A ray that points to smaller σ ends at σ = 0, where the KL is infinite in both directions.
    down = rays[1] < 0
    farthest = np.where(down, -sigma / np.where(down, rays[1], 1), np.inf)
    low, high = np.zeros(rays.shape[1]), np.minimum(np.sqrt(epsilon), farthest)

    def inside(length: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        return problem.mean_kl(k, sigma, length * rays, old_new=old_new) < epsilon

    while np.any(too_short := inside(high)):
        high = np.where(too_short, np.minimum(2 * high, farthest), high)
    for _ in range(80):
        middle = (low + high) / 2
        too_short = inside(middle)
        low, high = np.where(too_short, middle, low), np.where(too_short, high, middle)
    return rays * (low + high) / 2


def summary(data: ConstraintSets) -> list[str]:
    """The two steps, and the ellipse's radius relative to the true KL contour. data: of the figure."""
    cosine = data.vanilla_step @ data.natural_step
    cosine /= np.linalg.norm(data.vanilla_step) * np.linalg.norm(data.natural_step)
    radii = np.linalg.norm(data.shrinking[-1], axis=0)
    ratio = np.linalg.norm(data.ellipse, axis=0) / np.sqrt(data.epsilon) / radii
    return [
        f"θ = (k, σ) = ({data.theta[0]:g}, {data.theta[1]:g}), ε = {data.epsilon:g}",
        "gradient step (Δk, Δσ) = ({:+.4f}, {:+.4f}); natural step ({:+.4f}, {:+.4f})".format(
            *data.vanilla_step, *data.natural_step
        ),
        f"angle between the two steps: {np.degrees(np.arccos(cosine)):.1f}°",
        f"ellipse over true KL radius at ε = {SIZES[-1]:g}: {ratio.min():.3f} to {ratio.max():.3f}",
    ]


@style.with_style
def draw(data: ConstraintSets) -> Figure:
    """The sets around θ on the left; on the right KL contours of shrinking ε, in units of √ε. data: of the figure."""
    figure = style.page(11.0, 4.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.22, 1])
    _draw_sets(left, data)
    _draw_shrinking(right, data)
    return figure


def _draw_sets(axes: Axes, data: ConstraintSets) -> None:
    k, sigma = data.theta
    for curve, colour, line in (
        (data.circle, style.ORANGE, "-"),
        (data.ellipse, style.BLUE, "-"),
        (data.kl_old_new, style.GREEN, (0, (5, 2))),
        (data.kl_new_old, style.PINK, (0, (1.5, 1.5))),
    ):
        axes.plot(k + curve[0], sigma + curve[1], color=colour, linestyle=line)
    axes.fill(k + data.circle[0], sigma + data.circle[1], color=style.ORANGE, alpha=0.06, linewidth=0)
    axes.fill(k + data.ellipse[0], sigma + data.ellipse[1], color=style.BLUE, alpha=0.09, linewidth=0)
    for step, colour in ((data.vanilla_step, style.ORANGE), (data.natural_step, style.BLUE)):
        style.arrow(axes, (k, sigma), (k + step[0], sigma + step[1]), colour)
    axes.plot(k, sigma, "o", color=style.INK, markersize=6, zorder=6)
    axes.set(xlabel=r"gain  $k$", ylabel=r"standard deviation  $\sigma$", aspect="equal")
    axes.set_title(r"What “a step of size $\epsilon$” means decides where it goes")
    _label_sets(axes, data)


def _label_sets(axes: Axes, data: ConstraintSets) -> None:
    k, sigma = data.theta
    radius = np.sqrt(data.epsilon)
    style.label(axes, r"$\|\delta\|^2=\epsilon$", k, sigma + 0.8 * radius, style.ORANGE, ha="center", fontsize=13)
    right_of_sets = k + 1.04 * data.kl_old_new[0].max()
    for text, colour, height in (
        (r"mean $\mathrm{KL}(\pi_{\mathrm{old}}\|\pi_{\mathrm{new}})=\epsilon$", style.GREEN, 0.26),
        (r"$\frac{1}{2}\,\delta^{\!\top}\!F\delta=\epsilon$", style.BLUE, 0.0),
        (r"mean $\mathrm{KL}(\pi_{\mathrm{new}}\|\pi_{\mathrm{old}})=\epsilon$", style.PINK, -0.26),
    ):
        style.label(axes, text, right_of_sets, sigma + height * radius, colour, va="center", fontsize=13)
    vanilla, natural = data.vanilla_step, data.natural_step
    options: dict[str, Any] = {"fontsize": 12, "va": "center"}
    style.label(axes, r"$\propto\nabla J$", k + vanilla[0], sigma + 0.75 * vanilla[1], style.ORANGE, **options)
    above = sigma + 0.1 * radius
    style.label(axes, r"$\propto F^{-1}\nabla J$", k + 0.4 * natural[0], above, style.BLUE, **options)
    style.label(axes, r"$\theta$", k - 0.12 * radius, sigma, style.INK, ha="center", va="center", fontsize=13)


def _draw_shrinking(axes: Axes, data: ConstraintSets) -> None:
    scale = np.sqrt(data.fisher / 2)[:, None]
    axes.fill(*(scale * data.ellipse / np.sqrt(data.epsilon)), color=style.BLUE, alpha=0.09, linewidth=0)
    axes.plot(*(scale * data.ellipse / np.sqrt(data.epsilon)), color=style.BLUE)
    style.label(
        axes, r"$\frac{1}{2}\,\delta^{\!\top}\!F\delta=\epsilon$", 0.0, -0.3, style.BLUE, ha="center", fontsize=13
    )
    for curve, size, width in zip(data.shrinking, SIZES, (1.0, 1.4, 1.8), strict=True):
        x, y = scale * curve
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
