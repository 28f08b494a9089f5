"""klimb resume RUN: on from the newest checkpoint, with other settings where they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Suppress, arg

from klimb.cli import compilation_cache
from klimb.cli.flags import flags_of
from klimb.cli.parser import Command, RunWord, leading
from klimb.cli.session import Output, announce, announce_end, finish, reporting_failure, start_jax
from klimb.cli.sweep import resume_all
from klimb.cli.tune import resume_search
from klimb.console import print_line
from klimb.errors import ConfigError, KlimbError, one_line
from klimb.files import is_file
from klimb.rules import UnknownRule
from klimb.runs.changes import OPTIONS, changes_between
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.directory import RunDirectory
from klimb.runs.sweep_file import is_sweep
from klimb.runs.tune_file import is_search
from klimb.tracking.trackers import Trackers
from klimb.training import driver, peers


@dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """What is typed after `klimb resume`. `rule` has the fields of the run's rule, when it is known which one."""

    run: RunWord
    """Run directory, or the directory of a sweep or a search, all of whose unfinished runs are continued."""
    trust_environment: bool = False
    """Allow the run's config.toml to name a rule, an environment or a network to import: this runs its code."""
    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """A Ray cluster that steps the environments, or trains the runs of a sweep: auto, local or HOST:PORT."""
    distributed: bool = False
    """Go on in several processes, of SLURM, MPI or Kubernetes, together; the first one writes (docs/scaling.md)."""
    trials: int | None = None
    """Of a search: how many trials to make altogether, instead of the number that it has."""
    output: Annotated[Output, OmitArgPrefixes] = field(default_factory=Output)
    training: Annotated[TrainOptions, OmitArgPrefixes] = field(default_factory=TrainOptions)
    """Settings to change; those that are not given stay as they are in the run."""
    rule: Suppress[Any] = None


def resume(arguments: ResumeArguments) -> None:
    """Continue a run to the end that its configuration says, evaluate it, and write its report again.

    arguments: which run, and which settings change.
    """
    run_dir, trust = arguments.run, arguments.trust_environment
    if is_sweep(run_dir):
        peers.require_alone("a sweep", distributed=arguments.distributed)
        resume_all(run_dir, arguments.output, trust=trust, ray=arguments.ray)
        return
    if is_search(run_dir):
        peers.require_alone("a search", distributed=arguments.distributed)
        resume_search(run_dir, arguments.output, trust=trust, ray=arguments.ray, trials=arguments.trials)
        return
    if arguments.trials is not None:
        raise ConfigError(f"trials = {arguments.trials}, but {one_line(run_dir)} is no search: leave --trials out")
    config_file = run_dir / "config.toml"
    recorded = RunDirectory.open(run_dir).config.require_modules(config_file, trust=trust)
    config = RunConfig(recorded.env, recorded.rule if arguments.rule is None else arguments.rule, arguments.training)
    names = [change.name for change in changes_between(recorded, config) if change.name in OPTIONS]
    start_jax(distributed=arguments.distributed)
    console = arguments.output.console()
    environment = announce(config, config_file, console, trust=trust)
    compilation_cache.enable()
    with Trackers() as trackers:
        with reporting_failure():
            run = driver.resume(
                run_dir,
                env=environment,
                rule=config.rule,
                progress=arguments.output.view(console),
                trust_environment=trust,
                notify=partial(print_line, console),
                ray=arguments.ray,
                trackers=trackers,
                **{name: getattr(config.options, name) for name in names},
            )
        announce_end(run, console)
        if run.directory is None:  # the first of several processes has it
            return
        finish(run_dir, run.policies, config, environment, config.options.eval_episodes, arguments.output)


def with_flags_of_run(words: Sequence[str]) -> type[ResumeArguments]:
    """The arguments with a flag for every setting of the run that the words name; its default is the run's own.

    words: what is typed after the command.
    """
    named = leading(words)
    # RUN may stand behind flags; their values may be runs as well, and then it is not clear which is meant.
    places = [Path(word) for word in named[:1] or words if not word.startswith("-")]
    runs = [path for path in places if is_file(path / "config.toml")]
    if named and (is_sweep(Path(named[0])) or is_search(Path(named[0]))):
        _require_no_settings(words, named[0])
    if len(runs) > 1:
        raise ConfigError(f"RUN stands before the flags: klimb resume RUN --env-steps 1000000, not {' '.join(words)}")
    if not runs:
        known = {name for flag in flags_of(ResumeArguments) for name in flag.names} | {"--help", "-h"}
        flags = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
        if named and not set(flags) <= known:  # a flag of a rule, which is not known without the run
            RunDirectory.open(named[0])
        return ResumeArguments
    (run,) = runs
    try:
        config = RunDirectory.open(run).config
        if isinstance(config.rule, UnknownRule) and "--trust-environment" in words:
            config = config.require_modules(run / "config.toml", trust=True)
    except KlimbError:  # told by the command itself
        return ResumeArguments
    new: list[Any] = [("training", Annotated[TrainOptions, OmitArgPrefixes], field(default=config.options))]
    taken = {flag.field for flag in flags_of(ResumeArguments)}
    rule: Any = config.rule
    if not isinstance(rule, UnknownRule) and not taken & {one.name for one in fields(rule)}:
        new.append(("rule", Annotated[type(rule), OmitArgPrefixes], field(default=rule)))
    return make_dataclass(ResumeArguments.__name__, new, bases=(ResumeArguments,), frozen=True, kw_only=True)


def _require_no_settings(words: Sequence[str], directory: str) -> None:
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    settings = {flag.names[0] for flag in flags_of(TrainOptions)}
    for flag in flags:
        if flag in settings:
            raise ConfigError(
                f"{flag}: the runs of a sweep or a search keep their settings; change those of one run with klimb "
                f"resume {directory}/NAME {flag} …"
            )


COMMAND = Command(
    "resume",
    ResumeArguments,
    resume,
    arguments_for=with_flags_of_run,
    description_without=lambda: (
        "`klimb resume RUN --help` shows the settings of that run as defaults, and the options of its rule."
    ),
)
