"""Writes docs/results.md and its figures from benchmarks/results/returns.json: `make results-page`.

Interval: 95 % percentile bootstrap of the mean over seeds, as in `klimb compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from klimb.report.statistics import Estimate, stratified_bootstrap
from published_returns import TIANSHOU, ZOO_TRPO, Published
from results_file import HERE, read_results
from returns_tasks import CONTROL, CONTROL_RULES, TASKS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = HERE.parent / "docs"
BLUE, GREY = "#0072b2", "#6b7178"
TITLES = {"trpo": "TRPO", "natural-gradient": "Natural gradient", "ppo": "PPO", "reinforce": "REINFORCE"}
PARTS = {
    "v4": "MuJoCo, version 4 of the tasks, one million steps",
    "v5": "MuJoCo, version 5 of the tasks, one million steps",
    "3M": "MuJoCo, version 4 of the tasks, three million steps",
}
HEAD = """# Returns

How well the rules do on the tasks of the published tables. `make bench-returns` measures what is missing and adds it to
`benchmarks/results/returns.json`; `make results-page` writes this page and its figures from there. Tasks and rules that
are not on the page have not been measured yet.

- **best in training**: ten deterministic episodes are run after every tenth of the training; the best of these ten
  evaluations, as a mean over seeds. Tianshou's table has the same metric, but with 33 evaluations per million steps:
  the expected maximum of more evaluations is higher. It is of version 3 of the tasks, whose dynamics version 4 has too,
  except for Ant and Humanoid.
- **final policy**: 100 deterministic episodes with the policy at the end of the training, as a mean over seeds. Nothing
  is chosen.
- Brackets are 95 % bootstrap intervals of the mean over seeds; ± is the published standard deviation over seeds.
  Numbers in bold are at or above the mean of Tianshou's table. Every seed that was trained counts.
- **KL per step**: mean over all steps of the mean KL(π_old‖π_new), in nats. **rejected**: fraction of steps not taken.
"""


CONTROL_HEAD = """## Classic control

Every rule with its default settings: the final policies of ten seeds, 100 deterministic episodes each, as the mean over
seeds with its 95 % interval. The best possible return of CartPole-v1 is 500; Acrobot-v1 counts as solved at −100,
Pendulum-v1 has no threshold (a good policy has about −150), and MountainCarContinuous-v0 is solved at 90.
"""


class Cell(NamedTuple):
    """All seeds of a rule on an environment. best, final: returns `[S]`. curve: of evaluations, `[evaluations, S]`."""

    task: str
    rows: list[dict[str, Any]]

    def column(self, name: str) -> np.ndarray:
        """A value per seed."""
        return np.concatenate([np.asarray(row[name], float) for row in self.rows])

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Environment steps, and returns `[evaluations, seeds]`."""
        shortest = min(len(row["eval_steps"]) for row in self.rows)
        returns = [np.asarray(row["eval_return"], float)[:shortest] for row in self.rows]
        return np.asarray(self.rows[0]["eval_steps"][:shortest], float), np.concatenate(returns, axis=1)

    def mean_of(self, name: str) -> float:
        """A number per piece, weighted by its seeds."""
        weights = [row["num_seeds"] for row in self.rows]
        return float(np.average([row[name] for row in self.rows], weights=weights))


def cells(rows: list[dict[str, Any]], part: str, rule: str) -> list[Cell]:
    """The cells of a rule that are measured, in the order of the tasks."""
    found = []
    for task in TASKS:
        own = [row for row in rows if (row["part"], row["rule"]) == (part, rule) and f":{task}-" in row["env"]]
        if own:
            found.append(Cell(task, sorted(own, key=lambda row: row["seed"])))
    return found


def mean(values: np.ndarray) -> Estimate:
    """The mean over seeds with its interval."""
    return stratified_bootstrap([values], lambda scores: scores.mean(axis=-1))


def published_by_tianshou(rule: str, part: str, env_steps: int) -> dict[str, Published]:
    """Tianshou's returns by task, as far as the version of the tasks and the number of steps are the same."""
    return {} if part == "v5" else TIANSHOU.get((rule, env_steps), {})


def number(value: float) -> str:
    """With one decimal below 100."""
    text = f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("-", "−")


def interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def published(value: Published | None) -> str:
    return "" if value is None else f"{number(value.mean)} ± {number(value.deviation)}"


def table(rule: str, part: str, measured: list[Cell]) -> list[str]:
    """One row per task; numbers at least as high as Tianshou's are bold."""
    steps = measured[0].rows[0]["env_steps"]
    theirs, heading = published_by_tianshou(rule, part, steps), "Tianshou"
    if rule == "reinforce" and not theirs:
        # Published after three million steps only.
        theirs, heading = published_by_tianshou(rule, part, 3_000_000), "Tianshou, 3M steps"
    zoo = ZOO_TRPO if rule == "trpo" and part != "v5" else {}
    head = ["task", *([heading] if theirs else []), *(["RL Zoo"] if zoo else [])]
    head += ["best in training", "final policy", "seeds", "KL per step", "rejected"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in measured:
        best, final = mean(cell.column("best")), mean(cell.column("final"))
        yardstick = theirs.get(cell.task)

        def shown(estimate: Estimate, yardstick: Published | None = yardstick) -> str:
            text = interval(estimate)
            return f"**{text}**" if yardstick is not None and estimate.value >= yardstick.mean else text

        line = [cell.task, *([published(yardstick)] if theirs else [])]
        line += [published(zoo.get(cell.task))] if zoo else []
        line += [shown(best), shown(final), str(len(cell.column("best")))]
        line += [f"{cell.mean_of('kl'):.4f}", f"{100 * cell.mean_of('rejected'):.1f} %"]
        lines.append("| " + " | ".join(line) + " |")
    return lines


def draw(rule: str, part: str, measured: list[Cell]) -> Path:
    """A panel per task: the mean over seeds of the evaluations with its interval, every seed, and Tianshou's mean."""
    columns = min(3, len(measured))
    rows = -(-len(measured) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.5 * rows), layout="constrained", squeeze=False)
    for axis, cell in zip(axes.flat, measured, strict=False):
        steps, returns = cell.curve
        bands = [mean(values) for values in returns]
        axis.plot(steps / 1e6, returns, color=BLUE, alpha=0.18, linewidth=0.8)
        low, high = ([getattr(band, end) for band in bands] for end in ("low", "high"))
        axis.fill_between(steps / 1e6, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axis.plot(steps / 1e6, [band.value for band in bands], color=BLUE, linewidth=2)
        yardstick = published_by_tianshou(rule, part, cell.rows[0]["env_steps"]).get(cell.task)
        if yardstick is not None:
            axis.axhline(yardstick.mean, color=GREY, linestyle="--", linewidth=1)
        axis.set_title(cell.task, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e8eb", linewidth=0.7)
        axis.set_axisbelow(True)
    for axis in list(axes.flat)[len(measured) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps, millions")
    for axis in axes[:, 0]:
        axis.set_ylabel("return")
    path = DOCS / "figures" / f"returns-{part}-{rule}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def section(rule: str, part: str, measured: list[Cell]) -> list[str]:
    """Table, figure and commands of one rule."""
    figure = draw(rule, part, measured)
    commands = list(dict.fromkeys(pattern(row) for cell in measured for row in cell.rows))
    count = sum(row["num_seeds"] for row in measured[0].rows)
    return [
        f"### {TITLES.get(rule, rule)}",
        "",
        *table(rule, part, measured),
        "",
        f"![{TITLES.get(rule, rule)}: returns of the evaluations during training](figures/{figure.name})",
        "",
        "Returns of the evaluations: every seed, their mean and its 95 % interval. Tianshou's mean, where it is of the",
        "same version and length, is dashed.",
        "",
        *(f"    {command}" for command in commands),
        "",
        f"with `--seed` and `--num-seeds` for the {count} seeds and the settings of the [presets](presets.md), then",
        "`klimb evaluate RUN --episodes 100 --seed 1`.",
        "",
    ]


def pattern(row: dict[str, Any]) -> str:
    """The command without its seeds, and TASK for the task."""
    words = row["command"].split()
    for flag in ("--seed", "--num-seeds"):
        at = words.index(flag)
        del words[at : at + 2]
    prefix, _, name = row["env"].partition(":")
    words[3] = f"{prefix}:TASK-{name.rpartition('-')[2]}"
    return " ".join(words)


def control(rows: list[dict[str, Any]]) -> list[str]:
    """The section on classic control, with the rules that are measured on every task; nothing if there is none."""
    final = {(row["rule"], row["env"].partition(":")[2]): row["final"] for row in rows if row["part"] == "control"}
    rules = [rule for rule in CONTROL_RULES if all((rule, task) in final for task in CONTROL)]
    if not rules:
        return []
    head = ["rule", *(f"{task}, {steps // 1000}k steps" for task, steps in CONTROL.items())]
    lines = [CONTROL_HEAD, "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for rule in rules:
        shown = [interval(mean(np.asarray(final[rule, task]))) for task in CONTROL]
        lines.append(f"| {rule} | {' | '.join(shown)} |")
    task, steps = next(iter(CONTROL.items()))
    return [*lines, "", f"    klimb train trpo {task} --env-steps {steps} --num-seeds 10", ""]


def main() -> None:
    """Write the page and the figures."""
    rows = read_results("returns")["rows"]
    lines = [HEAD]
    for part, title in PARTS.items():
        rules = [rule for rule in TITLES if cells(rows, part, rule)]
        if rules:
            lines += [f"## {title}", ""]
        for rule in rules:
            lines += section(rule, part, cells(rows, part, rule))
    lines += control(rows)
    (DOCS / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
