"""The page of a run: headings, numbers and tables, escaped; the charts are data for `assets/charts.js`."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from klimb.files import as_path
from klimb.filming.card import card_data, card_html, script
from klimb.filming.clip import Clip
from klimb.report.averages import bucket_mean
from klimb.report.certificate_charts import certificate_charts
from klimb.report.charts import (
    evaluation_chart,
    evaluation_curve,
    health_charts,
    likelihood_chart,
    own_charts,
    return_chart,
)
from klimb.report.configuration import configuration_html
from klimb.report.data import Evaluation, RunData, Spec, read_run, rejection_counts
from klimb.report.html import embed, fill, sections_html, tiles_html, without_readouts, write_page
from klimb.report.idle_seeds import idle_seeds
from klimb.report.provenance import provenance_html
from klimb.report.statistics import FEW_SEEDS, from_few_seeds
from klimb.report.text import duration, format_number, message, reason, si, with_error

MAX_ROWS = 200


def write_report(run_dir: Path, output: Path | None = None, clip: Clip | None = None) -> Path:
    """Write the report of a run. Returns the path of the page.

    run_dir: directory of the run. output: the file to write; `run_dir/report.html` by default. clip: an episode of its
    policy (`klimb.film`), which the page shows; None for none.
    Raises RunError when the run has no record of an iteration yet or a file can't be read or written, ConfigError when
    its configuration is wrong.
    """
    run_dir = as_path(run_dir)
    return write_page(render(read_run(run_dir), clip), run_dir, output)


def render(run: RunData, clip: Clip | None = None) -> str:
    """The whole page as HTML. run: its data. clip: an episode that it shows; None for none."""
    played = None if clip is None else card_data(clip)
    parts = _sections(run)
    charts = [chart for part in parts for chart in part["charts"]]
    data = {
        "steps": _exact(
            bucket_mean((run.iteration.astype(float) if run.offline else run.env_steps)[:, None], run.edges)[:, 0]
        ),
        "unit": ["passes over the demonstrations", "passes"] if run.offline else ["environment steps", "steps"],
        "first": run.iteration[run.edges[:-1]].tolist(),
        "last": run.iteration[run.edges[1:] - 1].tolist(),
        "charts": without_readouts(charts),
    }
    title = f"{run.rule_title} on {run.config['env']}"
    return fill(
        "page.html",
        data,
        player="" if played is None else script(),
        clip="" if clip is None or played is None else card_html(clip, played) + card_json(played),
        title=escape(title),
        rule=escape(run.rule_title),
        env=escape(run.config["env"]),
        name=escape(run.name),
        headline=tiles_html(_headline(run)),
        sections=sections_html(parts),
        rejected=_rejected_html(run),
        configuration=configuration_html(run),
        foot=provenance_html(run.provenance),
    )


def _exact(values: np.ndarray) -> list[int]:
    return [round(value) for value in values.tolist()]


def card_json(played: Spec) -> str:
    """The data of a film for the script that plays it. played: of `card_data`."""
    return f'<script type="application/json" id="clip-data">{embed(played)}</script>'


def _sections(run: RunData) -> list[Spec]:
    """The page's charts in order, under headings."""
    return [
        {
            "title": "Learning",
            "lead": f"{idle_seeds(run)} {_how_ended(run)} {_how_averaged(run)}",
            "charts": [
                likelihood_chart(run) if run.offline else return_chart(run),
                *evaluation_curve(run),
                *evaluation_chart(run),
            ],
        },
        {
            "title": "Step certificate",
            "lead": "The step certificate of a policy update consists of the improvement that was predicted, the "
            "improvement that was measured on the next batch, the distance between the old and the new policy (KL, "
            "total variation), and the bounds that follow from it.",
            "charts": certificate_charts(run),
        },
        {"title": "Policy and critic", "lead": "", "charts": health_charts(run)},
        {
            "title": "More measurements",
            "lead": "The rule’s own metrics, and metrics of the episodes.",
            "small": True,
            "charts": own_charts(run),
        },
    ]


def _how_ended(run: RunData) -> str:
    """What ended the training, if it would have gone on."""
    if run.ending is None or not run.ending.early:
        return ""
    return f"The training ended early, after iteration {run.ending.iteration:,}: {run.ending.message}."


def _how_averaged(run: RunData) -> str:
    """What lines and bands stand for, in all charts of the page."""
    sentences = []
    if run.num_seeds > 1:
        sentences.append(
            f"Lines are interquartile means of {run.num_seeds} seeds; "
            "the darker band covers the middle half of the seeds, the lighter band all of them."
        )
        if from_few_seeds(run.num_seeds):
            sentences.append(
                f"{run.num_seeds} seeds are few: bands and errors from fewer than {FEW_SEEDS} say little about further "
                "seeds."
            )
    per_point = len(run.iteration) / (len(run.edges) - 1)
    if per_point > 1:
        band = "" if run.num_seeds > 1 else "; the band spans them"
        sentences.append(f"Each point is the mean of about {format_number(per_point, 2)} iterations{band}.")
    return " ".join(sentences)


def _headline(run: RunData) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the numbers at the top."""
    tiles = []
    count = len(run.iteration)
    if run.evaluation is not None:
        value = with_error(run.evaluation.mean, run.evaluation.standard_error)
        actions = "deterministic" if run.evaluation.deterministic else "sampled actions"
        tiles.append((f"Final evaluation, {actions}", value, _evaluation_detail(run.evaluation)))
    returns = run.centre("episode_return")
    ended = np.flatnonzero(np.isfinite(returns))
    if len(ended):
        best = ended[np.argmax(returns[ended])]
        average = "sampled actions, " + ("IQM of seeds, " if run.num_seeds > 1 else "")
        tiles.append(("Best mean return", format_number(returns[best]), f"{average}at {si(run.env_steps[best])} steps"))
        tiles.append(
            ("Last mean return", format_number(returns[ended[-1]]), f"{average}iteration {run.iteration[ended[-1]]:,}")
        )
    tiles += _best_evaluation(run)
    per_seed = "per seed, " if run.num_seeds > 1 else ""
    iterations = f"{per_seed}{count:,} iteration{'' if count == 1 else 's'}"
    if run.offline:
        tiles.append(("Passes", f"{count:,}", f"{per_seed}over the demonstrations"))
    else:
        tiles.append(("Environment steps", si(run.env_steps[-1]), iterations))
    if run.has("wall_time"):
        tiles.append(("Wall time", duration(np.nanmax(run.columns["wall_time"])), "compilation included"))
    if run.has("steps_per_second"):
        speed = np.nanmedian(run.columns["steps_per_second"])
        tiles.append(
            (
                "Samples per second" if run.offline else "Steps per second",
                si(speed),
                "median" + (", all seeds" if run.num_seeds > 1 else ""),
            )
        )
    seeds = f"{run.seeds[0]} to {run.seeds[-1]}" if run.num_seeds > 1 else f"number {run.seeds[0]}"
    tiles.append(("Seeds", str(run.num_seeds), seeds))
    rejected, steps = int(run.rejected.sum()), run.status.size
    share = f"{rejected / steps:.1%} of {steps:,}" if rejected else f"of {steps:,}"
    tiles.append(("Rejected steps", f"{rejected:,}", share))
    return tiles


def _best_evaluation(run: RunData) -> list[tuple[str, str, str]]:
    """The tile of the best evaluation during the training, by the mean over seeds, as `best/` is chosen."""
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


def _evaluation_detail(evaluation: Evaluation) -> str:
    count = len(evaluation.seeds)
    if count == 1:
        return f"± standard error over {evaluation.episodes} episodes"
    few = f" (fewer than {FEW_SEEDS}: unreliable)" if from_few_seeds(count) else ""
    return f"± standard error over {count} seeds{few}, {evaluation.episodes} episodes each"


def _faults_html(run: RunData) -> str:
    if not run.has("env_faults"):
        return ""
    faults = np.nansum(run.columns["env_faults"], axis=1)
    if not faults.any():
        return ""
    first = run.iteration[np.flatnonzero(faults)[0]]
    return (
        f"<p>Environments were restarted {int(faults.sum()):,} times after a fault, first in iteration {first:,}; "
        "the affected rows are excluded from the training.</p>"
    )


def _late_html(run: RunData) -> str:
    if not run.has("late_rows"):
        return ""
    late = np.nansum(run.columns["late_rows"], axis=1)
    if not late.any():
        return ""
    first = run.iteration[np.flatnonzero(late)[0]]
    return (
        f"<p>Late workers did not make {int(late.sum()):,} steps, first in iteration {first:,}; their rows are "
        "excluded from the training (straggler_timeout).</p>"
    )


def _rejected_html(run: RunData) -> str:
    counts = rejection_counts(run)
    faults = _faults_html(run) + _late_html(run)
    if not counts:
        return f'{faults}<p class="quiet">No step was rejected.</p>'
    reasons = "".join(
        f'<li class="bad{i % 4}"><b>{count:,}</b> {escape(reason(name))}<span>{escape(message(name))}</span></li>'
        for i, (name, count) in enumerate(counts)
    )
    rejected = np.argwhere(run.rejected)
    several = run.num_seeds > 1
    rows = "".join(
        f"<tr><td>{run.iteration[i]:,}</td>{f'<td>{run.seeds[s]}</td>' if several else ''}"
        f"<td>{round(run.env_steps[i]):,}</td><td>{escape(reason(run.status[i, s]))}</td>"
        f'<td title="{escape(message(run.status[i, s]))}">{escape(message(run.status[i, s]))}</td></tr>'
        for i, s in rejected[:MAX_ROWS]
    )
    first = f'<p class="quiet">The first {MAX_ROWS} of {len(rejected):,}.</p>' if len(rejected) > MAX_ROWS else ""
    head = (
        f"<th>Iteration</th>{'<th>Seed</th>' if several else ''}<th>Steps</th><th>Reason</th><th>Cause and remedy</th>"
    )
    return (
        f'{faults}<ul class="reasons">{reasons}</ul>{first}<div class="scroll" tabindex="0">'
        f'<table class="rejected"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
