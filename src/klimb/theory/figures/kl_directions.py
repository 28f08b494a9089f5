"""One Gaussian for a mixture of two: KL(p‖q) has to cover both modes, KL(q‖p) may leave one out."""

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
    """p = Σ w N(μ, s²), one entry a component."""

    weight: Float[np.ndarray, " C"]
    mean: Float[np.ndarray, " C"]
    std: Float[np.ndarray, " C"]

    def density(self, x: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
        """p(x)."""
        return np.exp(self.log_density(x))

    def log_density(self, x: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
        """log p(x), finite far from both modes too."""
        parts = np.log(self.weight)[:, None] + log_gaussian(x, self.mean[:, None], self.std[:, None])
        return np.logaddexp.reduce(parts, axis=0)

    @property
    def moments(self) -> Float[np.ndarray, "2"]:
        """Mean and standard deviation of the whole."""
        mean = self.weight @ self.mean
        return np.array([mean, np.sqrt(self.weight @ (self.std**2 + self.mean**2) - mean**2)])


TWO_MODES = Mixture(np.array([0.62, 0.38]), np.array([-1.9, 2.1]), np.array([0.65, 0.85]))
GRID = np.linspace(-14, 14, 2801)


@dataclass(frozen=True)
class KLDirections:
    """Fits are (mean, std). `reverse` holds R local optima of KL(q‖p), the best first."""

    mixture: Mixture
    forward: Float[np.ndarray, "2"]
    forward_kl: float
    reverse: Float[np.ndarray, "R 2"]
    reverse_kl: Float[np.ndarray, " R"]


def numbers(mixture: Mixture = TWO_MODES) -> KLDirections:
    """The forward fit by its moments, exactly; the reverse ones by descent from each component."""
    starts = np.stack([mixture.mean, np.log(mixture.std)], axis=1)
    found = [_descend(mixture, start) for start in starts]
    values = np.array([reverse_kl(mixture, fit) for fit in found])
    order = np.argsort(values)
    return KLDirections(
        mixture, mixture.moments, forward_kl(mixture, mixture.moments), np.stack(found)[order], values[order]
    )


def log_gaussian(
    x: Float[np.ndarray, "..."], mean: Float[np.ndarray, "..."] | float, std: Float[np.ndarray, "..."] | float
) -> Float[np.ndarray, "..."]:
    """log N(x; mean, std²)."""
    return np.asarray(-0.5 * np.square((x - mean) / std) - np.log(std) - 0.5 * np.log(2 * np.pi))


def forward_kl(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> float:
    """KL(p‖q), by quadrature; the trapezoid rule is exact to rounding for what dies out at both ends."""
    log_p, log_q = mixture.log_density(GRID), log_gaussian(GRID, fit[0], fit[1])
    return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), GRID))


def reverse_kl(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> float:
    """KL(q‖p), by quadrature."""
    log_p, log_q = mixture.log_density(GRID), log_gaussian(GRID, fit[0], fit[1])
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p), GRID))


def reverse_gradient(mixture: Mixture, fit: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """∂KL(q‖p)/∂(mean, log std) = E_q[∇log q · log(q/p)]: the score's own mean is 0."""
    z = (GRID - fit[0]) / fit[1]
    log_q = log_gaussian(GRID, fit[0], fit[1])
    score = np.stack([z / fit[1], np.square(z) - 1])
    return np.trapezoid(np.exp(log_q) * score * (log_q - mixture.log_density(GRID)), GRID, axis=1)


def _descend(mixture: Mixture, start: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    def as_fit(x: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        return np.array([x[0], np.exp(x[1])])

    found = minimize(
        lambda x: reverse_kl(mixture, as_fit(x)),
        start,
        jac=lambda x: reverse_gradient(mixture, as_fit(x)),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return as_fit(found.x)


def summary(numbers: KLDirections) -> list[str]:
    """The fits and what each costs in its own direction."""
    mean, std = numbers.forward
    lines = [f"KL(p‖q): N({mean:+.3f}, {std:.3f}²), {numbers.forward_kl:.4f} nats; covers both modes"]
    for (mean, std), kl in zip(numbers.reverse, numbers.reverse_kl, strict=True):
        lines.append(f"KL(q‖p): N({mean:+.3f}, {std:.3f}²), {kl:.4f} nats; seeks one mode")
    return lines


@style.drawn
def draw(numbers: KLDirections) -> Figure:
    """The mixture as a grey shape, the fits as curves."""
    figure = style.page(9.0, 4.2)
    axes = figure.subplots()
    x = np.linspace(-6.5, 6.5, 1000)
    p = numbers.mixture.density(x)
    axes.fill_between(x, p, color="#cfd5db", linewidth=0)
    axes.plot(x, p, color="#9aa4ad", linewidth=1)
    fits = [(numbers.forward, style.BLUE, 1.0), (numbers.reverse[0], style.ORANGE, 1.0)]
    fits += [(fit, style.ORANGE, 0.45) for fit in numbers.reverse[1:]]
    for (mean, std), colour, alpha in fits:
        axes.plot(x, np.exp(log_gaussian(x, mean, std)), color=colour, alpha=alpha, linewidth=2.2)
    axes.set(xlabel=r"$x$", ylabel="density", xlim=(-6.5, 6.5), ylim=(0, None))
    axes.set_title("One Gaussian $q$ for two modes: the two directions of the KL disagree")
    _label(axes, numbers)
    return figure


def _label(axes: Axes, numbers: KLDirections) -> None:
    (mean, std), (best, narrow) = numbers.forward, numbers.reverse[0]
    top = float(np.exp(log_gaussian(np.array(best), best, narrow)))
    seeks = r"$q=\arg\min\;\mathrm{KL}(q\|p)$:  seeks a mode"
    covers = r"$q=\arg\min\;\mathrm{KL}(p\|q)$:" + "\ncovers both"
    axes.text(best + 0.8 * narrow, 0.93 * top, seeks, color=style.ORANGE, fontsize=13)
    axes.text(mean - 2.83 * std, 0.14, covers, color=style.BLUE, fontsize=13, linespacing=1.4)
    for weight, centre, width in zip(*vars(numbers.mixture).values(), strict=True):
        height = 0.2 * weight / width / np.sqrt(2 * np.pi)
        axes.text(centre, height, "$p$", color=style.QUIET, fontsize=15, ha="center", va="center")
    for other, wide in numbers.reverse[1:]:
        text = (
            f"from another start:\na local minimum,\n{numbers.reverse_kl[1]:.2f} nats, not {numbers.reverse_kl[0]:.2f}"
        )
        height = float(np.exp(log_gaussian(np.array(other), other, wide)))
        axes.text(other + 0.9 * wide, 0.72 * height, text, color=style.ORANGE, alpha=0.75, linespacing=1.3)
