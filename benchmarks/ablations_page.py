"""Writes docs/ablations.md from those rows of benchmarks/results/returns.json that change one choice each."""

from __future__ import annotations

from typing import Any

import numpy as np

from klimb.report.statistics import Estimate, stratified_bootstrap
from results_file import read_results
from returns_page import DOCS, TITLES, interval
from returns_tasks import LOCOMOTION, VARIANTS

BASE = "as-trained"
HEAD = """# Ablations

What each choice brings: one is changed at a time, and everything else is as in the [presets](presets.md).
`make bench-returns` measures what is missing, and `make results-page` writes this page. The seeds, 100 to 104, are none
of those of the [table of returns](results.md).

Numbers are returns of the final policies, 20 deterministic episodes per seed, after 500 000 steps: means over seeds
with 95 % bootstrap intervals. **relative** is the mean over the tasks of the return divided by that of the first row.
Its interval is that of the seeds of the row; the first row's mean is taken as known. Intervals of few seeds are wide: a
change whose interval contains 1 has not been shown to matter.
"""


def finals(rows: list[dict[str, Any]], rule: str, variant: str) -> dict[str, np.ndarray]:
    """Returns of all seeds by task, as far as they are measured."""
    own = [row for row in rows if (row["part"], row["rule"], row["variant"]) == ("ablations", rule, variant)]
    return {
        task: np.concatenate([row["final"] for row in own if f":{task}-" in row["env"]])
        for task in LOCOMOTION
        if any(f":{task}-" in row["env"] for row in own)
    }


def relative(returns: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> Estimate:
    """The mean over tasks of the return relative to the unchanged training's."""
    return stratified_bootstrap(
        [values / base[task].mean() for task, values in returns.items()],
        lambda scores: np.mean([part.mean(axis=-1) for part in np.split(scores, len(returns), axis=-1)], axis=0),
    )


def table(rows: list[dict[str, Any]], rule: str) -> list[str]:
    """The rows of a rule that are measured on every task."""
    base = finals(rows, rule, BASE)
    lines = [f"| changed | {' | '.join(LOCOMOTION)} | relative |", "|" + "---|" * (len(LOCOMOTION) + 2)]
    for variant, flags in VARIANTS[rule].items():
        returns = finals(rows, rule, variant)
        if len(returns) < len(LOCOMOTION):
            continue
        cells = [
            interval(stratified_bootstrap([values], lambda scores: scores.mean(axis=-1))) for values in returns.values()
        ]
        ratio = relative(returns, base)
        shown = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if flags else "1"
        lines.append(f"| {f'`{flags}`' if flags else 'nothing'} | {' | '.join(cells)} | {shown} |")
    return lines


def main() -> None:
    """Write the page, if anything has been measured."""
    rows = read_results("returns")["rows"]
    rules = [rule for rule in VARIANTS if len(finals(rows, rule, BASE)) == len(LOCOMOTION)]
    if not rules:
        print("no ablation has been measured")
        return
    lines = [HEAD]
    for rule in rules:
        lines += [f"## {TITLES[rule]}", "", *table(rows, rule), ""]
    (DOCS / "ablations.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
