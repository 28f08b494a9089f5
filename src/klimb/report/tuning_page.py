"""The page of a search: its history, the importance of the searched fields, all trials, and the command of the best."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from klimb.errors import MissingExtra, RunError, one_line
from klimb.files import as_path, is_file
from klimb.improve.rule import rule_title
from klimb.report.configuration import command
from klimb.report.data import Evaluation, Spec, read_evaluation
from klimb.report.html import FILE_NAME, fill, sections_html, tiles_html, without_readouts, write_page
from klimb.report.lines import json_number
from klimb.report.text import duration, format_number, with_error
from klimb.rules import RULES
from klimb.runs.search_space import Choice, Domain, Range
from klimb.runs.sweep_file import value_in_a_name
from klimb.runs.tune_file import RUNGS, Trial, Tuning, best_of, read_trials
from klimb.training.optuna_study import MIN_TRIALS, importances

MAX_TILES = 4
"""Values that are shown at the top; more stand in the table alone."""
GROUPS = [("trained to the end", "var(--c1)"), ("pruned", "var(--bad1)")]


def write_tuning_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of a search. Returns the path of the page.

    directory: of the search. output: the file to write; `report.html` there by default.
    Raises RunError when the search has no trial yet, or a file can't be read or written; ConfigError when its
    description is wrong.
    """
    directory = as_path(directory)
    return write_page(render_tuning(directory), directory, output)


def render_tuning(directory: Path) -> str:
    """The whole page as HTML. directory: of the search."""
    tuning = Tuning.read(directory)
    trials = read_trials(directory, tuning)
    if not trials:
        raise RunError(f"{one_line(directory)} has no trial yet: klimb resume makes them, and a report of them")
    best, title = best_of(trials), rule_title(tuning.config.rule)
    parts = _sections(tuning, trials)
    charts = [chart for part in parts for chart in part["charts"]]
    data = {
        "steps": [0, len(trials)],
        "unit": ["trial", "trials"],
        "trials": [{"title": trial.name, "rows": _facts(trial)} for trial in trials],
        "charts": without_readouts(charts),
    }
    evaluation = None if best is None else read_evaluation(directory / best.name / "evaluation.json")
    return fill(
        "tuning.html",
        data,
        title=escape(one_line(f"{title} on {tuning.config.env}: search")),
        rule=escape(title),
        env=escape(one_line(tuning.config.env)),
        name=escape(one_line(directory.resolve().name)),
        headline=tiles_html(_headline(tuning, trials, best, evaluation)),
        sections=sections_html(parts),
        lead=escape(_lead(tuning)),
        head="".join(f"<th>{escape(name)}</th>" for name in ("Trial", "Score", "State", *map(one_line, tuning.over))),
        rows=_rows_html(directory, tuning, trials, best),
        best=_best_html(tuning, best),
        search=_command_html(tuning, _search_command(tuning)),
    )


def values_in_words(values: Mapping[str, Any]) -> str:
    """The values of a trial in one line: max_kl 0.0123, hidden 64x64. values: by field."""
    return ", ".join(f"{one_line(name)} {one_line(value_in_a_name(value))}" for name, value in values.items())


def _facts(trial: Trial) -> list[tuple[str, str]]:
    """What is shown of a trial beside its point."""
    score = _score(trial)
    facts = [] if score is None else [("score" if trial.state == "complete" else "last score", format_number(score))]
    return [*facts, *((one_line(name), one_line(value_in_a_name(value))) for name, value in trial.values.items())]


def _score(trial: Trial) -> float | None:
    """The score of a trial; of one that was pruned, that of its last evaluation."""
    if trial.state == "pruned":
        return trial.rungs[-1][1] if trial.rungs else None
    return trial.score if trial.state == "complete" else None


def _sections(tuning: Tuning, trials: Sequence[Trial]) -> list[Spec]:
    shown = [trial for trial in trials if _score(trial) is not None]
    if not shown:
        return []
    slices = [_slice(name, domain, shown) for name, domain in tuning.over.items()]
    bars, lead = _importance(tuning, trials)
    return [
        {"title": "History", "lead": lead, "charts": [_history(trials, shown), *bars]},
        {
            "title": "Score by value",
            "lead": "Each point is a trial. A point at the lower edge may lie below it.",
            "small": True,
            "charts": slices,
        },
    ]


def _points(shown: Sequence[Trial], x: Sequence[float | int]) -> Spec:
    scores = [_score(trial) or 0.0 for trial in shown]
    return {
        "x": list(x),
        "y": [json_number(score) for score in scores],
        "group": [0 if trial.state == "complete" else 1 for trial in shown],
        "trial": [trial.number for trial in shown],
    }


def _history(trials: Sequence[Trial], shown: Sequence[Trial]) -> Spec:
    """The score of every trial, and the highest so far."""
    best: list[float | None] = []
    for trial in trials:
        known = [score for score in (best[-1] if best else None, trial.score) if score is not None]
        best.append(max(known) if trial.state == "complete" and known else best[-1] if best else None)
    used = sorted({0 if trial.state == "complete" else 1 for trial in shown})
    pruned = "; a pruned trial has the score of its last evaluation" if used[-1:] == [1] else ""
    return {
        "kind": "points",
        "title": "Score of each trial",
        "about": f"In the order in which they were made. The line is the highest score so far{pruned}.",
        "wide": True,
        "height": 300,
        "xLabel": "trial",
        "yLabel": "mean return",
        "xDomain": [-0.5, max(len(trials) - 0.5, 0.5)],
        "groups": GROUPS if len(used) > 1 else GROUPS[:1],
        "points": _points(shown, [trial.number for trial in shown]),
        "best": {"values": [None if value is None else json_number(value) for value in best]},
    }


def _slice(name: str, domain: Domain, shown: Sequence[Trial]) -> Spec:
    """The scores over the values of one field."""
    chart: Spec = {
        "kind": "points",
        "title": one_line(name),
        "about": "",
        "height": 190,
        "groups": GROUPS,
        "xLabel": one_line(name),
    }
    if isinstance(domain, Choice):
        labels = domain.labels
        x = [float(labels.index(value_in_a_name(trial.values[name]))) for trial in shown]
        chart["xTicks"] = [[i, one_line(label, 16)] for i, label in enumerate(labels)]
        chart["xDomain"] = [-0.5, len(labels) - 0.5]
    else:
        x = [float(trial.values[name]) for trial in shown]
        chart["xLog"], chart["xDomain"] = domain.log, _widened(domain)
    return {**chart, "points": _points(shown, [float(f"{value:.6g}") for value in x])}


def _widened(domain: Range) -> list[float]:
    """The ends of an axis, so that points at the ends of the range are seen whole."""
    if domain.log:
        margin = (domain.high / domain.low) ** 0.03
        return [domain.low / margin, domain.high * margin]
    margin = 0.03 * (domain.high - domain.low)
    return [domain.low - margin, domain.high + margin]


def _importance(tuning: Tuning, trials: Sequence[Trial]) -> tuple[list[Spec], str]:
    """The chart of the importance of fields, and a sentence in its place where there is none."""
    try:
        found = importances(tuning.over, trials)
    except MissingExtra as error:
        return [], f"The importance of fields is not computed: {error}."
    if not found:
        return (
            [],
            f"The importance of fields needs at least {MIN_TRIALS} trials that were trained to the end.",
        )
    rows = [{"label": one_line(name, 40), "value": round(part, 4)} for name, part in found.items()]
    about = "How much each field decides whether a trial is among the best tenth, in parts of all (PED-ANOVA)."
    return [
        {"kind": "bars", "title": "Importance of the fields", "about": about, "wide": True, "xLabel": " ", "rows": rows}
    ], ""


def _headline(
    tuning: Tuning, trials: Sequence[Trial], best: Trial | None, evaluation: Evaluation | None
) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the numbers at the top."""
    options, counts = tuning.config.options, Counter(trial.state for trial in trials)
    seeds = f"{options.num_seeds} seeds, " if options.num_seeds > 1 else ""
    episodes = f"{seeds}{options.eval_episodes:,} episodes{' each' if seeds else ''}"
    tiles = []
    if best is not None and best.score is not None:
        error = math.nan if evaluation is None else evaluation.standard_error
        tiles.append(("Best score", with_error(best.score, error), f"mean return of {best.name}, {episodes}"))
        if len(best.values) <= MAX_TILES:
            tiles += [
                (one_line(name), value_in_a_name(value), f"in {best.name}") for name, value in best.values.items()
            ]
    others = ", ".join(f"{counts[state]:,} {state}" for state in ("pruned", "failed", "running") if counts[state])
    detail = f"{counts['complete']:,} trained to the end" + (f", {others}" if others else "")
    tiles.append(("Trials", f"{len(trials):,}", detail))
    tiles.append(("Environment steps", f"{options.env_steps:,}", "per seed of each trial"))
    seconds = _seconds(trials)
    if seconds is not None:
        tiles.append(("Time", duration(seconds), "from the first trial's start to the last one's end"))
    return tiles


def _seconds(trials: Sequence[Trial]) -> float | None:
    """From the start of the first trial to the end of the last; None where that is not known."""
    try:
        started = [datetime.fromisoformat(trial.started) for trial in trials if trial.started]
        ended = [datetime.fromisoformat(trial.ended) for trial in trials if trial.ended]
        return (max(ended) - min(started)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _lead(tuning: Tuning) -> str:
    options = tuning.config.options
    seeds = f" and {options.num_seeds} seeds" if options.num_seeds > 1 else ""
    rungs = " and ".join(f"{percent} %" for percent in RUNGS)
    pruned = (
        f" After {rungs} of its training a trial whose score is below the median of all that were evaluated there is "
        "pruned."
        if tuning.prune
        else ""
    )
    return (
        "The score is the mean return of the final evaluation with deterministic actions, over "
        f"{options.eval_episodes:,} episodes{seeds}.{pruned} The highest of many scores is too high on average: train "
        "the best values again with other seeds before you report them."
    )


def _rows_html(directory: Path, tuning: Tuning, trials: Sequence[Trial], best: Trial | None) -> str:
    """The trials, the best first; those without a score at the end."""

    def order(trial: Trial) -> tuple[bool, float, int]:
        score = trial.score if trial.state == "complete" else None
        return score is None, -(score or 0.0), trial.number

    rows = []
    for trial in sorted(trials, key=order):
        name = escape(trial.name)
        if is_file(directory / trial.name / FILE_NAME):
            name = f'<a href="{name}/{FILE_NAME}">{name}</a>'
        score = "–" if trial.score is None else format_number(trial.score)
        cells = [score, _state(trial), *(one_line(value_in_a_name(trial.values[field])) for field in tuning.over)]
        kind = ' class="best"' if best is not None and trial.number == best.number else ""
        tip = f' title="{escape(one_line(trial.note))}"' if trial.note else ""
        rows.append(f"<tr{kind}{tip}><td>{name}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return "".join(rows)


def _state(trial: Trial) -> str:
    """What has come of a trial, in a few words."""
    if trial.state == "pruned" and trial.rungs:
        percent, score = trial.rungs[-1]
        return f"pruned after {percent} % with {format_number(score)}"
    return f"failed: {one_line(trial.note, 60)}" if trial.state == "failed" and trial.note else trial.state


def _best_html(tuning: Tuning, best: Trial | None) -> str:
    if best is None:
        return '<p class="quiet">No trial has been trained to its end.</p>'
    return _command_html(tuning, command(tuning.config_of(best).to_dict()))


def _search_command(tuning: Tuning) -> list[str]:
    """The command line that repeats the search, quoted, one item per flag."""
    config = tuning.config
    groups = [group.replace("klimb train", "klimb tune", 1) for group in command(config.to_dict())]
    for name, domain in tuning.over.items():
        if isinstance(domain, Choice):
            words = [name, *(_typed(value) for value in domain.values)]
        else:
            words = [f"{name}:{domain.written}"]
        groups.append(shlex.join(["--over", *words]))
    groups += [f"--trials {tuning.trials}", f"--trials-at-once {tuning.at_once}"]
    return [*groups, "--prune"] if tuning.prune else groups


def _typed(value: Any) -> str:
    """A value as it is typed after `--over`."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return value_in_a_name(value) if value is None or isinstance(value, bool) else str(value)


def _command_html(tuning: Tuning, groups: Sequence[str]) -> str:
    if tuning.config.to_dict()["rule"]["name"] not in RULES:
        return '<p class="quiet">The rule is not one of klimb’s own: repeat this from Python.</p>'
    words = " ".join(f"<span>{escape(group)}</span>" for group in groups)
    return f'<pre class="command"><code>{words}</code></pre>'
