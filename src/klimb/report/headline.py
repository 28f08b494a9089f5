"""The numbers at the top of the page: seconds of training, the final evaluation, and what the run was."""

from __future__ import annotations

import numpy as np

from klimb.report.data import Evaluation, RunData
from klimb.report.intervals import over_episodes
from klimb.report.statistics import FEW_SEEDS, from_few_seeds
from klimb.report.text import duration, format_number, si, with_error

Tile = tuple[str, str, str]
"""Name, value and detail."""


def headline(run: RunData) -> list[Tile]:
    """The tiles, the two that are looked at first at the beginning. run: of the report."""
    return [
        *_training_time(run),
        *_final_evaluation(run),
        *_returns(run),
        *_best_evaluation(run),
        *_size(run),
        *_seeds(run),
    ]


def _training_time(run: RunData) -> list[Tile]:
    if not run.has("wall_time"):
        return []
    seconds = float(np.nanmax(run.columns["wall_time"]))
    words = f"{duration(seconds)}, " if seconds >= 60 else ""
    return [
        ("Training time", f"{seconds:,.1f} s" if seconds < 1000 else f"{seconds:,.0f} s", f"{words}with compilation")
    ]


def _final_evaluation(run: RunData) -> list[Tile]:
    if run.evaluation is None:
        return []
    value = with_error(run.evaluation.mean, run.evaluation.standard_error)
    actions = "deterministic" if run.evaluation.deterministic else "sampled actions"
    return [(f"Final evaluation, {actions}", value, _evaluation_detail(run.evaluation))]


def _evaluation_detail(evaluation: Evaluation) -> str:
    count, interval = len(evaluation.seeds), over_episodes(evaluation)
    ends = "" if interval is None else f"{format_number(interval.low)} to {format_number(interval.high)}"
    between = f"; 95\N{NO-BREAK SPACE}% interval over episodes: {ends}" if ends else ""
    if count == 1:
        return f"± standard error over {evaluation.episodes} episodes{between}"
    few = f" (fewer than {FEW_SEEDS}: unreliable)" if from_few_seeds(count) else ""
    return f"± standard error over {count} seeds{few}, {evaluation.episodes} episodes each{between}"


def _returns(run: RunData) -> list[Tile]:
    """The best and the last mean return of an iteration's episodes."""
    returns = run.centre("episode_return")
    ended = np.flatnonzero(np.isfinite(returns))
    if not len(ended):
        return []
    best, last = ended[np.argmax(returns[ended])], ended[-1]
    average = "sampled actions, " + ("IQM of seeds, " if run.num_seeds > 1 else "")
    return [
        ("Best mean return", format_number(returns[best]), f"{average}at {si(run.env_steps[best])} steps"),
        ("Last mean return", format_number(returns[last]), f"{average}iteration {run.iteration[last]:,}"),
    ]


def _best_evaluation(run: RunData) -> list[Tile]:
    """The best evaluation during the training, by the mean over seeds, as `best/` is chosen."""
    if not run.has("eval_return"):
        return []
    means = np.mean(run.columns["eval_return"], axis=1)
    if not np.isfinite(means).any():
        return []
    row = int(np.nanargmax(means))
    seeds = f"mean of {run.num_seeds} seeds, " if run.num_seeds > 1 else ""
    error = run.columns["eval_return_se"][row, 0] if run.num_seeds == 1 and run.has("eval_return_se") else np.nan
    detail = f"{seeds}deterministic, at {si(run.env_steps[row])} steps"
    return [("Best evaluation", with_error(means[row], error), detail)]


def _size(run: RunData) -> list[Tile]:
    """How much was trained, and how fast."""
    count, per_seed = len(run.iteration), "per seed, " if run.num_seeds > 1 else ""
    if run.offline:
        tiles = [("Passes", f"{count:,}", f"{per_seed}over the demonstrations")]
    else:
        iterations = f"{per_seed}{count:,} iteration{'' if count == 1 else 's'}"
        tiles = [("Environment steps", si(run.env_steps[-1]), iterations)]
    if run.has("steps_per_second"):
        name = "Samples per second" if run.offline else "Steps per second"
        average = "median" + (", all seeds" if run.num_seeds > 1 else "")
        tiles.append((name, si(np.nanmedian(run.columns["steps_per_second"])), average))
    return tiles


def _seeds(run: RunData) -> list[Tile]:
    seeds = f"{run.seeds[0]} to {run.seeds[-1]}" if run.num_seeds > 1 else f"number {run.seeds[0]}"
    rejected, steps = int(run.rejected.sum()), run.status.size
    share = f"{rejected / steps:.1%} of {steps:,}" if rejected else f"of {steps:,}"
    return [("Seeds", str(run.num_seeds), seeds), ("Rejected steps", f"{rejected:,}", share)]
