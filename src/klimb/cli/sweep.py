"""klimb sweep RULE ENV --over FIELD V...: a run for every combination of values."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from klimb.cli import compilation_cache
from klimb.cli.flags import plain_types
from klimb.cli.list import rule_lines
from klimb.cli.parser import Command
from klimb.cli.session import Output, announce, announce_end, announce_preset, reporting_failure
from klimb.cli.train import TrainArguments, configuration, directory_name, naming, with_rule_of
from klimb.console import print_line, training_console
from klimb.errors import ConfigError
from klimb.files import is_file
from klimb.report.html import FILE_NAME
from klimb.report.page import write_report
from klimb.runs.changes import OPTIONS
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.directory import NewName, RunDirectory
from klimb.runs.sweep_file import SWEEP, Sweep, read_sweep
from klimb.tracking.trackers import Trackers
from klimb.training import devices, peers
from klimb.training.final_evaluation import evaluate_run
from klimb.training.networks import load_policies
from klimb.training.sweep import go_on_with_sweep, start_sweep
from klimb.training.sweep_trainer import Trained


class Values(NamedTuple):
    """A field of the training or of the rule, and the values that it is given, as they are typed."""

    field: str
    values: tuple[str, ...]


def _values(words: list[str]) -> Values:
    if len(words) < 2:
        raise ValueError("it takes a field and its values, for example --over max_kl 0.003 0.01 0.03")
    name, *values = words
    return Values(name.replace("-", "_"), tuple(values))


Over = Annotated[
    Values,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD VALUE...",
        instance_from_str=_values,
        is_instance=lambda value: isinstance(value, Values),
        str_from_instance=lambda over: [over.field, *over.values],
    ),
]


@dataclass(frozen=True, kw_only=True)
class SweepArguments(TrainArguments):
    """What is typed after `klimb sweep`."""

    over: Annotated[tuple[Over, ...], UseAppendAction] = ()
    """An option of the training or the rule, and its values; repeat it for all combinations of several options."""


def sweep(arguments: SweepArguments) -> None:
    """Train every combination of values, evaluate each, and write their reports.

    arguments: with the rule.
    """
    if not arguments.over:
        raise ConfigError("klimb sweep needs what to sweep over: --over max_kl 0.003 0.01 0.03")
    peers.require_alone("a sweep", distributed=arguments.run.distributed)
    config, named_in = configuration(arguments)
    over: dict[str, list[Any]] = {}
    for name, words in arguments.over:
        if name in over:
            raise ConfigError(f"--over {name} is given twice: name all of its values together")
        over[name] = [typed_value(config, name, word) for word in words]
    preset, flags = arguments.applied, arguments.run
    plan = Sweep(config, over, None if preset is None else preset.title)
    with naming(preset):
        plan.members()
    devices.use_all_cores()
    output = arguments.output
    console = output.console()
    environment = announce(config, named_in, console, trust=flags.trust_environment)
    announce_preset(preset, config, console, varied=over)
    compilation_cache.enable()
    place = flags.run_dir or NewName(Path("runs"), f"sweep-{directory_name(config)}")
    with Trackers() as trackers:
        parts = start_sweep(
            plan,
            environment,
            run_dir=place,
            new_view=partial(output.view, console),
            notify=partial(print_line, console),
            ray=flags.ray,
            trackers=trackers,
        )
        trained = _finish_each(parts, environment, output, trackers)
    assert trained, "every combination is trained, or an error is raised"
    _print_end(trained[0].parent, len(trained))


def resume_all(directory: Path, output: Output, *, trust: bool, ray: str | None = None) -> None:
    """Go on with everything that is unfinished in a sweep, evaluate it, and write its reports.

    directory: of the sweep. output: how much is printed. trust: whether modules that its files name may be imported.
    ray: a cluster, or None.
    """
    plan = read_sweep(directory, trust=trust)
    devices.use_all_cores()
    console = output.console()
    environment = announce(plan.config, directory / SWEEP, console, trust=trust)
    compilation_cache.enable()
    with Trackers() as trackers:
        parts = go_on_with_sweep(
            plan,
            environment,
            directory,
            new_view=partial(output.view, console),
            notify=partial(print_line, console),
            trust=trust,
            ray=ray,
            trackers=trackers,
        )
        trained = _finish_each(parts, environment, output, trackers)
        names = {path.name for path in trained}
        # A sweep may have been stopped between a run's training and its report.
        for member in plan.members():
            path = directory / member.name
            if member.name not in names and not is_file(path / FILE_NAME):
                config = RunDirectory.open(path).config
                _finish(path, load_policies(path, config, environment), config, environment, output, trackers)
    _print_end(directory, len(trained))


def _finish_each(parts: Iterator[Trained], environment: Any, output: Output, trackers: Trackers) -> list[Path]:
    """Train one program after the other, and finish its runs: their directories."""
    directories: list[Path] = []
    with reporting_failure():
        for trained in parts:
            announce_end(next(iter(trained.values())), output.console())
            for run in trained.values():
                assert run.directory is not None
                directories.append(run.directory)
                _finish(run.directory, run.policies, run.config, environment, output, trackers)
    return directories


def _finish(
    path: Path, policies: list[Any], config: RunConfig, environment: Any, output: Output, trackers: Trackers
) -> None:
    """Evaluate a run of a sweep, write its report, log both, and print its outcome in one line."""
    view = output.view(output.console())
    result = evaluate_run(path, policies, config, environment, config.options.eval_episodes, view)
    write_report(path)
    trackers.complete(path)
    outcome = "" if result is None else f"mean return {result['mean']:.2f} over {result['episodes']} episodes per seed"
    print_line(training_console(), f"{path.name:<24} {outcome}")


def _print_end(directory: Path, trained: int) -> None:
    if trained == 0:
        print_line(training_console(), "finished     every run of the sweep had been trained already")
    print_line(training_console(), f"compare      klimb compare {shlex.quote(str(directory))}")


def typed_value(config: RunConfig, name: str, word: str) -> Any:
    """A value of a field as it is typed: sizes have commas between them, and whole numbers may have an exponent.

    config: of the runs, whose options and rule have the fields. name: of the field. word: the value.
    """
    try:
        hints = typing.get_type_hints(TrainOptions if name in OPTIONS else type(config.rule), include_extras=True)
    except (NameError, TypeError):  # of a rule of the user's own
        return word
    kinds = plain_types(hints[name]) if name in hints else []
    if word == "none":
        return None
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return word.split(",")
    for kind in (float, int):
        if kind in kinds:
            try:
                number = float(word)
            except ValueError:
                return word
            return int(number) if kind is int and number.is_integer() else number
    return word


COMMAND = Command(
    "sweep",
    SweepArguments,
    sweep,
    arguments_for=lambda words: with_rule_of(words, SweepArguments, "sweep"),
    description_without=lambda: "rules:\n" + "\n".join(rule_lines()),
)
