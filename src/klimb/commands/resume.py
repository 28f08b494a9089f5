"""klimb resume RUN: on from the newest checkpoint."""

from __future__ import annotations

from klimb import compilation_cache, devices
from klimb.commands.around_a_run import FINAL_EPISODES, announce, finish
from klimb.commands.words import one_path
from klimb.progress import Progress
from klimb.runs import driver
from klimb.runs.directory import RunDirectory


def resume(arguments: list[str]) -> None:
    """klimb resume RUN"""
    run_dir = one_path("resume", arguments)
    config = RunDirectory.open(run_dir).config
    devices.use_all_cores()
    console, environment = announce(config)
    compilation_cache.enable()
    with Progress(config, console) as progress:
        run = driver.resume(run_dir, env=environment, on_records=progress.update)
    finish(run_dir, run.policies, config, environment, FINAL_EPISODES, console)
