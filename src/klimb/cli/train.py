"""klimb train RULE ENV: a training from nothing, with its evaluation and report."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from klimb.cli import compilation_cache
from klimb.cli.commands import usage
from klimb.cli.flags import flags_of
from klimb.cli.list import rule_lines
from klimb.cli.parser import Command, leading, parse, parse_known
from klimb.cli.session import Output, announce, announce_end, announce_preset, finish, reporting_failure, start_jax
from klimb.console import print_line
from klimb.environments.registry import BUILT_IN
from klimb.errors import ConfigError
from klimb.fields import build
from klimb.presets.preset import Preset
from klimb.presets.shipped import load_preset
from klimb.presets.shipped import preset as find_preset
from klimb.rules import RULES, rule_class, rule_name
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.directory import NewName
from klimb.tracking.trackers import Trackers
from klimb.training import driver

T = TypeVar("T", bound="TrainArguments")

AUTO, NONE = "auto", "none"
"""Values of `--preset` that name none: the one for rule and environment, and no preset."""


@dataclass(frozen=True)
class RunFlags:
    """Where the run is written, and what its configuration starts from."""

    run_dir: Path | None = None
    """New directory for the run; by default runs/RULE-ENV."""
    config: Path | None = None
    """A config.toml to start from; arguments and options on the command line override it."""
    preset: Annotated[str, arg(metavar="NAME")] = AUTO
    """Settings that suit a task (`klimb list presets`). auto: by rule and environment; none; a name; or FILE.toml."""
    wrapper: Annotated[tuple[str, ...], arg(metavar="MODULE:NAME")] = ()
    """Wrappers of a Gymnasium environment, innermost first: MODULE:NAME, or "MODULE:NAME(argument=value)"."""
    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """A Ray cluster that steps the environments, or trains the runs of a sweep: auto, local or HOST:PORT."""
    distributed: bool = False
    """Train in several processes, of SLURM, MPI or Kubernetes, together; the first one writes (docs/scaling.md)."""
    trust_environment: bool = False
    """Allow the --config file to name a rule, an environment or a network to import: this runs its code."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """What is typed after `klimb train`. `rule` has the settings of the rule, when it is known which one."""

    applied: ClassVar[Preset | None] = None
    """The preset that the defaults of rule and training have been taken from."""
    rule_name: Annotated[str, Positional, arg(metavar="RULE")]
    """The update rule: one of `klimb list rules`, or MODULE:NAME for one of your own."""
    env: Annotated[str, Positional, arg(metavar="ENV")]
    """The environment: one of `klimb list environments`, any Gymnasium id, or MODULE:NAME for one of your own."""
    rule: Suppress[Any] = None
    training: Annotated[TrainOptions, OmitArgPrefixes] = field(default_factory=TrainOptions)
    """Everything about the training except the rule and the environment."""
    run: Annotated[RunFlags, OmitArgPrefixes] = field(default_factory=RunFlags)
    output: Annotated[Output, OmitArgPrefixes] = field(default_factory=Output)


def train(arguments: TrainArguments) -> None:
    """Train, evaluate, and write a report.

    arguments: with the rule.
    """
    config, named_in = configuration(arguments)
    flags = arguments.run
    config.check_demonstrations()
    start_jax(distributed=flags.distributed)
    console = arguments.output.console()
    environment = announce(config, named_in, console, trust=flags.trust_environment)
    preset = arguments.applied
    announce_preset(preset, config, console)
    compilation_cache.enable()
    run_dir = flags.run_dir or NewName(Path("runs"), directory_name(config))
    with Trackers() as trackers:
        with reporting_failure(), arguments.output.view(console) as view:
            run = driver.start(
                config,
                environment,
                run_dir=run_dir,
                preset=None if preset is None else preset.title,
                notify=partial(print_line, console),
                view=view,
                ray=flags.ray,
                trackers=trackers,
            )
        announce_end(run, console)
        if run.directory is None:  # the first of several processes has it
            return
        finish(run.directory, run.policies, config, environment, config.options.eval_episodes, arguments.output)


def directory_name(config: RunConfig) -> str:
    """RULE-ENV as the name of one directory, whatever the rule and the environment are called.

    config: of the run.
    """
    return re.sub(r"[^-+.=@,\w]", "-", f"{rule_name(config.rule)}-{config.env}", flags=re.ASCII)


def configuration(arguments: TrainArguments) -> tuple[RunConfig, Path | None]:
    """The training that is asked for, and the file that names its environment, if the user did not.

    arguments: with the rule.
    """
    file, typed, rule = arguments.run.config, arguments.rule_name, arguments.rule
    if typed is not None and not isinstance(rule, rule_class(typed)):
        # Behind flags it was read too late to decide which rule is trained.
        raise ConfigError(f"the rule comes before the flags: {typed} --config {file} …")
    named_in = file if arguments.env is None else None
    env = arguments.env if named_in is None else RunConfig.read(named_in).env
    env = "+".join([env, *arguments.run.wrapper])
    with naming(arguments.applied):
        return RunConfig(env, arguments.rule, arguments.training), named_in


@contextlib.contextmanager
def naming(preset: Preset | None) -> Iterator[None]:
    """Errors about a setting that may come from a preset, and not from what was typed, name the preset.

    preset: that is used; None for none.
    """
    try:
        yield
    except ConfigError as error:
        if preset is None or not any(name in str(error) for name in preset.settings()):
            raise
        raise ConfigError(f"{error} (with the preset {preset.title}; --preset none trains without it)") from None


def with_rule_of(words: Sequence[str], arguments: type[T], command: str) -> type[T]:
    """The arguments with the flags of the rule that the words name, or that the file of `--config` names.

    words: what is typed after the command. arguments: those without a rule. command: its name.

    Raises ConfigError when they name no rule; UntrustedEnvironment when a file names one that may not be imported.
    """
    flags, rest = parse_known(RunFlags, words, command)
    named = leading(rest)
    if flags.config is None and not named:
        if "--help" in rest or "-h" in rest:
            return arguments
        raise ConfigError(
            f"klimb {command} takes a rule and an environment, before any flags: {usage(command)} (see klimb list)"
        )
    if named and named[0] not in RULES and (_is_environment(named[0]) or (named[1:2] and named[1] in RULES)):
        rule = named[1] if len(named) > 1 else "RULE"
        raise ConfigError(f"the rule comes before the environment: klimb {command} {rule} {named[0]}")
    cls = rule_class(named[0]) if named else None
    base = None if flags.config is None else _read(flags.config, cls, trust=flags.trust_environment)
    made = _with_rule(arguments, cls, base)
    name = named[0] if base is None or named else rule_name(base.rule)
    preset = _preset(flags, name, partial(_environment_of, words, named, made, command))
    if preset is None:
        return made
    if flags.config is not None:
        base = _read(flags.config, cls, trust=flags.trust_environment, preset=preset)
    return _with_rule(arguments, cls, base, preset)


def _preset(flags: RunFlags, rule: str, environment: Callable[[], str | None]) -> Preset | None:
    """The preset that is asked for. rule: its name. environment: gives the name of the environment, if there is one."""
    if flags.preset == NONE:
        return None
    if flags.preset != AUTO:
        return load_preset(rule, flags.preset)
    # An environment in wrappers is another one.
    env = None if flags.config is not None or flags.wrapper else environment()
    return None if env is None else find_preset(rule, env)


def _environment_of(words: Sequence[str], named: list[str], arguments: type[T], command: str) -> str | None:
    """The environment's name among the words of a command; None on the way to the page of `--help` without one.

    named: the words before the first flag. arguments: with the rule.
    """
    if len(named) > 1:
        return named[1]
    if "--help" in words or "-h" in words:
        return None
    return parse(arguments, words, command).env  # it stands behind flags


def _is_environment(word: str) -> bool:
    """Whether a word is surely the name of an environment: a built-in one, or with a version."""
    return word in BUILT_IN or re.search(r"-v\d+$", word) is not None


def _read(file: Path, cls: type | None, *, trust: bool, preset: Preset | None = None) -> RunConfig:
    """The configuration in a file, with the modules that it names, if they may be imported.

    cls: the rule that is used instead of the file's; None for the file's. preset: that holds where the file says
    nothing.
    """
    config = RunConfig.read(file)
    other_rule = cls not in (None, type(config.rule))
    if preset is not None:
        config = RunConfig.read(file, rule=None if other_rule else preset.rule_options, options=preset.options)
    if other_rule:
        # The file's rule need not be there.
        config = replace(config, rule=RULES["reinforce"]())
    return config.require_modules(file, trust=trust)


def _with_rule(arguments: type[T], cls: type | None, base: RunConfig | None, preset: Preset | None = None) -> type[T]:
    """The arguments with the flags of a rule. cls: of the rule; None for that of `base`, the file of `--config`."""
    rule: Any = None
    if base is not None and cls in (None, type(base.rule)):
        rule, cls = base.rule, type(base.rule)
    else:
        assert cls is not None
        if preset is not None:
            rule = preset.rule()
        elif not _has_required_fields(cls):
            rule = cls()
    _require_own_names(cls, arguments)
    new: list[Any] = [("rule", Annotated[cls, OmitArgPrefixes], field() if rule is None else field(default=rule))]
    if base is None and preset is not None:
        options = build(TrainOptions, preset.options)
        new.append(("training", Annotated[TrainOptions, OmitArgPrefixes], field(default=options)))
    if base is not None:
        name, env = (Annotated[str | None, Positional, arg(metavar=word)] for word in ("RULE", "ENV"))
        new += [
            ("rule_name", name, field(default=None)),
            ("env", env, field(default=None)),
            ("training", Annotated[type(base.options), OmitArgPrefixes], field(default=base.options)),
        ]
    applied = {"applied": preset}
    return make_dataclass(arguments.__name__, new, bases=(arguments,), namespace=applied, frozen=True, kw_only=True)


def _has_required_fields(cls: Any) -> bool:
    return any(one.init and one.default is MISSING and one.default_factory is MISSING for one in fields(cls))


def _require_own_names(cls: type, arguments: type) -> None:
    taken = {one.field for one in flags_of(arguments)}
    shared = [one.name for one in fields(cls) if one.name in taken]
    if shared:
        raise ConfigError(
            f"{cls.__name__} has the field {shared[0]!r}, which is an option of every training too: "
            "give the field another name"
        )


COMMAND = Command(
    "train",
    TrainArguments,
    train,
    arguments_for=lambda words: with_rule_of(words, TrainArguments, "train"),
    description_without=lambda: "rules:\n" + "\n".join(rule_lines()),
)
