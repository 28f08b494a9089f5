"""The figure and the tables of docs/ideas.md, from what benchmarks/ideas.py has measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib

from results_file import HERE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = HERE.parent / "docs"
PAGE, FIGURE = DOCS / "ideas.md", DOCS / "figures" / "ideas.png"
BLUE = "#0072b2"


def write(results: dict[str, Any]) -> None:
    """Every part that has been measured, between its marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in WRITERS.items():
        if name in results:
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            head, _, tail = text.partition(begin)
            text = head + begin + "\n" + "\n".join(lines(results[name])) + "\n" + end + tail.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")
    if "ladder" in results:
        draw(results["ladder"])


def ladder(found: dict[str, dict[str, Any]]) -> list[str]:
    """The figure; returns; environment steps; commands. found: task -> idea -> result."""
    ideas, tasks = list(next(iter(found.values()))), list(found)
    returns = [[idea, *(interval(found[task][idea]) for task in tasks)] for idea in ideas]
    steps = [[idea, *(reached(found[task][idea]) for task in tasks)] for idea in ideas]
    goals = [f"{task}, {number(found[task][ideas[0]]['reached']['threshold'])}" for task in tasks]
    commands = [found[tasks[0]][idea]["command"] for idea in ideas]
    return [
        "![What each idea contributes](figures/ideas.png)",
        "",
        "Returns of the trained policies:",
        "",
        *table(["idea", *tasks], returns),
        "",
        "Environment steps, in thousands, until the training return reaches the given value (median over seeds; in "
        "brackets the number of seeds that reach it, if not all do):",
        "",
        *table(["idea", *goals], steps),
        "",
        "The commands for the first task, in the same order:",
        "",
        "```",
        *commands,
        "```",
    ]


def reached(result: dict[str, Any]) -> str:
    """The median in thousands, and how many seeds it is of where some are missing; – where half of them are."""
    steps, seeds, all_seeds = result["reached"]["steps"], result["reached"]["seeds_that_did"], len(result["seeds"])
    median = f"{steps / 1000:.0f}" if math.isfinite(steps) else "–"
    return median if seeds == all_seeds else f"{median} ({seeds} of {all_seeds})"


def draw(found: dict[str, dict[str, Any]]) -> None:
    """A panel a task: what the policies of each rung reach, with its interval, from the first idea down."""
    figure, axes = plt.subplots(1, len(found), figsize=(12, 4.6), sharey=True, layout="constrained")
    for axis, (task, rungs) in zip(axes, found.items(), strict=True):
        for row, result in enumerate(rungs.values()):
            axis.plot(result["seeds"], [row] * len(result["seeds"]), "|", color=BLUE, alpha=0.5, markersize=8)
            axis.plot([result["low"], result["high"]], [row, row], color=BLUE, linewidth=3.5, alpha=0.35)
            axis.plot(result["iqm"], row, "o", color=BLUE, markersize=6.5)
        axis.set_title(task, loc="left", fontsize=11)
        axis.set_xlabel("return")
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(rungs)), list(rungs))
    axes[0].invert_yaxis()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)


def crossed(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row a contender, a column a condition."""
    conditions = list(next(iter(found.values())))
    return table(["", *conditions], [[name.strip(), *map(interval, one.values())] for name, one in found.items()])


def multiplier(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    marks = list(next(iter(found.values()))["multiplier"])
    rows = [
        [start, *(f"{one['multiplier'][mark]:.2g} ({one['kl'][mark]:.2f})" for mark in marks)]
        for start, one in found.items()
    ]
    return table(["from", *(f"iteration {mark}" for mark in marks)], rows)


def natural(found: dict[str, Any]) -> list[str]:
    contenders = found["contenders"]
    rows = []
    for name, by_unit in contenders.items():
        epsilon = by_unit["metres"]["chosen"]["epsilon"]
        rows.append(
            [f"{name}; ε = {epsilon:g}, best in metres", *(interval(one["chosen"]) for one in by_unit.values())]
        )
        best = (f"{interval(one['best'])}, ε = {one['best']['epsilon']:g}" for one in by_unit.values())
        rows.append([f"{name}; best ε in each unit", *best])
    head = ["positions in", *next(iter(contenders.values()))]
    return [
        *table(head, rows),
        "",
        f"Return of the optimal controller, averaged over all starts: {number(found['best'])}.",
    ]


WRITERS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "ladder": ladder,
    "scale": crossed,
    "batch": crossed,
    "sparse": crossed,
    "multiplier": multiplier,
    "natural": natural,
    "network": lambda found: crossed({"plain gradient": found}),
}


def interval(result: dict[str, Any]) -> str:
    return f"{number(result['iqm'])} ({number(result['low'])} … {number(result['high'])})"


def number(value: float) -> str:
    """With a decimal where it is small; −∞ for what grows beyond all bounds."""
    if not math.isfinite(value) or abs(value) >= 1e6:
        return "−∞" if value < 0 else "–"
    return f"{value:.1f}".replace("-", "−") if abs(value) < 100 else f"{value:.0f}".replace("-", "−")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
