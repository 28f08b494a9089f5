"""The steps that were not taken: why, the numbers that decided, what it means and what one can do."""

from __future__ import annotations

from html import escape

import numpy as np

from klimb.report.data import RunData, rejection_counts
from klimb.report.text import format_number, message, reason

FIRST = 8
"""Steps of a reason that are shown at once."""
MORE = 192
"""Further ones, that are unfolded."""
MAX_FOLDED = 800
"""Of all reasons together: the page of a damaged run stays small."""
TRIED_KL, TRIED_GAIN = "tried_kl", "tried_gain"
"""Metrics of rules with a line search: what the last try would have done, whether it was taken or not."""
DECIDING = ("greedy_gain", "held_out_log_likelihood", "waited")
"""Metrics of rules without a line search that find no improvement."""
MEANINGS = {
    "KL_TOO_LARGE": "The step would have changed the policy more than the limit on the KL divergence allows, and so "
    "did every shorter step that was tried. Only the batch is lost. Many in a row mean that the quadratic model of the "
    "KL, which gives the length of the step, is wrong.",
    "NO_IMPROVEMENT": "On this batch the surrogate, which estimates the gain, would not have risen. Near the end of a "
    "training this is normal.",
    "NONFINITE": "A number was NaN or infinite, so that the step can't be judged. A single one may be a fault of the "
    "environment; many mean that the training has diverged.",
    "CG_BREAKDOWN": "The direction of the step could not be computed: along some direction the KL does not change, as "
    "far as the batch shows.",
}
"""What a reason means for the training; `Status.message` has its cause and remedy."""


def rejected_html(run: RunData) -> str:
    """A part per reason, the most frequent first, with its count and its first steps; and faults of environments.

    run: of the report.
    """
    counts = rejection_counts(run)
    faults = _excluded_html(run)
    if not counts:
        return f'{faults}<p class="quiet">No step was rejected.</p>'
    parts, left = [], MAX_FOLDED
    for color, (name, count) in enumerate(counts):
        steps = np.argwhere(run.rejected & (run.status == name))[: FIRST + min(MORE, left)]
        left -= max(0, len(steps) - FIRST)
        parts.append(_reason_html(run, name, count, steps, color % 4))
    return f'{faults}<ul class="reasons">{"".join(parts)}</ul>'


def _reason_html(run: RunData, name: str, count: int, steps: np.ndarray, color: int) -> str:
    """One reason. name: of the status. count: of its steps. steps: (row, column) of those that are listed."""
    cause, _, remedy = message(name).partition(": ")
    sentences = [f"{cause[:1].upper()}{cause[1:]}.", MEANINGS.get(name, "")] if cause else []
    advice = f"<p><i>Cause and remedy:</i> {escape(remedy)}.</p>" if remedy else ""
    meaning = f"<p>{escape(' '.join(sentences).strip())}</p>" if sentences else ""
    first, rest = steps[:FIRST], steps[FIRST:]
    more = count - len(first)
    listed = f"the next {len(rest):,} of {more:,}" if more > len(rest) else f"{more:,} more"
    folded = (
        f'<details data-key="{escape(name)}"><summary>{listed}</summary>{_table(run, name, rest)}</details>'
        if len(rest)
        else ""
    )
    return (
        f'<li class="bad{color}"><h3><b>{count:,}</b> {escape(reason(name))}</h3>{meaning}{advice}'
        f"{_table(run, name, first)}{folded}</li>"
    )


def _table(run: RunData, name: str, steps: np.ndarray) -> str:
    several = run.num_seeds > 1
    rows = "".join(
        f"<tr><td>{run.iteration[i]:,}</td>{f'<td>{run.seeds[s]}</td>' if several else ''}"
        f"<td>{round(run.env_steps[i]):,}</td><td>{escape(deciding_numbers(run, name, i, s))}</td></tr>"
        for i, s in steps.tolist()
    )
    head = f"<th>Iteration</th>{'<th>Seed</th>' if several else ''}<th>Steps</th><th>Numbers that decided</th>"
    return (
        '<div class="scroll" tabindex="0">'
        f'<table class="rejected"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def deciding_numbers(run: RunData, name: str, row: int, column: int) -> str:
    """The numbers that a step was rejected for, as far as they were recorded.

    run: of the report. name: of the status. row, column: of the step in the run's columns.
    """

    def value(metric: str) -> float:
        return _value(run, metric, row, column)

    tried = value("backtracks") + 1
    tries = f"after {tried:,.0f} tries" if tried > 1 else "at the first try" if tried == 1 else ""
    match name:
        case "KL_TOO_LARGE":
            limit = value("max_kl") if np.isfinite(value("max_kl")) else run.traits.kl.limit
            kl, above = value(TRIED_KL), "" if limit is None else f"limit {format_number(limit)} nats"
            last = f"KL {format_number(kl)} nats" if np.isfinite(kl) else ""
            parts = [last, above, tries]
        case "NO_IMPROVEMENT":
            gain, share = value(TRIED_GAIN), run.config["rule"].get("min_gain_share")
            needed = f"more than 0 and {share:.0%} of the predicted gain" if share else "more than 0"
            parts = [f"surrogate gain {format_number(gain)}, needed: {needed}" if np.isfinite(gain) else ""]
            parts += [_named(run, metric, row, column) for metric in DECIDING] + [tries]
        case "CG_BREAKDOWN":
            steps, damping = value("cg_iterations"), run.config["rule"].get("damping")
            parts = [
                f"after {steps:,.0f} steps of conjugate gradient" if np.isfinite(steps) else "",
                f"residual {format_number(value('cg_residual'))}" if np.isfinite(value("cg_residual")) else "",
                f"damping {format_number(damping)}" if isinstance(damping, int | float) else "",
            ]
        case "NONFINITE":
            names = _not_finite(run, row, column)
            parts = [f"not finite: {', '.join(names)}" if names else "no metric of the record: the step itself"]
        case _:
            parts = []
    return ", ".join(filter(None, parts)) or "not recorded"


def _named(run: RunData, name: str, row: int, column: int) -> str:
    """A metric with its title; empty where it has no number."""
    value = _value(run, name, row, column)
    return f"{run.metric(name)[0].lower()} {format_number(value)}" if np.isfinite(value) else ""


_SOMETIMES_MISSING = ("episode_return", "episode_length", "realised_improvement", "realised_improvement_se")
MAX_NAMES = 6


def _not_finite(run: RunData, row: int, column: int) -> list[str]:
    """Titles of the metrics that have no finite number in a record, and have had one before."""
    names = [
        run.metric(name)[0]
        for name, values in run.columns.items()
        if not np.isfinite(_value(run, name, row, column))
        and np.isfinite(values[:row]).any()
        and name not in _SOMETIMES_MISSING
        and not name.startswith("eval_")
    ]
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return names[:MAX_NAMES] + more


def _value(run: RunData, name: str, row: int, column: int) -> float:
    """A metric of one step; NaN where there is none."""
    if not run.has(name):
        return float("nan")
    values = run.columns[name]
    return float(values[row, column if values.shape[1] > 1 else 0])


def _excluded_html(run: RunData) -> str:
    """Rows that were left out of the training: those of faults, and those of late workers."""
    faults = "Environments were restarted {} times after a fault, first in iteration {}; the affected rows"
    late = "Late workers (straggler_timeout) did not make {} steps, first in iteration {}; their rows"
    return _count(run, "env_faults", faults) + _count(run, "late_rows", late)


def _count(run: RunData, metric: str, words: str) -> str:
    """A sentence with the sum of a metric, and the iteration in which it begins; empty where there is nothing."""
    if not run.has(metric):
        return ""
    counts = np.nansum(run.columns[metric], axis=1)
    if not counts.any():
        return ""
    first = run.iteration[np.flatnonzero(counts)[0]]
    return f"<p>{words.format(f'{int(counts.sum()):,}', f'{first:,}')} are excluded from the training.</p>"
