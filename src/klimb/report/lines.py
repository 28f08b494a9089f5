"""Specifications of line charts: lines, the bands around them, the chart that holds them, and numbers for JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from klimb.report.averages import Column, bucket_mean, bucket_range, quantile
from klimb.report.data import RunData, Spec
from klimb.report.statistics import interquartile_mean
from klimb.report.text import sentence


def line_chart(title: str, about: str, layers: list[Spec], **options: Any) -> Spec:
    """A chart of lines, bands and marks.

    title: heading. about: what is drawn, in a sentence. layers: in the order in which they are drawn. options: as
    `assets/charts.js` reads them.
    """
    return {"kind": "lines", "title": title, "about": about, "layers": layers, **options}


def metric_chart(run: RunData, name: str, note: str = "", **options: Any) -> list[Spec]:
    """The chart of one metric, under its title and meaning; none when the run does not have it.

    run: whose metric. name: of the metric. note: a sentence about the chart to add. options: as for `line_chart`.
    """
    if not run.has(name):
        return []
    title, meaning = run.metric(name)
    about = f"{sentence(meaning)} {note}".strip()
    return [line_chart(title, about, line_with_spread(run, run.columns[name], title.lower()), **options)]


def line_with_spread(run: RunData, values: Column, label: str, color: int = 1, **style: Any) -> list[Spec]:
    """A line with its bands: over seeds, or else over the iterations that are averaged into one point.

    run: whose metric. values: per iteration and seed. label: in the legend. color: number of a colour of the page.
    style: options of the line.
    """
    line = mean_line(run, values, label, color, **style)
    if values.shape[1] > 1:
        means = bucket_mean(values, run.edges)
        bounds = [quantile(means, q) for q in (0.0, 0.25, 0.75, 1.0)]
        return [
            _band("lowest to highest seed", color, bounds[0], bounds[3], 0.12),
            _band("middle half of seeds", color, bounds[1], bounds[2], 0.24),
            line,
        ]
    if len(run.edges) - 1 < len(run.iteration):
        return [_band("range within a point", color, *bucket_range(values, run.edges), 0.18), line]
    return [line]


def line_with_error(run: RunData, name: str, error: str, label: str, color: int = 1, **style: Any) -> list[Spec]:
    """A metric's line with bands: over seeds, or for one seed its standard error on both sides.

    run: whose metric. name: of the metric. error: name of its standard error. label, color, style: as for
    `line_with_spread`.
    """
    values = run.columns[name]
    if values.shape[1] > 1 or not run.has(error):
        return line_with_spread(run, values, label, color, **style)
    errors = run.columns[error]
    low, high = (bucket_mean(values + sign * errors, run.edges)[:, 0] for sign in (-1, 1))
    return [_band("± standard error", color, low, high, 0.18), mean_line(run, values, label, color, **style)]


def mean_line(run: RunData, values: Column, label: str, color: int, **style: Any) -> Spec:
    """A line: the interquartile mean over seeds, of means over buckets of iterations.

    run, values, label, color, style: as for `line_with_spread`.
    """
    mean = interquartile_mean(bucket_mean(values, run.edges))
    return {"type": "line", "label": label, "color": color, "values": json_numbers(mean), **style}


def _band(label: str, color: int, low: np.ndarray, high: np.ndarray, strength: float) -> Spec:
    return {
        "type": "band",
        "label": label,
        "color": color,
        "low": json_numbers(low),
        "high": json_numbers(high),
        "strength": strength,
    }


def json_numbers(values: np.ndarray) -> list[int | float | None]:
    """Values for JSON: five significant digits, null where a value is not finite."""
    return [json_number(value) if math.isfinite(value) else None for value in values.tolist()]


def json_number(value: int | float) -> int | float:
    """A finite number for JSON, rounded to five significant digits, as an integer if it is one."""
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded
