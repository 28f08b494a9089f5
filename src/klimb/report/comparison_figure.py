"""The figure of a comparison: learning curves on the left, scores on the right, with bootstrap intervals."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from klimb.errors import RunError
from klimb.report.comparison import Comparison, Group, default_threshold
from klimb.report.statistics import Resampling, Scores, stratified_bootstrap, trailing_mean

COLOURS = ("#0072b2", "#d55e00", "#008a63", "#ad4f88", "#a87c00")
INK, QUIET = "#222222", "#777777"
POINTS = 160  # of a learning curve
FONT = 9.0


def write_figure(path: Path, comparison: Comparison, threshold: float | None, resampling: Resampling) -> None:
    """Draw a comparison into a file, whose ending is the format. RunError when it can't be written.

    path: the file. comparison, threshold, resampling: as for `draw`.
    """
    figure = draw(comparison, threshold, resampling)
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def draw(comparison: Comparison, threshold: float | None, resampling: Resampling) -> Figure:
    """The figure: one row per environment, learning curves on the left, scores on the right.

    comparison: what to draw. threshold: return at which a line is drawn; None for each environment's own.
    resampling: of the intervals.
    """
    environments, labels = comparison.environments, comparison.labels
    height = max(2.7, 0.9 + 0.42 * len(labels))
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(8.6, height * len(environments)), layout=layout)
    panels = figure.subplots(len(environments), 2, squeeze=False, width_ratios=[1.45, 1])
    for (left, right), env in zip(panels, environments, strict=True):
        goal = default_threshold(env) if threshold is None else threshold
        groups = [(group, COLOURS[labels.index(group.label) % len(COLOURS)]) for group in comparison.on(env)]
        left.set_title(env, loc="left", fontsize=FONT + 2, color=INK)
        _draw_curves(left, groups, goal, resampling)
        _draw_scores(right, groups, goal, resampling)
    score = "final evaluation" if comparison.evaluated else "last tenth of training"
    panels[-1][0].set_xlabel("environment steps", fontsize=FONT, color=INK)
    panels[-1][1].set_xlabel(f"return, {score}", fontsize=FONT, color=INK)
    return figure


def learning_curve(
    group: Group, resampling: Resampling, points: int = POINTS
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "3 points"]]:
    """Environment steps, and the interquartile mean over seeds with the ends of its interval.

    group: the seeds. resampling: of the interval. points: number of points.
    Each seed's return is smoothed as for the time to a threshold, then interpolated, over the steps at which all seeds
    have a return. Empty if there are none.
    """
    known = [np.isfinite(seed.curve) for seed in group.seeds]
    steps = [seed.env_steps[finite] for seed, finite in zip(group.seeds, known, strict=True)]
    if not all(len(x) > 1 for x in steps):
        return np.empty(0), np.empty((3, 0))
    start, stop = max(x[0] for x in steps), min(x[-1] for x in steps)
    if start >= stop:
        return np.empty(0), np.empty((3, 0))
    grid = np.linspace(start, stop, points)
    smooth = [trailing_mean(seed.curve[finite]) for seed, finite in zip(group.seeds, known, strict=True)]
    returns = np.array([np.interp(grid, x, y) for x, y in zip(steps, smooth, strict=True)])
    # The random seed is the same at every step, so that whole curves are resampled.
    estimates = [stratified_bootstrap([column], **asdict(resampling)) for column in returns.T]
    return grid, np.array([(estimate.value, estimate.low, estimate.high) for estimate in estimates]).T


def _draw_curves(axes: Axes, groups: list[tuple[Group, str]], threshold: float | None, resampling: Resampling) -> None:
    _plain(axes)
    ends = []
    for group, colour in groups:
        steps, (centre, low, high) = learning_curve(group, resampling)
        if len(steps):
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, centre, color=colour, linewidth=1.6, solid_capstyle="round")
            ends.append((steps[-1], centre[-1], group.label, colour))
    axes.set_ylabel("return", fontsize=FONT, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not ends:
        axes.text(0.5, 0.5, "no returns during training", transform=axes.transAxes, ha="center", color=QUIET)
        axes.set_xticks([])
        return
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(right=1.02 * max(x for x, _, _, _ in ends))
    if threshold is not None and _near(axes.get_ylim(), threshold):
        axes.axhline(threshold, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        place = axes.get_yaxis_transform()
        axes.text(0.01, threshold, f"{threshold:g}", transform=place, color=QUIET, fontsize=FONT - 1, va="bottom")
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each curve's name to the right of its end; names that would overlap are moved."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    fractions = (np.array([y for _, y, _, _ in ends]) - bottom) / (top - bottom)
    names = [textwrap.fill(label, 22) for _, _, label, _ in ends]
    gap = 0.075 * max(name.count("\n") + 1 for name in names)
    for (x, y, _, colour), name, place in zip(ends, names, spread(fractions, gap), strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.02, float(place)),
            textcoords="axes fraction",
            color=colour,
            fontsize=FONT,
            va="center",
            annotation_clip=False,
        )


def spread(places: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Positions moved as little as possible so that neighbours are a gap apart, in the same order.

    places: positions in [0, 1]. gap: smallest distance between two of them; they are spread evenly if it does not fit.
    """
    n = len(places)
    if (n - 1) * gap > 1:
        gap = 1 / (n - 1)
    order = np.argsort(places, kind="stable")
    offsets = gap * np.arange(n)
    free = places[order] - offsets
    # With the gaps subtracted, positions only have to be non-decreasing. The mean of the two monotone envelopes is, and
    # leaves positions unchanged that already are.
    rising = (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2
    result = np.empty(n)
    result[order] = np.clip(rising, 0, 1 - offsets[-1]) + offsets
    return result


def _draw_scores(axes: Axes, groups: list[tuple[Group, str]], threshold: float | None, resampling: Resampling) -> None:
    """One line per algorithm: a faint mark per seed, the interquartile mean as a dot, its interval as a bar."""
    _plain(axes)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    for row, (group, colour) in enumerate(groups):
        scores: Scores = group.scores
        iqm = stratified_bootstrap([scores], **asdict(resampling))
        axes.plot(scores, np.full(len(scores), row), "|", color=colour, alpha=0.45, markersize=7, markeredgewidth=0.9)
        if not math.isnan(iqm.low):
            axes.plot([iqm.low, iqm.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
        name = f"{textwrap.shorten(group.label, 44, placeholder=' …')}, {_count(len(scores))}"
        axes.annotate(
            name,
            xy=(0, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 9),
            textcoords="offset points",
            color=colour,
            fontsize=FONT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        axes.plot([iqm.value], [row], "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)
    if threshold is not None and _near(axes.get_xlim(), threshold):
        axes.axvline(threshold, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks([])
    axes.set_ylim(len(groups) - 0.6, -0.75)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _near(limits: tuple[float, float], threshold: float) -> bool:
    """Whether the threshold is close enough to the data to be shown in the same panel."""
    low, high = limits
    return bool(abs(threshold - (low + high) / 2) <= 0.8 * (high - low))


def _count(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(labelsize=FONT - 1, color=QUIET, labelcolor=INK)
