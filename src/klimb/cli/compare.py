"""klimb compare RUN...: several runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich import box
from rich.table import Table
from tyro.conf import Positional, arg

from klimb.cli.parser import Command, OutputFlag, require_unused
from klimb.console import result_console
from klimb.errors import ConfigError
from klimb.files import is_file
from klimb.report.comparison import Comparison, Group, default_threshold, read_comparison
from klimb.report.data import Spec
from klimb.report.html import FILE_NAME
from klimb.report.statistics import (
    FEW_SEEDS_NOTE,
    Resampling,
    aggregate_interquartile_mean,
    median_time,
    normalised,
    probability_of_improvement,
    stratified_bootstrap,
    time_to_threshold,
)
from klimb.report.text import duration, format_number
from klimb.runs.own_files import BEST, JOURNAL, SWEEP, TRIALS, TUNE
from klimb.runs.sweep_file import Sweep, is_sweep
from klimb.runs.tune_file import Tuning, is_search, read_trials
from klimb.terminal import write_line
from klimb.theory.figures.registry import check_suffix

SCORES = {
    "final evaluation": "its final evaluation",
    "training returns": "the episodes in the last tenth of its iterations",
}

BESIDE_RUNS = (SWEEP, TUNE, TRIALS, JOURNAL, FILE_NAME)
"""Files that `klimb compare SWEEP/*` names too."""


@dataclass(frozen=True)
class CompareArguments:
    """What is typed after `klimb compare`."""

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN...")]
    """Run directories; that of a sweep stands for all of its runs, that of a search for its complete trials."""
    threshold: float | None = None
    """Return for which the steps and time to reach it are shown; by default the environment's, as in Gymnasium."""
    json: bool = False
    """Print one JSON object instead of tables."""
    output: OutputFlag = None
    """Figure to write: .png, .svg or .pdf."""
    overwrite: bool = False
    """Overwrite an existing file."""
    samples: int = 2000
    """Number of bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""
    confidence: float = 0.95
    """Confidence level of the intervals, between 0 and 1."""


def compare(arguments: CompareArguments) -> None:
    """Compare runs, print what was found, and draw it where a figure is asked for.

    arguments: which runs, and how.
    """
    flags = arguments
    resampling = Resampling(flags.samples, flags.seed, flags.confidence)
    if flags.threshold is not None and not math.isfinite(flags.threshold):
        raise ConfigError(f"threshold = {flags.threshold}; a return to reach is a finite number")
    if flags.output is not None:
        check_suffix(flags.output)
        require_unused([flags.output], flags.overwrite)
    comparison = read_comparison(_without_sweeps(flags.runs))
    result = summary(comparison, flags.threshold, resampling)
    if flags.json:
        write_line(json.dumps(_without_nan(result), ensure_ascii=False, allow_nan=False))
    else:
        _print(result)
    if flags.output is not None:
        # Matplotlib takes half a second to import: only a figure pays for it.
        from klimb.report.comparison_figure import write_figure

        write_figure(flags.output, comparison, flags.threshold, resampling)
        if not flags.json:
            write_line(flags.output)


def _without_sweeps(paths: Sequence[Path]) -> list[Path]:
    """Run directories: in the place of a sweep or a search its runs, and nothing in that of the files beside them."""
    runs: list[Path] = []
    for path in paths:
        if is_sweep(path):
            members = [path / member.name for member in Sweep.read(path).members()]
            runs += [member for member in members if is_file(member / "config.toml")]
        elif is_search(path):
            trials = read_trials(path, Tuning.read(path))
            runs += [path / trial.name for trial in trials if trial.state == "complete"]
        elif path.name not in BESIDE_RUNS and not (path.name == BEST and is_search(path.parent)):
            runs.append(path)
    return runs


def summary(comparison: Comparison, threshold: float | None, resampling: Resampling) -> Spec:
    """All results, as plain values; NaN where a number does not exist.

    comparison: of the runs. threshold: return whose time of arrival is measured; None for the environment's own.
    resampling: of the bootstrap.
    """
    return {
        "score": "final evaluation" if comparison.evaluated else "training returns",
        **asdict(resampling),
        "environments": [
            _environment(name, comparison.on(name), threshold, resampling) for name in comparison.environments
        ],
        "improvement": _improvement(comparison, resampling),
        "aggregate": _aggregate(comparison, resampling),
        "notes": comparison.notes,
        "few_seeds": comparison.has_few_seeds,
    }


def _environment(name: str, groups: list[Group], threshold: float | None, resampling: Resampling) -> Spec:
    threshold = default_threshold(name) if threshold is None else threshold
    algorithms = [_algorithm(group, threshold, resampling) for group in groups]
    return {"environment": name, "threshold": threshold, "algorithms": algorithms}


def _algorithm(group: Group, threshold: float | None, resampling: Resampling) -> Spec:
    scores = group.scores
    goal = math.inf if threshold is None else threshold
    times = [time_to_threshold(seed.curve, seed.env_steps, seed.wall_time, goal) for seed in group.seeds]
    env_steps, wall_times = np.array(times).T
    return {
        "algorithm": group.label,
        "runs": list(dict.fromkeys(seed.run for seed in group.seeds)),
        "seeds": [
            {"seed": seed.seed, "run": seed.run, "score": seed.score, **_to_threshold(*time)}
            for seed, time in zip(group.seeds, times, strict=True)
        ],
        "iqm": asdict(stratified_bootstrap([scores], **asdict(resampling))),
        "mean": float(scores.mean()),
        "median": float(np.median(scores)),
        "best": float(scores.max()),
        "reached": None if threshold is None else int(np.isfinite(env_steps).sum()),
        **_to_threshold(median_time(env_steps), median_time(wall_times)),
    }


def _to_threshold(env_steps: float, wall_time: float) -> Spec:
    return {"env_steps_to_threshold": env_steps, "wall_time_to_threshold": wall_time}


def _improvement(comparison: Comparison, resampling: Resampling) -> list[Spec]:
    """Every algorithm over every other with which it shares an environment."""
    rows = []
    for x in comparison.labels:
        for y in comparison.labels:
            shared = comparison.shared([x, y])
            if x != y and shared:
                sides = [[comparison.of(label)[name].scores for name in shared] for label in (x, y)]
                chance = probability_of_improvement(sides[0], sides[1], **asdict(resampling))
                rows.append({"algorithm": x, "over": y, "environments": shared, **asdict(chance)})
    return rows


def _aggregate(comparison: Comparison, resampling: Resampling) -> Spec | None:
    """IQM over all environments that all algorithms share, of scores that run from 0 to 1 in each of them."""
    shared = comparison.shared(comparison.labels)
    if len(shared) < 2:
        return None
    everyone = {name: np.concatenate([group.scores for group in comparison.on(name)]) for name in shared}
    rows = []
    for label in comparison.labels:
        strata = [normalised(comparison.of(label)[name].scores, everyone[name]) for name in shared]
        iqm = aggregate_interquartile_mean(strata, **asdict(resampling))
        rows.append({"algorithm": label, "iqm": asdict(iqm)})
    return {"environments": shared, "algorithms": rows}


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list():
            return [_without_nan(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _print(result: Spec) -> None:
    percent = f"{100 * result['confidence']:g} %"
    lines: list[str | Table] = [f"Score of a seed: mean return of {SCORES[result['score']]}.", *result["notes"]]
    for environment in result["environments"]:
        lines += ["", environment["environment"], _environment_table(environment, percent)]
    if result["aggregate"]:
        names = ", ".join(result["aggregate"]["environments"])
        table = _table("algorithm", f"IQM, normalised [{percent}]")
        for row in result["aggregate"]["algorithms"]:
            table.add_row(row["algorithm"], _interval(row["iqm"]))
        lines += ["", f"{names} together: scores are scaled so that on each the lowest is 0 and the highest 1", table]
    if result["improvement"]:
        heading = "Probability that a seed of the first has a higher score than a seed of the second"
        lines += ["", heading, _improvement_table(result, percent)]
    estimates = [row["iqm"] for environment in result["environments"] for row in environment["algorithms"]]
    if any(math.isnan(estimate["low"]) for estimate in estimates):
        lines.append("\n–: no interval from a single seed; train more with --num-seeds.")
    if result["few_seeds"]:
        lines.append(f"\n{FEW_SEEDS_NOTE}")
    console = result_console()
    for line in lines:
        console.print(line)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _environment_table(environment: Spec, percent: str) -> Table:
    threshold = environment["threshold"]
    goal = [] if threshold is None else [f"env steps to {format_number(threshold)}", "time", "reached by"]
    table = _table("algorithm", "seeds", f"IQM [{percent}]", "mean", "median", "best", *goal)
    for row in environment["algorithms"]:
        seeds = len(row["seeds"])
        cells = [row["algorithm"], str(seeds), _interval(row["iqm"])]
        cells += [format_number(row[name]) for name in ("mean", "median", "best")]
        if threshold is not None:
            steps, time = row["env_steps_to_threshold"], row["wall_time_to_threshold"]
            cells.append("–" if math.isnan(steps) else f"{steps:,.0f}")
            cells.append("–" if math.isnan(time) else duration(time))
            cells.append(f"{row['reached']} of {seeds}")
        table.add_row(*cells)
    return table


def _improvement_table(result: Spec, percent: str) -> Table:
    """Each pair once, the likely winner first; the other way round it is one minus that."""
    table = _table("better", "than", f"probability [{percent}]")
    table.columns[1].justify = "left"
    done: set[frozenset[str]] = set()
    for row in result["improvement"]:
        pair = frozenset((row["algorithm"], row["over"]))
        if row["value"] > 0.5 - 1e-9 and pair not in done:
            done.add(pair)
            table.add_row(row["algorithm"], row["over"], _interval(row))
    return table


def _interval(estimate: Spec) -> str:
    """With the decimals that two digits of the interval's width deserve."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if math.isnan(low):
        return f"{format_number(value)} –"
    width = high - low
    decimals = int(np.clip(1 - math.floor(math.log10(width)), 0, 4)) if width > 1e-9 * max(1, abs(value)) else 2
    return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(value, low, high, d=decimals).replace("-", "−")


COMMAND = Command("compare", CompareArguments, compare)
