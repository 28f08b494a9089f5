"""What `train`, `sweep` and `resume` print before a training, and what they do after it."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from klimb.cli.evaluate import evaluate_seeds, evaluation_lines
from klimb.environments.base import CompiledEnvironment
from klimb.environments.registry import make, make_named_in
from klimb.errors import KlimbError, TrainingFailed
from klimb.report.page import write_report
from klimb.runs.config import RunConfig
from klimb.runs.directory import RunDirectory
from klimb.runs.policy_file import save_policy
from klimb.training.driver import NotSaved

FINAL_EPISODES = 100
"""Episodes of the evaluation after a training, each seed."""


def announce(config: RunConfig, named_in: Path | None, *, trust: bool) -> tuple[Console, Any]:
    """Make the environment, and print which environment and rule are used.

    config: of the run. named_in: the file that names the environment; None when the user typed its name.
    trust: whether that file may have a module imported.
    """
    console = Console(stderr=False)
    environment = make(config.env) if named_in is None else make_named_in(named_in, config.env, trust=trust)
    kind = "compiled" if isinstance(environment, CompiledEnvironment) else "stepped in Python"
    console.print(f"environment  {environment.id} ({kind})", highlight=False, markup=False)
    console.print(f"rule         {config.rule}", highlight=False, markup=False, soft_wrap=True)
    return console, environment


def print_line(console: Console, line: str) -> None:
    """Print one line as it is.

    console: where to. line: of plain text.
    """
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def reporting_failure(run_dir: Path) -> Iterator[None]:
    """Write a report of a training that fails, and save policies elsewhere when their directory can't be written.

    run_dir: of the training.
    """
    try:
        yield
    except TrainingFailed:
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
    run_dir: Path, policies: list[Any], config: RunConfig, environment: Any, episodes: int, console: Console
) -> None:
    """Evaluate the policies, write the report, and print where everything is.

    run_dir, policies, config, environment: of the run. episodes: of the evaluation, each seed; 0 for none.
    console: where to print.
    """
    try:
        result = evaluate_run(run_dir, policies, config, environment, episodes)
    finally:
        page = write_report(run_dir)
    for line in [] if result is None else evaluation_lines(result):
        console.print(line, highlight=False)
    for name, path in (
        ("report", page),
        ("policy", run_dir / ("policy*.safetensors" if len(policies) > 1 else "policy.safetensors")),
        ("metrics", run_dir / "metrics.jsonl"),
    ):
        console.print(f"{name:<12} {path}", highlight=False, markup=False, soft_wrap=True)
    flag = " --trust-environment" if config.names_modules else ""
    console.print(
        f"again        klimb evaluate {shlex.quote(str(run_dir))}{flag}", highlight=False, markup=False, soft_wrap=True
    )


def evaluate_run(
    run_dir: Path, policies: list[Any], config: RunConfig, environment: Any, episodes: int
) -> dict[str, Any] | None:
    """The evaluation after a training, which is written to its directory; None without episodes.

    run_dir, policies, config, environment: of the run. episodes: of each seed.
    """
    if episodes == 0:
        return None
    # Another seed than the training's: no episode is one that was trained on.
    result = evaluate_seeds(policies, config, environment, episodes, config.options.seed + 10_000, True)
    RunDirectory(run_dir, config).write_evaluation(result)
    return result
