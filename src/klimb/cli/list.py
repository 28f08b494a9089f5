"""klimb list: rules, environments, figures and metrics, a line each; presets with all that they say."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from klimb.cli.parser import Command
from klimb.environments.registry import BUILT_IN
from klimb.environments.suites.library import SUITES
from klimb.errors import KlimbError
from klimb.improve.rule import traits_of
from klimb.presets.preset import Preset, written
from klimb.presets.shipped import all_presets
from klimb.rules import RULES
from klimb.runs.metrics import METRICS
from klimb.runs.zoo import PREFIX, ZooEntry, zoo
from klimb.terminal import write_line
from klimb.theory.figures.registry import FIGURES
from klimb.types import Metric

Section = Literal["rules", "environments", "presets", "figures", "metrics", "zoo"]

OTHER_ENVIRONMENTS = {
    "gymnasium:ID": "any environment registered with Gymnasium, stepped in Python",
    "SUITE:NAME": f"compiled, SUITE being {', '.join(SUITES)} (pip install 'klimb[SUITE]')",
    "envpool:ID": "stepped in EnvPool's threads (pip install 'klimb[envpool]')",
    "MODULE:NAME": "your own: what makes a klimb environment, or a Gymnasium id that MODULE registers",
}


@dataclass(frozen=True)
class ListArguments:
    """What is typed after `klimb list`."""

    section: Annotated[Section | None, Positional, arg(metavar="SECTION")] = None
    """rules, environments, presets, figures, metrics or zoo; without it rules, environments and figures."""


def list_(arguments: ListArguments) -> None:
    """Print the entries of a section.

    arguments: which section.
    """
    sections = {
        "rules": ("rules (klimb train RULE ENV):", rule_lines),
        "environments": ("environments, compiled and built in:", _environment_lines),
        "presets": (
            "presets (klimb train RULE ENV uses the one for ENV; --preset NAME, --preset none):",
            _preset_lines,
        ),
        "figures": ("figures (klimb figure NAME):", _figure_lines),
        "zoo": ("policies that come with klimb (klimb evaluate zoo:NAME):", _zoo_lines),
        "metrics": ("metrics of every run, followed by those of each rule:", _metric_lines),
    }
    wanted = ("rules", "environments", "figures") if arguments.section is None else (arguments.section,)
    for section in wanted:
        heading, lines = sections[section]
        write_line("\n".join([heading, *lines()]))


def rule_lines() -> list[str]:
    """A line for every rule: its name, and what it does."""
    return _table(rule_summaries())


def rule_summaries() -> dict[str, str]:
    """What every rule does, in one line, by its name."""
    return {name: _first_line(sys.modules[rule.__module__]) for name, rule in RULES.items()}


def _environment_lines() -> list[str]:
    built_in = {name: _environment_summary(name, *place) for name, place in BUILT_IN.items()}
    width = max(map(len, built_in))
    return [*_table(built_in), "others, by prefix:", *_table(OTHER_ENVIRONMENTS, width)]


def _environment_summary(name: str, module: str, maker: str) -> str:
    """The task, as the first line of the module of one environment says it after the name; else what the maker says."""
    made_in = importlib.import_module(module)
    about, separator, task = _first_line(made_in).partition(": ")
    return task if separator and about == name else _first_line(getattr(made_in, maker))


def _preset_lines() -> list[str]:
    return [line for one in all_presets() for line in [f"{one.title}:", *_table(_about(one))]]


def _about(preset: Preset) -> dict[str, str]:
    """Where a preset is used, what it changes, and the training that justifies it."""
    names = [name.partition(":") for name in preset.environments]
    by_prefix = {prefix: [name for other, _, name in names if other == prefix] for prefix, _, _ in names}
    changes = [
        f"{name} {written(value)} (default {written(default)})" for name, (value, default) in preset.settings().items()
    ]
    about = {
        "environments": "; ".join(f"{prefix}: {', '.join(those)}" for prefix, those in by_prefix.items()),
        "changes": ", ".join(changes),
    }
    evidence = preset.evidence
    if evidence is not None:
        seeds = ", ".join(map(str, evidence.seeds))
        about["evidence"] = (
            f"mean return {evidence.mean_return:g} over seeds {seeds} (klimb {evidence.commit}, {evidence.date})"
        )
        about["measured by"] = evidence.command
        if evidence.note is not None:
            about["note"] = evidence.note
    return about


def _figure_lines() -> list[str]:
    return _table({name: entry.title for name, entry in FIGURES.items()})


def _zoo_lines() -> list[str]:
    return _table({f"{PREFIX}{name}": _zoo_summary(entry) for name, entry in zoo().items()})


def _zoo_summary(entry: ZooEntry) -> str:
    mean = sum(entry.seeds) / len(entry.seeds)
    return (
        f"return {entry.mean:.1f} ± {entry.standard_error:.1f} after {entry.env_steps:,} steps, the best of "
        f"{len(entry.seeds)} seeds (their mean: {mean:.1f})"
    )


def _metric_lines() -> list[str]:
    lines = _metric_table(METRICS)
    for name, rule in RULES.items():
        own = {metric: meaning for one in _variants(rule) for metric, meaning in traits_of(one).metrics.items()}
        if own:
            lines += [f"{name}:", *_metric_table(own)]
    return lines


def _metric_table(metrics: Mapping[str, Metric]) -> list[str]:
    return _table({name: f"{metric.title}: {metric.meaning}" for name, metric in metrics.items()}, 24)


def _variants(rule: Any) -> Iterator[Any]:
    """The rule with its defaults, and with every other choice of its options that are choices: metrics may differ."""
    yield rule()
    for name, hint in typing.get_type_hints(rule).items():
        for choice in typing.get_args(hint) if typing.get_origin(hint) is Literal else ():
            try:
                yield dataclasses.replace(rule(), **{name: choice})
            except (KlimbError, ValueError):  # a choice that needs others beside it
                continue


def _table(entries: dict[str, str], width: int = 0) -> list[str]:
    width = max([width, *map(len, entries)])
    return [f"  {name:<{width}}  {text}" for name, text in entries.items()]


def _first_line(value: Any) -> str:
    return (value.__doc__ or "").partition("\n")[0]


COMMAND = Command("list", ListArguments, list_)
