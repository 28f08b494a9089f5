"""klimb report RUN: the report of a run or a search, written again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, film_episode, require_policy_trust
from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.environments.rendering import offscreen
from klimb.errors import ConfigError
from klimb.filming.clip import Clip
from klimb.report.html import FILE_NAME
from klimb.report.live import serve_report
from klimb.report.page import write_report
from klimb.report.tuning_page import write_tuning_report
from klimb.runs.directory import RunDirectory
from klimb.runs.tune_file import is_search
from klimb.terminal import flush, write_line
from klimb.training.networks import load_policies_of_one_iteration


@dataclass(frozen=True)
class ReportArguments:
    """What is typed after `klimb report`."""

    run: RunWord
    """Run directory, or the directory of a search."""
    output: OutputFlag = None
    """File to write; by default report.html in the run directory, which is replaced."""
    overwrite: bool = False
    """Overwrite an existing file."""
    video: bool = False
    """Film an episode of the run's first seed into the report: this runs the environment."""
    seed: int = 0
    """Seed of the episode of --video."""
    live: bool = False
    """Serve the report on this machine and keep it up to date while the run is trained; no file is written."""
    port: int = 0
    """Port of the page of --live; 0 for a free one."""
    trust_environment: bool = False
    """With --video, allow the run's config.toml to name an environment or a network to import: this runs its code."""


def report(arguments: ReportArguments) -> None:
    """Write the report of a run or a search, and print where it is; or serve it.

    arguments: which run, and where to.
    """
    if arguments.live:
        _serve(arguments)
        return
    if arguments.port:
        raise ConfigError("--port is the port of the page of --live: give both, or neither")
    searched = is_search(arguments.run)
    directory = arguments.run if searched else RunDirectory.open(arguments.run).path
    output = arguments.output
    if output is not None and output.resolve() != (directory / FILE_NAME).resolve():
        require_unused([output], arguments.overwrite)
    if searched:
        if arguments.video:
            raise ConfigError("--video is for the report of a run: give the directory of one of the search's trials")
        write_line(write_tuning_report(directory, output))
        return
    clip = _film(directory, arguments) if arguments.video else None
    write_line(write_report(directory, output, clip))


def _serve(arguments: ReportArguments) -> None:
    """The report as a page that is kept up to date, until Ctrl-C, or until the run has ended and was shown."""
    if is_search(arguments.run):
        raise ConfigError("--live is for the report of a run: give the directory of one of the search's trials")
    if arguments.video or arguments.output is not None:
        raise ConfigError(
            "--live serves the report as it changes, without a file and without a film: leave out --video and --output "
            "(klimb watch RUN shows the newest policy)"
        )
    if not 0 <= arguments.port < 65536:
        raise ConfigError("port has to be from 0 to 65535")
    directory = RunDirectory.open(arguments.run).path
    try:
        serve_report(directory, arguments.port, _tell)
    except KeyboardInterrupt:
        return  # the way to end it
    write_line("ended        the run has ended, and its last state was shown")


def _tell(address: str) -> None:
    write_line(f"report       {address}  (Ctrl-C ends)")
    flush()


def _film(run_dir: Path, arguments: ReportArguments) -> Clip:
    """An episode of the run's first policy."""
    offscreen.prepare()
    config = RunDirectory.open(run_dir).config
    compilation_cache.enable()
    environment = environment_of(run_dir, config, None, trust=arguments.trust_environment)
    require_policy_trust(run_dir, config, trust=arguments.trust_environment)
    policies, _ = load_policies_of_one_iteration(run_dir, config, environment)
    return film_episode(policies[0], environment, arguments.seed)


COMMAND = Command("report", ReportArguments, report)
