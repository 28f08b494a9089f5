"""klimb sweep RULE ENV --over FIELD V...: one program that trains with every combination of values."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from klimb.cli import compilation_cache
from klimb.cli.arguments import split
from klimb.cli.progress import Progress
from klimb.cli.session import announce, evaluate_run, reporting_failure
from klimb.cli.train import directory_name, named_run, parse_flags
from klimb.errors import ConfigError
from klimb.report.page import write_report
from klimb.runs.config import RunConfig
from klimb.runs.directory import unused_directory
from klimb.training import devices
from klimb.training.sweep import sweep as sweep_over


def sweep(arguments: list[str]) -> None:
    """klimb sweep RULE ENV --over FIELD VALUE... [--over FIELD VALUE...] [--flags of klimb train]"""
    words, over = _take_over(arguments)
    base, rest = named_run(words)
    rule, options, flags = parse_flags(base, rest, command="sweep")
    if not over:
        raise ConfigError("klimb sweep needs what to sweep over: --over max_kl 0.003 0.01 0.03")
    config = RunConfig(base.env, rule, options)
    devices.use_all_cores()
    named_in = None if split(words)[0] else flags.config
    console, environment = announce(config, named_in, trust=flags.trust_environment)
    compilation_cache.enable()
    parent = flags.run_dir or unused_directory(Path("runs"), f"sweep-{directory_name(config)}")
    with reporting_failure(parent), Progress(config, console) as progress:
        runs = sweep_over(config.env, rule, over, run_dir=parent, on_records=progress.update, **asdict(options))
    for run in runs:
        assert run.directory is not None
        result = evaluate_run(run.directory, run.policies, run.config, environment, flags.eval_episodes)
        write_report(run.directory)
        outcome = (
            "" if result is None else f"mean return {result['mean']:.2f} over {result['episodes']} episodes a seed"
        )
        console.print(f"{run.directory.name:<24} {outcome}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"compare      klimb compare {parent}/*", highlight=False, markup=False, soft_wrap=True)


def _take_over(arguments: list[str]) -> tuple[list[str], dict[str, list[float]]]:
    """The arguments without `--over FIELD VALUE...`, and the values of each field."""
    rest: list[str] = []
    over: dict[str, list[float]] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word != "--over":
            rest.append(word)
            continue
        until = next((i for i, word in enumerate(left) if word.startswith("--")), len(left))
        named, left = left[:until], left[until:]
        if len(named) < 2:
            raise ConfigError("--over takes a field and its values: --over max_kl 0.003 0.01 0.03")
        field, *values = named
        try:
            over[field.replace("-", "_")] = [float(value) for value in values]
        except ValueError as error:
            raise ConfigError(f"--over {field}: {error}") from None
    return rest, over
