"""What `train`, `sweep` and `resume` print before a training, and what they do after it."""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import arg

from klimb.cli.evaluate import evaluation_lines
from klimb.console import print_line, training_console
from klimb.environments.base import CompiledEnvironment
from klimb.environments.registry import make, make_named_in
from klimb.errors import ConfigError, KlimbError, TrainingFailed
from klimb.presets.preset import Preset, written
from klimb.report.page import write_report
from klimb.runs.config import RunConfig
from klimb.runs.policy_file import save_policy
from klimb.training import devices, peers
from klimb.training.final_evaluation import evaluate_run
from klimb.training.loop import NotSaved
from klimb.training.progress.choice import lines_on, view_on
from klimb.training.progress.view import SILENT, View
from klimb.training.resources import memory_line, peak_memory
from klimb.training.run_writer import Run


@dataclass(frozen=True)
class Output:
    """How much is printed."""

    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print only warnings and errors, and at the end the result and the paths of its files."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Print one line per iteration and checkpoint, and the compile time, instead of the progress panel."""

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise ConfigError("--quiet and --verbose are opposites: choose one of them")

    def console(self) -> Console:
        """Where to print what a training does."""
        return training_console(quiet=self.quiet or not peers.is_first())

    def view(self, console: Console) -> View:
        """The view of a training.

        console: where to print.
        """
        if self.quiet:
            return SILENT
        return lines_on(console, logging.DEBUG) if self.verbose else view_on(console)


def start_jax(*, distributed: bool) -> None:
    """Make every core a device, or join the other processes of a training, of which the first one prints.

    distributed: whether there are others. Raises ConfigError when they can't be joined.
    """
    if distributed:
        peers.use_all_processes()
    devices.use_all_cores()
    if not peers.is_first():
        logging.getLogger("klimb").setLevel(logging.ERROR)


def announce(config: RunConfig, named_in: Path | None, console: Console, *, trust: bool) -> Any:
    """Make the environment, and print which environment and rule are used.

    config: of the run. named_in: the file that names the environment; None when the user typed its name.
    console: where to print. trust: whether that file may have a module imported.
    """
    environment = make(config.env) if named_in is None else make_named_in(named_in, config.env, trust=trust)
    kind = "compiled" if isinstance(environment, CompiledEnvironment) else "stepped in Python"
    print_line(console, f"environment  {environment.id} ({kind})")
    print_line(console, f"rule         {config.rule}")
    return environment


def announce_preset(preset: Preset | None, config: RunConfig, console: Console, varied: Collection[str] = ()) -> None:
    """Print which preset is used, if one is, and what it changes.

    config: of the run. console: where to print. varied: names of settings that a sweep gives other values.
    """
    if preset is None:
        return
    settings = preset.in_effect(config.rule, config.options)
    changes = [f"{name} {written(value)}" for name, value in settings.items() if name not in varied]
    what = ", ".join(changes) or "changes nothing, because all of its settings are given"
    print_line(console, f"preset       {preset.title}: {what} (flags override it; --preset none trains without it)")


def announce_end(run: Run, console: Console) -> None:
    """Print what has ended a training, if it is not that it was complete.

    run: its result. console: where to print.
    """
    if run.ended is not None and run.ended.early:
        print_line(console, f"ended        after iteration {run.ended.iteration}: {run.ended.message}")


@contextlib.contextmanager
def reporting_failure() -> Iterator[None]:
    """Write a report of a training that fails, and save policies elsewhere when their directory can't be written."""
    try:
        yield
    except TrainingFailed as failure:
        for run_dir in failure.directories:
            # Without a single iteration there is nothing to report.
            with contextlib.suppress(KlimbError):
                write_report(run_dir)
        raise
    except NotSaved as error:
        directory = Path(tempfile.mkdtemp(prefix="klimb-"))
        for number, policy in enumerate(policy for run in error.runs for policy in run.policies):
            save_policy(policy, directory, name=f"policy_{number}")
        raise TrainingFailed(f"{error}; the policies are in {directory}") from error


def finish(
    run_dir: Path, policies: list[Any], config: RunConfig, environment: Any, episodes: int, output: Output
) -> None:
    """Evaluate the policies, write the report, and print where everything is.

    run_dir, policies, config, environment: of the run. episodes: of the evaluation, per seed; 0 for none.
    output: how much is printed of the evaluation; its result is printed in any case.
    """
    console = training_console()
    try:
        result = evaluate_run(run_dir, policies, config, environment, episodes, output.view(console))
    finally:
        page = write_report(run_dir)
    for line in [] if result is None else evaluation_lines(result):
        print_line(console, line)
    if not output.quiet and (peaks := peak_memory()):
        print_line(console, f"memory       at most {memory_line(peaks)}")
    for name, path in (
        ("report", page),
        ("policy", run_dir / ("policy*.safetensors" if len(policies) > 1 else "policy.safetensors")),
        ("metrics", run_dir / "metrics.jsonl"),
    ):
        print_line(console, f"{name:<12} {path}")
    flag = " --trust-environment" if config.names_modules else ""
    print_line(console, f"again        klimb evaluate {shlex.quote(str(run_dir))}{flag}")
