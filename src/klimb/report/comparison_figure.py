"""The figure of a comparison: learning curves on the left, scores on the right, with bootstrap intervals."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from klimb.errors import RunError
from klimb.report.comparison import Comparison, Group, default_threshold
from klimb.report.statistics import FEW_SEEDS, Resampling, Scores, stratified_bootstrap, trailing_mean
from klimb.theory.figures.style import write

COLOURS = ("#0072b2", "#d55e00", "#008a63", "#ad4f88", "#a87c00")
LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
INK, QUIET = "#222222", "#777777"
POINTS = 160  # of a learning curve
FONT = 9.0
LINE_HEIGHT = 0.085
"""Of text beside a panel, as a fraction of the panel's height."""
MAX_LINES = 3
MAX_MOVE = 0.1
"""How far a name may stand from the end of its curve, as a fraction of the panel's height. Else there is a legend."""
SETTINGS: Any = {"text.parse_math": False, "svg.hashsalt": "klimb", "pdf.fonttype": 42}
"""A dollar sign in the name of a stranger's rule is no formula; text in a PDF stays text."""


class Style(NamedTuple):
    """How an algorithm is drawn."""

    colour: str
    line: Any


_STYLES = [Style(colour, line) for line in LINES for colour in COLOURS]


class CurveEnd(NamedTuple):
    """Where a learning curve ends, and whose it is."""

    x: float
    y: float
    label: str
    style: Style


def write_figure(path: Path, comparison: Comparison, threshold: float | None, resampling: Resampling) -> None:
    """Draw a comparison into a file, whose ending is the format. RunError when it can't be written.

    path: the file. comparison, threshold, resampling: as for `draw`.
    """
    try:
        with mpl.rc_context(SETTINGS):
            figure = draw(comparison, threshold, resampling)
            write(figure, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def draw(comparison: Comparison, threshold: float | None, resampling: Resampling) -> Figure:
    """The figure: one row per environment, learning curves on the left, scores on the right.

    comparison: what to draw. threshold: return at which a line is drawn; None for each environment's own.
    resampling: of the intervals.
    """
    environments, labels = comparison.environments, comparison.labels
    rows = [sum(_name_of(group).count("\n") + 2 for group in comparison.on(env)) for env in environments]
    heights = [max(2.9, 0.7 + 0.17 * lines) for lines in rows]
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(10.2, sum(heights)), layout=layout)
    panels = figure.subplots(len(environments), 2, squeeze=False, width_ratios=[1.3, 1], height_ratios=heights)
    ends = []
    for (left, right), env in zip(panels, environments, strict=True):
        goal = default_threshold(env) if threshold is None else threshold
        groups = [(group, _STYLES[labels.index(group.label) % len(_STYLES)]) for group in comparison.on(env)]
        left.set_title(env, loc="left", fontsize=FONT + 2, color=INK)
        ends.append((left, _draw_curves(left, groups, goal, resampling)))
        _draw_scores(right, groups, goal, resampling)
    if all(_fits_beside(axes, curves) for axes, curves in ends):
        for axes, curves in ends:
            _label_ends(axes, curves)
    else:
        _add_legend(figure, labels)
    score = "final evaluation" if comparison.evaluated else "last tenth of training"
    panels[-1][0].set_xlabel("environment steps", fontsize=FONT, color=INK)
    note = f"\nintervals from fewer than {FEW_SEEDS} seeds\nare too narrow" if comparison.has_few_seeds else ""
    panels[-1][1].set_xlabel(f"return, {score}{note}", fontsize=FONT, color=INK)
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


def _draw_curves(
    axes: Axes, groups: list[tuple[Group, Style]], threshold: float | None, resampling: Resampling
) -> list[CurveEnd]:
    """The curves with their bands; where each of them ends."""
    _plain(axes)
    ends = []
    for group, style in groups:
        steps, (centre, low, high) = learning_curve(group, resampling)
        if len(steps):
            axes.fill_between(steps, low, high, color=style.colour, alpha=0.18, linewidth=0)
            axes.plot(steps, centre, color=style.colour, linestyle=style.line, linewidth=1.6, solid_capstyle="round")
            ends.append(CurveEnd(steps[-1], centre[-1], group.label, style))
    axes.set_ylabel("return", fontsize=FONT, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not ends:
        axes.text(0.5, 0.5, "no returns during training", transform=axes.transAxes, ha="center", color=QUIET)
        axes.set_xticks([])
        return []
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(right=1.02 * max(end.x for end in ends))
    if threshold is not None and _near(axes.get_ylim(), threshold):
        axes.axhline(threshold, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        place = axes.get_yaxis_transform()
        axes.text(
            0.01,
            threshold,
            f"{threshold:g}".replace("-", "−"),
            transform=place,
            color=QUIET,
            fontsize=FONT - 1,
            va="bottom",
        )
    axes.set_ylim(*axes.get_ylim())
    return ends


def _places(axes: Axes, ends: list[CurveEnd]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Heights of the curves' ends and of their names, as fractions of the axes."""
    bottom, top = axes.get_ylim()
    heights = (np.array([end.y for end in ends]) - bottom) / (top - bottom)
    lines = max(_wrapped(end.label).count("\n") + 1 for end in ends)
    return heights, spread(heights, LINE_HEIGHT * lines)


def _fits_beside(axes: Axes, ends: list[CurveEnd]) -> bool:
    """Whether every curve's name can stand to the right of its end, or almost."""
    if not ends:
        return True
    if max(_wrapped(end.label).count("\n") for end in ends) >= MAX_LINES:
        return False
    heights, names = _places(axes, ends)
    return bool(np.abs(heights - names).max() <= MAX_MOVE)


def _label_ends(axes: Axes, ends: list[CurveEnd]) -> None:
    """Write each curve's name to the right of its end; one that had to be moved gets a line to the end."""
    for end, place in zip(ends, _places(axes, ends)[1] if ends else [], strict=True):
        axes.annotate(
            _wrapped(end.label),
            xy=(end.x, end.y),
            xytext=(1.04, float(place)),
            textcoords="axes fraction",
            color=end.style.colour,
            fontsize=FONT,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.style.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1},
        )


def _add_legend(figure: Figure, labels: list[str]) -> None:
    """All names below the panels, each beside a piece of its line."""
    styles = [_STYLES[i % len(_STYLES)] for i in range(len(labels))]
    pieces = [Line2D([], [], color=style.colour, linestyle=style.line, linewidth=1.6) for style in styles]
    names = [textwrap.fill(label, 44) for label in labels]
    columns = min(len(names), 2 if max(map(len, names)) > 30 else 4)
    lines = sum(name.count("\n") + 1 for name in names) / columns
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * (lines + 1))
    figure.legend(pieces, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=FONT, labelcolor=INK)


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 20)


def _name_of(group: Group) -> str:
    """A group's name and number of seeds, in short lines."""
    return textwrap.fill(f"{group.label}, {_count(len(group.seeds))}", 26)


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


def _draw_scores(
    axes: Axes, groups: list[tuple[Group, Style]], threshold: float | None, resampling: Resampling
) -> None:
    """One line per algorithm: a faint mark per seed, the interquartile mean as a dot, its interval as a bar.

    Names stand to the left of the panel, where nothing crosses them.
    """
    _plain(axes)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    for row, (group, style) in enumerate(groups):
        scores: Scores = group.scores
        iqm = stratified_bootstrap([scores], **asdict(resampling))
        rows = np.full(len(scores), row)
        axes.plot(scores, rows, "|", color=style.colour, alpha=0.45, markersize=7, markeredgewidth=0.9)
        if not math.isnan(iqm.low):
            axes.plot([iqm.low, iqm.high], [row, row], color=style.colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([iqm.value], [row], "o", color=style.colour, markersize=6, markeredgecolor="white")
    if threshold is not None and _near(axes.get_xlim(), threshold):
        axes.axvline(threshold, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(groups)), [_name_of(group) for group, _ in groups])
    axes.tick_params(axis="y", length=0, labelsize=FONT)
    for name, (_, style) in zip(axes.get_yticklabels(), groups, strict=True):
        name.set_color(style.colour)
    axes.set_ylim(len(groups) - 0.4, -0.6)
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
