"""klimb tune RULE ENV --over FIELD:LOW:HIGH...: a search for good values of options."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from klimb.cli import compilation_cache
from klimb.cli.list import rule_lines
from klimb.cli.parser import Command
from klimb.cli.session import Output, announce, announce_preset, reporting_failure
from klimb.cli.sweep import typed_value
from klimb.cli.train import TrainArguments, configuration, directory_name, naming, with_rule_of
from klimb.console import print_line, training_console
from klimb.errors import ConfigError, KlimbError
from klimb.report.page import write_report
from klimb.report.text import format_number
from klimb.report.tuning_page import values_in_words, write_tuning_report
from klimb.runs.config import RunConfig
from klimb.runs.directory import BEST, NewName
from klimb.runs.search_space import search_space
from klimb.runs.tune_file import TUNE, Trial, Tuning, read_tuning
from klimb.training import devices, peers
from klimb.training.tune import AT_ONCE, TRIALS_BY_DEFAULT, Search

HOW = "--over max_kl:log:1e-3:1e-1, or --over hidden 64,64 128,128"


class Searched(NamedTuple):
    """Fields as they are typed, each with its range; or one field and the values to choose from."""

    ranges: tuple[tuple[str, str], ...]
    values: tuple[str, ...]


def _searched(words: list[str]) -> Searched:
    first, *rest = words or [""]
    if ":" not in first:
        if not first or len(rest) < 2:
            raise ValueError(f"it takes a field and its range, or a field and its values: {HOW}")
        return Searched(((first.replace("-", "_"), ""),), tuple(rest))
    pairs = [word.partition(":") for word in words]
    for name, colon, _ in pairs:
        if not colon or not name:
            raise ValueError(f"{name!r} stands among ranges and is none: {HOW}")
    return Searched(tuple((name.replace("-", "_"), text) for name, _, text in pairs), ())


Over = Annotated[
    Searched,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD:LOW:HIGH | FIELD VALUE...",
        instance_from_str=_searched,
        is_instance=lambda value: isinstance(value, Searched),
        str_from_instance=lambda over: [":".join(pair).rstrip(":") for pair in over.ranges] + list(over.values),
    ),
]


@dataclass(frozen=True, kw_only=True)
class TuneArguments(TrainArguments):
    """What is typed after `klimb tune`."""

    over: Annotated[tuple[Over, ...], UseAppendAction] = ()
    """An option of the training or the rule, and its range: FIELD:LOW:HIGH, with log: before LOW for numbers spread
    over the logarithm, int: or log-int: for whole numbers; or FIELD VALUE... for a choice. Repeat it for more."""
    trials: int = TRIALS_BY_DEFAULT
    """Number of combinations of values to try."""
    trials_at_once: int = AT_ONCE
    """Number of trials that are proposed and trained together."""
    prune: bool = False
    """Evaluate trials after 25 % and 50 % of their training, and end those below the median of all that were."""


def tune(arguments: TuneArguments) -> None:
    """Search, with an evaluation and a report of every trial, and a report of the search.

    arguments: with the rule.
    """
    if not arguments.over:
        raise ConfigError(f"klimb tune needs what to search over: {HOW}")
    peers.require_alone("a search", distributed=arguments.run.distributed)
    config, named_in = configuration(arguments)
    preset, flags = arguments.applied, arguments.run
    with naming(preset):
        over = search_space(config, _over(config, arguments.over))
        title = None if preset is None else preset.title
        tuning = Tuning(config, over, arguments.trials, arguments.trials_at_once, arguments.prune, title)
    devices.use_all_cores()
    console = arguments.output.console()
    environment = announce(config, named_in, console, trust=flags.trust_environment)
    announce_preset(preset, config, console, varied=over)
    compilation_cache.enable()
    search = Search.start(
        tuning,
        environment,
        flags.run_dir or NewName(Path("runs"), f"tune-{directory_name(config)}"),
        new_view=partial(arguments.output.view, console),
        notify=partial(print_line, console),
        ray=flags.ray,
    )
    _finish(search)


def _over(config: RunConfig, given: tuple[Searched, ...]) -> dict[str, Any]:
    """What is searched, by field: the text of a range, or a list of values."""
    over: dict[str, Any] = {}
    for one in given:
        for name, text in one.ranges:
            if name in over:
                raise ConfigError(f"--over {name} is given twice: a field has one range, or one list of values")
            over[name] = [typed_value(config, name, word) for word in one.values] if one.values else text
    return over


def resume_search(
    directory: Path, output: Output, *, trust: bool, ray: str | None = None, trials: int | None = None
) -> None:
    """Go on with a search to its last trial.

    directory: of the search. output: how much is printed. trust: whether modules that its files name may be imported.
    ray: a cluster, or None. trials: how many to make altogether; None for as many as it has.
    """
    tuning = read_tuning(directory, trust=trust)
    devices.use_all_cores()
    console = output.console()
    environment = announce(tuning.config, directory / TUNE, console, trust=trust)
    compilation_cache.enable()
    new_view, notify = partial(output.view, console), partial(print_line, console)
    search = Search(tuning, environment, directory, new_view, notify, ray, trust)
    if trials is not None:
        search.change_trials(trials)
    _finish(search)


def _finish(search: Search) -> None:
    """Make what is left of a search, print each trial, and write the reports."""
    console = training_console()
    try:
        with reporting_failure():
            for trial in search.run():
                # A trial that failed at once has nothing to report.
                with contextlib.suppress(*([KlimbError] if trial.state == "failed" else [])):
                    write_report(search.directory / trial.name)
                print_line(console, f"{trial.name:<12} {_outcome(trial)}: {values_in_words(trial.values)}")
    except BaseException:
        # Of a search that is stopped, too: without a trial there is nothing to report.
        with contextlib.suppress(KlimbError):
            write_tuning_report(search.directory)
        raise
    best, page = search.result.best, write_tuning_report(search.directory)
    print_line(console, f"best         {best.name}, {_outcome(best)}: {values_in_words(best.values)}")
    print_line(console, f"report       {page}")
    flag = " --trust-environment" if search.names_modules else ""
    print_line(console, f"again        klimb evaluate {shlex.quote(str(search.directory / BEST))}{flag}")


def _outcome(trial: Trial) -> str:
    """What has come of a trial, in a few words."""
    match trial.state:
        case "complete" if trial.score is not None:
            return f"mean return {format_number(trial.score)}"
        case "pruned" if trial.rungs:
            percent, score = trial.rungs[-1]
            return f"pruned after {percent} % with {format_number(score)}"
    return trial.state


COMMAND = Command(
    "tune",
    TuneArguments,
    tune,
    arguments_for=lambda words: with_rule_of(words, TuneArguments, "tune"),
    description_without=lambda: "rules:\n" + "\n".join(rule_lines()),
)
