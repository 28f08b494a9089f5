"""klimb train RULE ENV: a training from nothing, with its evaluation and report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from klimb.cli import compilation_cache
from klimb.cli.commands import usage
from klimb.cli.flags import flags_of
from klimb.cli.list import rule_lines
from klimb.cli.parser import Command, leading, parse_known
from klimb.cli.session import Output, announce, announce_end, finish, reporting_failure
from klimb.environments.registry import BUILT_IN
from klimb.errors import ConfigError
from klimb.rules import RULES, rule_class, rule_name
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.directory import unused_directory
from klimb.training import devices, driver
from klimb.training.progress.choice import print_line

T = TypeVar("T", bound="TrainArguments")


@dataclass(frozen=True)
class RunFlags:
    """Where the run is written, and what its configuration starts from."""

    run_dir: Path | None = None
    """New directory for the run; by default runs/RULE-ENV."""
    config: Path | None = None
    """A config.toml to start from; arguments and options on the command line override it."""
    trust_environment: bool = False
    """Allow the --config file to name a rule, an environment or a network to import: this runs its code."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """What is typed after `klimb train`. `rule` has the settings of the rule, when it is known which one."""

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
    devices.use_all_cores()
    console = arguments.output.console()
    environment = announce(config, named_in, console, trust=flags.trust_environment)
    compilation_cache.enable()
    run_dir = flags.run_dir or unused_directory(Path("runs"), directory_name(config))
    with reporting_failure(run_dir), arguments.output.view(console) as view:
        run = driver.start(config, environment, run_dir=run_dir, notify=partial(print_line, console), view=view)
    announce_end(run, console)
    finish(run_dir, run.policies, config, environment, config.options.eval_episodes, arguments.output)


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
    if arguments.env is None and file is not None:
        return RunConfig(RunConfig.read(file).env, arguments.rule, arguments.training), file
    return RunConfig(arguments.env, arguments.rule, arguments.training), None


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
    if base is not None and cls in (None, type(base.rule)):
        return _with_rule(arguments, base.rule, type(base.rule), base)
    assert cls is not None
    return _with_rule(arguments, None if _has_required_fields(cls) else cls(), cls, base)


def _is_environment(word: str) -> bool:
    """Whether a word is surely the name of an environment: a built-in one, or with a version."""
    return word in BUILT_IN or re.search(r"-v\d+$", word) is not None


def _read(file: Path, cls: type | None, *, trust: bool) -> RunConfig:
    """The configuration in a file, with the modules that it names, if they may be imported.

    cls: the rule that is used instead of the file's; None for the file's.
    """
    config = RunConfig.read(file)
    if cls not in (None, type(config.rule)):
        # The file's rule need not be there.
        config = replace(config, rule=RULES["reinforce"]())
    return config.require_modules(file, trust=trust)


def _with_rule(arguments: type[T], rule: Any, cls: type, base: RunConfig | None) -> type[T]:
    """rule: with the values that flags change; None for a class without defaults. base: of `--config`."""
    _require_own_names(cls, arguments)
    new: list[Any] = [("rule", Annotated[cls, OmitArgPrefixes], field() if rule is None else field(default=rule))]
    if base is not None:
        name, env = (Annotated[str | None, Positional, arg(metavar=word)] for word in ("RULE", "ENV"))
        new += [
            ("rule_name", name, field(default=None)),
            ("env", env, field(default=None)),
            ("training", Annotated[type(base.options), OmitArgPrefixes], field(default=base.options)),
        ]
    return make_dataclass(arguments.__name__, new, bases=(arguments,), frozen=True, kw_only=True)


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
