"""klimb train RULE ENV: a training from nothing, with its evaluation and report."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes

from klimb.cli import compilation_cache
from klimb.cli.arguments import split
from klimb.cli.flags import parse
from klimb.cli.progress import Progress
from klimb.cli.session import FINAL_EPISODES, announce, finish, reporting_failure
from klimb.errors import ConfigError, nearest
from klimb.rules import RULES, rule_name
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.directory import unused_directory
from klimb.training import devices, driver


@dataclass(frozen=True)
class RunFlags:
    """Where the run goes, and what is done when it has been trained."""

    run_dir: Path | None = None
    """Directory to make for the run; by default runs/RULE-ENV."""
    eval_episodes: int = FINAL_EPISODES
    """Episodes of the final evaluation, each seed; 0 for none."""
    config: Path | None = None
    """A config.toml to start from; flags go on top of it."""
    trust_environment: bool = False
    """Let that file name an environment whose module is imported, which runs the module's code."""


def train(arguments: list[str]) -> None:
    """klimb train RULE ENV [--flags]"""
    base, words = named_run(arguments)
    rule, options, flags = parse_flags(base, words)
    config = RunConfig(base.env, rule, options)
    config.check_demonstrations()
    devices.use_all_cores()
    named_in = None if split(arguments)[0] else flags.config
    console, environment = announce(config, named_in, trust=flags.trust_environment)
    compilation_cache.enable()
    run_dir = flags.run_dir or unused_directory(Path("runs"), directory_name(config))
    with reporting_failure(run_dir), Progress(config, console) as progress:
        run = driver.train(config.env, rule, run_dir=run_dir, on_records=progress.update, **asdict(options))
    finish(run_dir, run.policies, config, environment, flags.eval_episodes, console)


def directory_name(config: RunConfig) -> str:
    """RULE-ENV as the name of one directory, whatever the environment is called."""
    env = re.sub(r"[^-+.=@,\w]", "-", config.env, flags=re.ASCII)
    return f"{rule_name(config.rule)}-{env}"


def named_run(arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """The run that RULE and ENV (or --config) name, with every option at its default, and the flags."""
    words, rest = split(arguments)
    rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" in rest[:-1]:
        base = RunConfig.read(Path(rest[rest.index("--config") + 1]))
        words = words or [rule_name(base.rule), base.env]
    else:
        base = None
    if len(words) == 1 and words[0] in RULES and ("--help" in rest or "-h" in rest):
        words.append("ENV")
    if len(words) != 2:
        raise ConfigError("klimb train takes a rule and an environment: klimb train trpo CartPole-v1")
    name, env = words
    if name not in RULES:
        raise ConfigError(f"there is no rule {name!r}{nearest(name, RULES)}; there are {', '.join(RULES)}")
    if base is None:
        return RunConfig(env, RULES[name](), TrainOptions()), rest
    rule = base.rule if type(base.rule) is RULES[name] else RULES[name]()
    return RunConfig(env, rule, base.options), rest


def parse_flags(base: RunConfig, words: list[str], command: str = "train") -> tuple[Any, Any, RunFlags]:
    """Rule, options and run flags, from flags on top of `base`."""
    flags = make_dataclass(
        "Train",
        [
            ("rule", Annotated[type(base.rule), OmitArgPrefixes], field(default=base.rule)),
            ("training", Annotated[type(base.options), OmitArgPrefixes], field(default=base.options)),
            ("run", Annotated[RunFlags, OmitArgPrefixes], field(default_factory=RunFlags)),
        ],
        frozen=True,
    )
    program = f"klimb {command} {rule_name(base.rule)} {base.env}"
    parsed: Any = parse(flags, words, default=flags(), program=program)
    return parsed.rule, parsed.training, parsed.run
