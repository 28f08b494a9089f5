"""The figures of guided policy search: learning curves, and the cart-pole swing-up in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullFormatter

import learning
from klimb.environments.control.cartpole_swing_up import CartPoleSwingUp
from klimb.guided.guides import ModelRollout
from klimb.theory.figures import style

FIGURES = learning.DOCS / "figures"
COLOURS = {"guided": style.BLUE, "TRPO": style.ORANGE}

# The strip: a picture every EVERY steps, a faint pole every GHOST steps between them; lengths in metres.
PICTURES, EVERY, GHOST, SPACING, PITCH = 11, 12, 3, 1.5, 1.55
CART, ARROW = (0.34, 0.15), 0.45
ROWS = {
    "untrained": ("policy, untrained", style.QUIET),
    "guide": ("guide, planned", style.ORANGE),
    "trained": ("policy, trained", style.BLUE),
}


def draw_curves(curves: dict[str, list[dict[str, Any]]], threshold: float, pendulum: list[Path]) -> None:
    """Pendulum-v1 while it is trained on, where there are runs of it, and the swing-up until the threshold."""
    figure, axes = plt.subplots(1, 2 if pendulum else 1, figsize=(9.2 if pendulum else 5.0, 3.2), layout="constrained")
    axes = np.atleast_1d(axes)
    if pendulum:
        _draw_pendulum(axes[0], pendulum)
    _draw_swing_up(axes[-1], curves, threshold)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / "guided.png", dpi=110)
    plt.close(figure)


def _draw_pendulum(axis: Axes, directories: list[Path]) -> None:
    seeds = [learning.curve(directory) for directory in directories]
    iterations = min(len(steps) for steps, _ in seeds)
    runs = {"guided": (seeds[0][0][:iterations], np.hstack([values[:iterations] for _, values in seeds]))}
    if (learning.RUNS / "trpo-pendulum" / "metrics.jsonl").exists():
        runs["TRPO"] = learning.curve(learning.RUNS / "trpo-pendulum")
    for name, (steps, values) in reversed(runs.items()):
        at, smooth = _smooth(steps, values)
        known = np.isfinite(smooth)
        for seed in range(smooth.shape[1]):
            mine = known[:, seed]
            axis.plot(at[mine] / 1e3, smooth[mine, seed], color=COLOURS[name], alpha=0.3, linewidth=1)
        every = known.any(1)
        mean = np.nanmean(smooth[every], axis=1)
        axis.plot(at[every] / 1e3, mean, color=COLOURS[name], linewidth=2.2, label=name)
    task = next(task for task in learning.TASKS if task.name == "pendulum")
    _mark(axis, learning.untrained(task), "untrained")
    if len(runs) > 1:
        axis.legend(loc="lower right", frameon=False, bbox_to_anchor=(1, 0.12), reverse=True)
    axis.set(ylabel="return", xlabel="environment steps, thousands")
    axis.set_title(task.label, loc="left", fontsize=11)


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over some 60 stretches of iterations, NaN where no episode has ended in one."""
    width = max(1, len(steps) // 60)
    cut = len(steps) // width * width
    parts = values[:cut].reshape(-1, width, values.shape[1])
    counts = np.isfinite(parts).sum(axis=1)
    smooth = np.where(counts > 0, np.nansum(parts, axis=1) / np.maximum(counts, 1), np.nan)
    return steps[:cut].reshape(-1, width).mean(1), smooth


def _mark(axis: Axes, height: float, text: str) -> None:
    axis.axhline(height, color="#888888", linestyle="--", linewidth=1)
    place = ("axes fraction", "data")
    axis.annotate(text, (1, height), xycoords=place, ha="right", va="bottom", color="#666666")


def _draw_swing_up(axis: Axes, curves: dict[str, list[dict[str, Any]]], threshold: float) -> None:
    untrained = float(np.mean([run["curve"][0][1] for runs in curves.values() for run in runs]))
    for name, runs in curves.items():
        for run in runs:
            steps, values = np.array(run["curve"][1:]).T
            axis.plot(steps, values, color=COLOURS[name], alpha=0.5, linewidth=1.1)
            if run["steps"]:
                axis.plot(steps[-1], values[-1], "o", color=COLOURS[name], markersize=7, markeredgecolor="white")
        middle = float(np.median([run["curve"][-1][0] for run in runs]))
        text = f"{name}: {middle:,.0f} steps".replace(",", " ")
        left = name == "guided"
        place = {"transform": axis.transAxes, "ha": "left" if left else "right", "va": "top"}
        axis.text(0.02 if left else 0.98, 0.99, text, color=COLOURS[name], fontweight="bold", **place)
    _mark(axis, untrained, "untrained")
    axis.axhline(threshold, color="#888888", linewidth=1, zorder=1)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    lowest = 1.5 * untrained
    axis.set_yticks([threshold, *np.arange(-200, lowest, -200)])
    axis.set_ylim(lowest, 40)
    axis.set(xlabel="environment steps", ylabel="return, evaluated")
    axis.set_title("CartPoleSwingUp-v0", loc="left", fontsize=11)


def draw_strip(paths: dict[str, ModelRollout], environment: CartPoleSwingUp) -> None:
    """`figures/guided-swing-up.png`, of one path (physics and action, steps first) for each of ROWS."""
    figure = style.with_style(lambda paths: _strip(paths, environment))(paths)
    style.save(figure, FIGURES / "guided-swing-up.png")


def _strip(paths: dict[str, ModelRollout], environment: CartPoleSwingUp) -> Figure:
    figure = style.page(9.0, 2.95)
    axes = figure.subplots()
    axes.set(xlim=(-0.55 * SPACING, (PICTURES - 0.45) * SPACING), ylim=(-2 * PITCH - 1.15, 0.62))
    axes.set_aspect("equal")
    axes.axis("off")
    for row, (name, (text, colour)) in enumerate(ROWS.items()):
        physics, action = np.asarray(paths[name].env_state), np.asarray(paths[name].action)[:, 0]
        force = np.clip(action, -environment.max_force, environment.max_force) / environment.max_force
        for picture in range(PICTURES):
            middle = np.array([picture * SPACING, -row * PITCH])
            _draw_picture(axes, middle, physics[: picture * EVERY + 1], environment, colour)
            cart = (middle[0] + physics[picture * EVERY, 0], middle[1])
            _draw_force(axes, cart, force[picture * EVERY])
        axes.text(-0.48 * SPACING, 0.36 - row * PITCH, text, color=colour, fontsize=12.5, va="center")
    axes.text(0.2, -PITCH - 0.32, "force", color=style.GREEN, fontsize=10, va="top")
    for picture in range(PICTURES):
        seconds = f"{picture * EVERY * environment.time_step:.1f} s"
        axes.text(picture * SPACING, -2 * PITCH - 0.8, seconds, ha="center", va="top", color=style.QUIET)
    return figure


def _draw_picture(
    axes: Axes, middle: np.ndarray, physics: np.ndarray, environment: CartPoleSwingUp, colour: str
) -> None:
    """Track, cart and pole after the last of these steps, with the way that the pole has come since the last picture.

    The tick is the middle of the track.
    """
    (left, ground), (wide, high) = middle, CART
    track, line = ground - high / 2, {"color": "#c3c8ce", "linewidth": 1, "zorder": 1}
    axes.plot(left + np.array([-0.47, 0.47]) * SPACING, [track, track], **line)
    axes.plot([left, left], [track, track - 0.08], **line)
    hinges = np.stack([left + physics[:, 0], np.full(len(physics), ground)], axis=1)
    angle = physics[:, 2]
    tips = hinges + 2 * environment.half_length * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    since = slice(max(0, len(physics) - 1 - EVERY), None)
    ghosts = np.stack([hinges, tips], axis=1)[since][:-1:GHOST]
    axes.add_collection(LineCollection(list(ghosts), colors=colour, alpha=0.16, linewidths=1.6, zorder=2))
    way = tips[since]
    axes.plot(way[:, 0], way[:, 1], color=colour, alpha=0.35, linewidth=1.2, zorder=2)
    cart, tip = hinges[-1], tips[-1]
    rounded = "round,pad=0,rounding_size=0.04"
    corner = (cart[0] - wide / 2, track)
    axes.add_patch(FancyBboxPatch(corner, wide, high, boxstyle=rounded, facecolor=style.INK, linewidth=0, zorder=3))
    axes.plot([cart[0], tip[0]], [cart[1], tip[1]], color=colour, linewidth=3.4, zorder=4)
    axes.plot(*cart, "o", color="white", markersize=2.8, markeredgewidth=0, zorder=5)


def _draw_force(axes: Axes, cart: tuple[float, float], share: float) -> None:
    """On the cart, but drawn below the track, where it hides nothing; small forces would be arrowheads only."""
    if abs(share) < 0.15:
        return
    side, below = cart[0] + np.sign(share) * CART[0] / 2, cart[1] - 0.22
    style.arrow(axes, (side, below), (side + ARROW * share, below), style.GREEN, 1.6)
