"""The figure of `make bench-seconds`: a panel per task, a bar per contender, seconds on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from klimb.report.comparison_figure import INK, QUIET
from seconds_results import Median, number, taken
from seconds_tasks import Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, PEERS = "#0072b2", "#a9b1ba"
COLUMNS = 3
FONT = 9
BAR = 0.19
"""Inches of a bar and the space below it."""


def draw(found: dict[Task, dict[str, Median]], path: Path) -> None:
    """Draw all tasks. found: the medians by contender. path: a PNG."""
    tasks = list(found)
    rows = [tasks[i : i + COLUMNS] for i in range(0, len(tasks), COLUMNS)]
    bars = [max(len(found[task]) for task in row) for row in rows]
    figure, panels = plt.subplots(
        len(rows),
        COLUMNS,
        figsize=(10.4, sum(0.55 + BAR * count for count in bars) + 0.3),
        layout="constrained",
        squeeze=False,
        height_ratios=bars,
        sharex=True,
    )
    for panel in panels.flat[len(tasks) :]:
        panel.set_visible(False)
    every = [one.seconds for medians in found.values() for one in medians.values()]
    start = min(every) / 2
    for row, line, count in zip(rows, panels, bars, strict=True):
        for panel, task in zip(line, row, strict=False):
            draw_task(panel, task, found[task], start)
            # From the top: a task with few contenders leaves the rest of its panel empty.
            panel.set_ylim(count - 0.5, -0.6)
    panels[0, 0].set_xlim(start, max(every) * 5)
    figure.supxlabel("seconds of training until solved, median over seeds (faint: not solved by then)", fontsize=FONT)
    # White, so that it can also be read on a dark page.
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def draw_task(panel: Axes, task: Task, medians: dict[str, Median], start: float) -> None:
    """One task, the fastest on top; a bar whose end is only a lower bound is faint. start: of all bars, in seconds."""
    names = sorted(medians, key=lambda name: (medians[name].bound, medians[name].seconds))
    for row, name in enumerate(names):
        one = medians[name]
        colour = OURS if name.startswith("klimb") else PEERS
        panel.barh(row, one.seconds - start, left=start, height=0.72, color=colour, alpha=0.35 if one.bound else 1)
        place: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        panel.annotate(taken(one), (one.seconds, row), fontsize=FONT - 1, color=INK, **place)
    panel.set_xscale("log")
    panel.set_yticks(range(len(names)), names, fontsize=FONT - 1)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=FONT - 1, colors=QUIET, which="both")
    panel.set_title(f"{task.name}, {number(task.threshold)}", loc="left", fontsize=FONT, color=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
