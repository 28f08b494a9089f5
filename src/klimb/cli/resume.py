"""klimb resume RUN: on from the newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from klimb.cli import compilation_cache
from klimb.cli.arguments import one_path, split
from klimb.cli.flags import parse
from klimb.cli.progress import Progress
from klimb.cli.session import FINAL_EPISODES, announce, finish, reporting_failure
from klimb.runs.directory import RunDirectory
from klimb.training import devices, driver


@dataclass(frozen=True)
class ResumeFlags:
    """How a run is gone on with."""

    trust_environment: bool = False
    """Let the run's configuration name an environment whose module is imported, which runs the module's code."""


def resume(arguments: list[str]) -> None:
    """klimb resume RUN [--trust-environment]"""
    words, rest = split(arguments)
    flags = parse(ResumeFlags, rest, default=ResumeFlags(), program="klimb resume RUN")
    run_dir = one_path("resume", words)
    config = RunDirectory.open(run_dir).config
    devices.use_all_cores()
    console, environment = announce(config, run_dir / "config.toml", trust=flags.trust_environment)
    compilation_cache.enable()
    with reporting_failure(run_dir), Progress(config, console) as progress:
        run = driver.resume(run_dir, env=environment, on_records=progress.update)
    finish(run_dir, run.policies, config, environment, FINAL_EPISODES, console)
