"""The figure of `make bench-seconds`: a panel per task, a bar per contender, seconds on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from klimb.report.comparison_figure import INK, QUIET
from seconds_results import Median
from seconds_tasks import Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, PEERS = "#0072b2", "#a9b1ba"
COLUMNS = 3
FONT = 9


def draw(found: dict[Task, dict[str, Median]], path: Path) -> None:
    """Draw all tasks. found: the medians by contender, the faster ones on top in each panel. path: a PNG."""
    rows = -(-len(found) // COLUMNS)
    bars = [
        max(len(medians) for medians in list(found.values())[i : i + COLUMNS]) for i in range(0, len(found), COLUMNS)
    ]
    figure, panels = plt.subplots(
        rows, COLUMNS, figsize=(10.4, sum(0.62 + 0.2 * count for count in bars)), layout="constrained",
        squeeze=False, height_ratios=[count + 1.5 for count in bars],
    )  # fmt: skip
    for panel, (task, medians) in zip(panels.flat, found.items(), strict=False):
        draw_task(panel, task, medians)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    figure.supxlabel("seconds of training until solved, median over seeds; faint: not solved by then", fontsize=FONT)
    # White, so that it can also be read on a dark page.
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def draw_task(panel: Axes, task: Task, medians: dict[str, Median]) -> None:
    """One task. A bar whose end is only a lower bound is faint, and its number has a >."""
    names = sorted(medians, key=lambda name: (medians[name].bound, medians[name].seconds), reverse=True)
    start = min(one.seconds for one in medians.values()) / 3
    for row, name in enumerate(names):
        one = medians[name]
        ours = name.startswith("klimb")
        colour = OURS if ours else PEERS
        panel.barh(row, one.seconds - start, left=start, height=0.72, color=colour, alpha=0.35 if one.bound else 1)
        text = f"{'> ' if one.bound else ''}{one.seconds:.2g}" if one.seconds < 100 else f"{one.seconds:.0f}"
        panel.annotate(
            text, (one.seconds, row), (3, 0), textcoords="offset points", va="center", fontsize=FONT - 1, color=INK
        )
    panel.set_xscale("log")
    panel.set_xlim(start, max(one.seconds for one in medians.values()) * 4)
    panel.set_yticks(range(len(names)), names, fontsize=FONT - 1)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=FONT - 1, colors=QUIET)
    panel.set_title(f"{task.name}, {task.threshold:g}".replace("-1", "−1", 0), loc="left", fontsize=FONT, color=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
