"""One Gaussian q fitted to a mixture p of two: minimal KL(p‖q) covers both modes, minimal KL(q‖p) seeks one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize

from klimb.theory.figures import style


@dataclass(frozen=True)
class Mixture:
    """p = Σ w N(μ, s²), one entry per component."""

    weight: Float[np.ndarray, " C"]
    mean: Float[np.ndarray, " C"]
    std: Float[np.ndarray, " C"]

    def density(self, x: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
        """p(x)."""
        return np.exp(self.log_density(x))

    def log_density(self, x: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
        """log p(x), finite also far from both modes."""
        parts = np.log(self.weight)[:, None] + log_gaussian(x, self.mean[:, None], self.std[:, None])
        return np.logaddexp.reduce(parts, axis=0)

    @property
    def moments(self) -> Float[np.ndarray, "2"]:
        """Mean and standard deviation of the mixture."""
        mean = self.weight @ self.mean
        return np.array([mean, np.sqrt(self.weight @ (self.std**2 + self.mean**2) - mean**2)])


TWO_MODES = Mixture(np.array([0.62, 0.38]), np.array([-1.9, 2.1]), np.array([0.65, 0.85]))
GRID = np.linspace(-14, 14, 2801)


@dataclass(frozen=True)
class KLDirections:
    """Fits are (mean, std). forward: of KL(p‖q). reverse: R local minima of KL(q‖p), the best first."""

    mixture: Mixture
    forward: Float[np.ndarray, "2"]
    forward_kl: float
    reverse: Float[np.ndarray, "R 2"]
    reverse_kl: Float[np.ndarray, " R"]


def compute(mixture: Mixture = TWO_MODES) -> KLDirections:
    """The forward fit has the mixture's moments, exactly; the reverse fits are by descent from each component.

    mixture: p.
    """
    starts = np.stack([mixture.mean, np.log(mixture.std)], axis=1)
    fits = [_descend(mixture, start) for start in starts]
    values = np.array([reverse_kl(mixture, fit) for fit in fits])
    order = np.argsort(values)
    return KLDirections(
        mixture, mixture.moments, forward_kl(mixture, mixture.moments), np.stack(fits)[order], values[order]
    )


def log_gaussian(
    x: Float[np.ndarray, "..."], mean: Float[np.ndarray, "..."] | float, std: Float[np.ndarray, "..."] | float
) -> Float[np.ndarray, "..."]:
    """log N(x; mean, std²). std: positive."""
    return np.asarray(-0.5 * np.square((x - mean) / std) - np.log(std) - 0.5 * np.log(2 * np.pi))


def forward_kl(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> float:
    """KL(p‖q), by the trapezoidal rule, which is exact to rounding here because the integrand vanishes at both ends.

    mixture: p. fit: q, as (mean, std).
    """
    log_p, log_q = mixture.log_density(GRID), log_gaussian(GRID, fit[0], fit[1])
    return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), GRID))


def reverse_kl(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> float:
    """KL(q‖p), by the trapezoidal rule.

    mixture: p. fit: q, as (mean, std).
    """
    log_p, log_q = mixture.log_density(GRID), log_gaussian(GRID, fit[0], fit[1])
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p), GRID))


def reverse_gradient(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """∂KL(q‖p)/∂(mean, log std) = E_q[∇log q · log(q/p)], since the score has mean 0.

    mixture: p. fit: q, as (mean, std).
    """
    z = (GRID - fit[0]) / fit[1]
    log_q = log_gaussian(GRID, fit[0], fit[1])
    score = np.stack([z / fit[1], np.square(z) - 1])
    return np.trapezoid(np.exp(log_q) * score * (log_q - mixture.log_density(GRID)), GRID, axis=1)


def _descend(mixture: Mixture, start: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """A local minimum of KL(q‖p) from (mean, log std)."""

    def as_fit(x: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        return np.array([x[0], np.exp(x[1])])

    solution = minimize(
        lambda x: reverse_kl(mixture, as_fit(x)),
        start,
        jac=lambda x: reverse_gradient(mixture, as_fit(x)),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return as_fit(solution.x)


def summary(data: KLDirections) -> list[str]:
    """The fits, each with the KL that it minimises. data: of the figure."""
    mean, std = data.forward
    lines = [f"KL(p‖q): N({mean:+.3f}, {std:.3f}²), {data.forward_kl:.4f} nats; covers both modes"]
    for (mean, std), kl in zip(data.reverse, data.reverse_kl, strict=True):
        lines.append(f"KL(q‖p): N({mean:+.3f}, {std:.3f}²), {kl:.4f} nats; seeks one mode")
    return lines


@style.with_style
def draw(data: KLDirections) -> Figure:
    """The mixture as a grey shape, the fits as curves. data: of the figure."""
    figure = style.page(9.0, 4.2)
    axes = figure.subplots()
    x = np.linspace(-6.5, 6.5, 1000)
    p = data.mixture.density(x)
    axes.fill_between(x, p, color="#cfd5db", linewidth=0)
    axes.plot(x, p, color="#9aa4ad", linewidth=1)
    fits = [(data.forward, style.BLUE, 1.0), (data.reverse[0], style.ORANGE, 1.0)]
    fits += [(fit, style.ORANGE, 0.45) for fit in data.reverse[1:]]
    for (mean, std), colour, alpha in fits:
        axes.plot(x, np.exp(log_gaussian(x, mean, std)), color=colour, alpha=alpha, linewidth=2.2)
    axes.set(xlabel=r"$x$", ylabel="density", xlim=(-6.5, 6.5), ylim=(0, None))
    axes.set_title("One Gaussian $q$ for two modes: the two directions of the KL disagree")
    _label(axes, data)
    return figure


def _label(axes: Axes, data: KLDirections) -> None:
    (mean, std), (best, narrow) = data.forward, data.reverse[0]
    top = float(np.exp(log_gaussian(np.array(best), best, narrow)))
    seeks = r"$q=\arg\min\;\mathrm{KL}(q\|p)$:  seeks a mode"
    covers = r"$q=\arg\min\;\mathrm{KL}(p\|q)$:" + "\ncovers both"
    axes.text(best + 0.8 * narrow, 0.93 * top, seeks, color=style.ORANGE, fontsize=13)
    axes.text(mean - 2.83 * std, 0.14, covers, color=style.BLUE, fontsize=13, linespacing=1.4)
    for weight, centre, width in zip(*vars(data.mixture).values(), strict=True):
        height = 0.2 * weight / width / np.sqrt(2 * np.pi)
        axes.text(centre, height, "$p$", color=style.QUIET, fontsize=15, ha="center", va="center")
    for other, wide in data.reverse[1:]:
        text = f"from another start:\na local minimum,\n{data.reverse_kl[1]:.2f} nats, not {data.reverse_kl[0]:.2f}"
        height = float(np.exp(log_gaussian(np.array(other), other, wide)))
        axes.text(other + 0.9 * wide, 0.72 * height, text, color=style.ORANGE, alpha=0.75, linespacing=1.3)
