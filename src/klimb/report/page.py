"""The page of a run: headings, numbers and tables, escaped; the charts are data for `assets/charts.js`."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

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
from klimb.report.data import RunData, Spec, read_run
from klimb.report.headline import headline
from klimb.report.html import embed, fill, section_html, sections_html, tiles_html, without_readouts, write_page
from klimb.report.idle_seeds import idle_seeds
from klimb.report.provenance import provenance_html
from klimb.report.recorded import not_compared, recorded_chart
from klimb.report.rejected import rejected_html
from klimb.report.statistics import FEW_SEEDS, from_few_seeds
from klimb.report.text import format_number


def write_report(run_dir: Path, output: Path | None = None, clip: Clip | None = None) -> Path:
    """Write the report of a run. Returns the path of the page.

    run_dir: directory of the run. output: the file to write; `run_dir/report.html` by default. clip: an episode of its
    policy (`klimb.film`), which the page shows; None for none.
    Raises RunError when the run has no record of an iteration yet or a file can't be read or written, ConfigError when
    its configuration is wrong.
    """
    run_dir = as_path(run_dir)
    return write_page(render(read_run(run_dir), clip), run_dir, output)


def render(run: RunData, clip: Clip | None = None, live: Live | None = None) -> str:
    """The whole page as HTML.

    run: its data. clip: an episode that it shows; None for none. live: for a page that is kept up to date; None for a
    page that is a file.
    """
    played = None if clip is None else card_data(clip)
    # In the order of the page: the script fills the n-th card with the n-th chart.
    curve, evaluation, *later = _parts(run)
    data = {
        "steps": _exact(
            bucket_mean((run.iteration.astype(float) if run.offline else run.env_steps)[:, None], run.edges)[:, 0]
        ),
        "unit": ["passes over the demonstrations", "passes"] if run.offline else ["environment steps", "steps"],
        "first": run.iteration[run.edges[:-1]].tolist(),
        "last": run.iteration[run.edges[1:] - 1].tolist(),
        "charts": without_readouts([chart for part in (curve, evaluation, *later) for chart in part["charts"]]),
    }
    return fill(
        "page.html",
        data,
        player=("" if played is None else script()) + ("" if live is None else live.script),
        live=live is not None,
        status="" if live is None else live.html,
        title=escape(f"{run.rule_title} on {run.config['env']}"),
        rule=escape(run.rule_title),
        env=escape(run.config["env"]),
        name=escape(run.name),
        curve=section_html(curve),
        headline=tiles_html(headline(run)),
        evaluation=section_html(evaluation),
        clip="" if clip is None or played is None else card_html(clip, played) + card_json(played),
        certificate=section_html(later[0]),
        sections=sections_html(later[1:]),
        rejected=rejected_html(run),
        configuration=configuration_html(run),
        foot=provenance_html(run.provenance),
    )


class Live(NamedTuple):
    """What a page has besides that is kept up to date. script: that does it. html: says whether it is up to date."""

    script: str
    html: str


def _exact(values: np.ndarray) -> list[int]:
    return [round(value) for value in values.tolist()]


def card_json(played: Spec) -> str:
    """The data of a film for the script that plays it. played: of `card_data`."""
    return f'<script type="application/json" id="clip-data">{embed(played)}</script>'


def _parts(run: RunData) -> list[Spec]:
    """The page's charts in order: the learning curve, the final evaluation, the certificate, and all others."""
    return [
        {
            "title": "Learning curve",
            "lead": f"{idle_seeds(run)} {_how_ended(run)} {_how_averaged(run)}",
            "charts": [likelihood_chart(run) if run.offline else return_chart(run)],
        },
        {"title": "", "lead": "", "charts": evaluation_chart(run)},
        {
            "title": "Step certificate",
            "lead": "The step certificate of a policy update consists of the improvement that was predicted, the "
            "improvement that was measured on the next batch, the distance between the old and the new policy (KL, "
            "total variation), and the bounds that follow from it.",
            "charts": certificate_charts(run),
        },
        {
            "title": "Evaluations and recorded returns",
            "lead": not_compared(run),
            "charts": [*recorded_chart(run), *evaluation_curve(run)],
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
        band = "" if run.num_seeds > 1 else "; the band spans these iterations, because one seed has none over seeds"
        sentences.append(f"Each point is the mean of about {format_number(per_point, 2)} iterations{band}.")
    elif run.num_seeds == 1 and len(run.iteration) > 1:
        sentences.append("There is no band: one seed has none over seeds, and returns of single episodes are not kept.")
    return " ".join(sentences)
