"""klimb check-env ENV: whether an environment can be trained, and what to fix."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from klimb.cli.parser import Command
from klimb.environments.check import STEPS, check_env
from klimb.errors import CheckFailed, ConfigError
from klimb.terminal import write_error, write_line


@dataclass(frozen=True)
class CheckEnvArguments:
    """What is typed after `klimb check-env`."""

    env: Annotated[str, Positional, arg(metavar="ENV")]
    """The environment: any Gymnasium id, MODULE:NAME for one of your own, or one of `klimb list environments`."""
    reference: Annotated[str | None, Positional, arg(metavar="REFERENCE")] = None
    """A Gymnasium id that a compiled environment is a port of: their steps are compared, from the same states."""
    steps: int = STEPS
    """Number of steps with random actions, at least 1."""
    seed: int = 0
    """Seed of the environment and of the actions."""


def check(arguments: CheckEnvArguments) -> None:
    """Check an environment, and print what holds, what does not, and what to do about it.

    arguments: which environment, and for how long.
    """
    if arguments.steps < 1:
        raise ConfigError(f"--steps {arguments.steps}: a check needs at least 1")
    result = check_env(arguments.env, reference=arguments.reference, steps=arguments.steps, seed=arguments.seed)
    for finding in result.findings:
        if finding.traceback is not None:
            write_error(finding.traceback, end="")
    write_line(result)
    if not result.trainable:
        names = ", ".join(dict.fromkeys(finding.name for finding in result.failures))
        raise CheckFailed(f"{arguments.env} can't be trained yet; to fix: {names}")
    write_line(f"it can be trained: klimb train trpo {shlex.quote(arguments.env)}")


COMMAND = Command("check-env", CheckEnvArguments, check)
