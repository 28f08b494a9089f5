"""klimb resume RUN: on from the newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from klimb.cli import compilation_cache
from klimb.cli.parser import Command, RunWord
from klimb.cli.session import Output, announce, announce_end, finish, reporting_failure
from klimb.runs.directory import RunDirectory
from klimb.training import devices, driver


@dataclass(frozen=True)
class ResumeArguments:
    """What is typed after `klimb resume`."""

    run: RunWord
    """Run directory."""
    trust_environment: bool = False
    """Let the run's configuration name a rule, an environment or a network: its module is imported and runs."""
    output: Annotated[Output, OmitArgPrefixes] = field(default_factory=Output)


def resume(arguments: ResumeArguments) -> None:
    """Continue a run to the end that its configuration says, evaluate it, and write its report again.

    arguments: which run.
    """
    run_dir, trust = arguments.run, arguments.trust_environment
    config_file = run_dir / "config.toml"
    config = RunDirectory.open(run_dir).config.require_modules(config_file, trust=trust)
    devices.use_all_cores()
    console = arguments.output.console()
    environment = announce(config, config_file, console, trust=trust)
    compilation_cache.enable()
    with reporting_failure(run_dir):
        view = arguments.output.view(console)
        run = driver.resume(run_dir, env=environment, rule=config.rule, progress=view, trust_environment=trust)
    announce_end(run, console)
    finish(run_dir, run.policies, config, environment, config.options.eval_episodes, arguments.output)


COMMAND = Command("resume", ResumeArguments, resume)
