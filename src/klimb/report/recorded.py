"""Where a run's final returns stand among those that klimb has recorded for the same rule, environment and settings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from klimb.environments.registry import canonical_name
from klimb.report.comparison import NOT_THE_ALGORITHM
from klimb.report.data import RunData, Spec
from klimb.report.lines import json_number, json_numbers
from klimb.report.text import format_number, setting
from klimb.runs.config import RunConfig
from klimb.runs.zoo import ROOT, ZooEntry, zoo

DIGITS = 3
"""Decimals of the recorded returns. A run's own are rounded in the same way, so that equal ones are equal."""
MAX_DIFFERENCES = 6


class Recorded(NamedTuple):
    """Recorded returns for a run's rule and environment. folder: of the zoo. differences: of a run to it."""

    entry: ZooEntry
    folder: str
    differences: list[str]


def recorded_results(run: RunData) -> Recorded | None:
    """What klimb has recorded for the rule and the environment of a run; None where it has nothing.

    run: of the report. Raises RunError when a file of the installed zoo is damaged.
    """
    rule, env = run.config["rule"]["name"], canonical_name(run.config["env"])
    for folder, entry in zoo().items():
        if (entry.rule, canonical_name(entry.env)) == (rule, env):
            return Recorded(entry, folder, _differences(run, entry, folder))
    return None


def percentile(value: float, recorded: list[float]) -> float:
    """100 (b + e / 2) / n: b of the n recorded returns are below the value, and e are equal to it.

    value: rounded to `DIGITS` decimals first, as the recorded ones are. recorded: at least one.
    """
    others, own = np.asarray(recorded), round(value, DIGITS)
    return 100 * float(np.sum(others < own) + np.sum(others == own) / 2) / len(others)


def recorded_chart(run: RunData) -> list[Spec]:
    """The recorded returns as a strip, those of the run below it, and the percentiles; none where nothing is recorded.

    run: of the report.
    """
    found = recorded_results(run)
    if found is None or found.differences or run.evaluation is None:
        return []
    entry, seeds = found.entry, [seed for seed in run.evaluation.seeds if math.isfinite(seed.mean)]
    if not seeds:
        return []
    places = [(seed, percentile(seed.mean, entry.seeds)) for seed in seeds]
    named = f"the {len(entry.seeds)} recorded seeds"
    if len(places) == 1:
        [(seed, place)] = places
        mean = format_number(seed.mean)
        said = f"This run’s final return of {mean} is at the {_ordinal(place)} percentile of {named}."
    else:
        said = f"Each of this run’s {len(seeds)} seeds is placed among {named}."
    about = (
        f"{said} They were trained by klimb {entry.klimb} with the same rule, settings and number of environment steps "
        f"({entry.env_steps:,}); a recorded return is the mean of {entry.episodes} episodes, and one of this run of "
        f"{run.evaluation.episodes}, with the most likely action at every step. The percentile is the share of "
        f"recorded seeds with a lower return, plus half the share of those with the same one to {DIGITS} decimals."
    )
    rows = [
        {
            "label": "recorded",
            "mean": json_number(float(np.mean(entry.seeds))),
            "values": json_numbers(np.array(entry.seeds)),
        },
        {
            "label": "this run",
            "mean": json_number(float(np.mean([seed.mean for seed in seeds]))),
            "values": json_numbers(np.array([seed.mean for seed in seeds])),
        },
    ]
    readout = [
        (f"seed {seed.seed}", f"{format_number(seed.mean)}, {_ordinal(place)} percentile") for seed, place in places
    ]
    title = "Compared with recorded seeds"
    return [
        {
            "kind": "strips",
            "title": title,
            "about": about,
            "wide": True,
            "xLabel": "final return",
            "rows": rows,
            "readout": readout if len(places) > 1 else [],
        }
    ]


def not_compared(run: RunData) -> str:
    """Why a run is not compared with recorded returns; empty where it is, or where klimb has none.

    run: of the report.
    """
    found = recorded_results(run)
    if found is None or not found.differences:
        return ""
    few, more = found.differences[:MAX_DIFFERENCES], len(found.differences) - MAX_DIFFERENCES
    listed = "; ".join(few) + (f"; and {more} more" if more > 0 else "")
    return (
        f"klimb has recorded final returns of {len(found.entry.seeds)} seeds for this rule and environment "
        f"(zoo:{found.folder}). They are not compared with this run, because it differs: {listed}."
    )


def _differences(run: RunData, entry: ZooEntry, folder: str) -> list[str]:
    """In what a run differs from the recorded trainings, in words."""
    other = RunConfig.read(ROOT / folder / "config.toml").to_dict()
    found = []
    for own, recorded in ((run.config["rule"], other["rule"]), (run.config["options"], other["options"])):
        for name in dict.fromkeys([*own, *recorded]):
            if name not in NOT_THE_ALGORITHM and _listed(own.get(name)) != _listed(recorded.get(name)):
                found.append(f"{name} is {setting(name, own.get(name))} instead of {setting(name, recorded.get(name))}")
    if run.config["options"]["env_steps"] == entry.env_steps > run.env_steps[-1]:
        found.append(f"it has made {run.env_steps[-1]:,.0f} of {entry.env_steps:,} environment steps")
    if any(one.changes for one in run.provenance):
        found.append("settings were changed when it was resumed")
    if run.evaluation is None:
        found.append("it has no final evaluation")
    elif not run.evaluation.deterministic:
        found.append("its final evaluation samples actions")
    return found


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _ordinal(place: float) -> str:
    """60 → 60th; 52.5 → 52.5th."""
    whole = round(place, 1)
    text = f"{whole:g}"
    ending = (
        "th"
        if "." in text or int(whole) % 100 in (11, 12, 13)
        else {1: "st", 2: "nd", 3: "rd"}.get(int(whole) % 10, "th")
    )
    return f"{text}{ending}"
