"""klimb sweep RULE ENV --over FIELD V...: one program that trains with every combination of values."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from rich.console import Console
from tyro.conf import UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from klimb.cli import compilation_cache
from klimb.cli.list import rule_lines
from klimb.cli.parser import Command
from klimb.cli.session import announce, announce_end, evaluate_run, reporting_failure
from klimb.cli.train import TrainArguments, configuration, directory_name, with_rule_of
from klimb.errors import ConfigError
from klimb.report.page import write_report
from klimb.runs.directory import unused_directory
from klimb.training import devices
from klimb.training.progress.choice import print_line
from klimb.training.sweep import start_sweep


class Values(NamedTuple):
    """A field of the rule, and the values that it is given."""

    field: str
    values: tuple[float, ...]


def _values(words: list[str]) -> Values:
    if len(words) < 2:
        raise ValueError("it takes a field and its values, for example --over max_kl 0.003 0.01 0.03")
    name, *values = words
    return Values(name.replace("-", "_"), tuple(float(value) for value in values))


Over = Annotated[
    Values,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD VALUE...",
        instance_from_str=_values,
        is_instance=lambda value: isinstance(value, Values),
        str_from_instance=lambda over: [over.field, *map(str, over.values)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class SweepArguments(TrainArguments):
    """What is typed after `klimb sweep`."""

    over: Annotated[tuple[Over, ...], UseAppendAction] = ()
    """A field of the rule and its values; several times for every combination of several fields."""


def sweep(arguments: SweepArguments) -> None:
    """Train every combination of values, evaluate each, and write their reports.

    arguments: with the rule.
    """
    if not arguments.over:
        raise ConfigError("klimb sweep needs what to sweep over: --over max_kl 0.003 0.01 0.03")
    over: dict[str, tuple[float, ...]] = {}
    for name, values in arguments.over:
        if name in over:
            raise ConfigError(f"--over {name} is given twice: name all of its values together")
        over[name] = values
    config, named_in = configuration(arguments)
    flags = arguments.run
    devices.use_all_cores()
    console = arguments.output.console()
    environment = announce(config, named_in, console, trust=flags.trust_environment)
    compilation_cache.enable()
    parent = flags.run_dir or unused_directory(Path("runs"), f"sweep-{directory_name(config)}")
    with reporting_failure(parent), arguments.output.view(console) as view:
        runs = start_sweep(
            config,
            environment,
            over,
            run_dir=parent,
            notify=partial(print_line, console),
            view=view,
        )
    announce_end(runs[0], console)
    results = Console()
    for run in runs:
        assert run.directory is not None
        view = arguments.output.view(console)
        result = evaluate_run(run.directory, run.policies, run.config, environment, config.options.eval_episodes, view)
        write_report(run.directory)
        outcome = (
            "" if result is None else f"mean return {result['mean']:.2f} over {result['episodes']} episodes per seed"
        )
        print_line(results, f"{run.directory.name:<24} {outcome}")
    print_line(results, f"compare      klimb compare {shlex.quote(str(parent))}/*")


COMMAND = Command(
    "sweep",
    SweepArguments,
    sweep,
    arguments_for=lambda words: with_rule_of(words, SweepArguments, "sweep"),
    description_without=lambda: "rules:\n" + "\n".join(rule_lines()),
)
