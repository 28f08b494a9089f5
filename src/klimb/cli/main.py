"""The command line. Nothing heavy is imported before it is known what is wanted: `klimb --help` answers at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from klimb._version import __version__
from klimb.errors import CheckFailed, KlimbError, TrainingFailed, nearest

COMMANDS = ("train", "sweep", "resume", "evaluate", "record", "report", "compare", "verify", "figure", "list")

HELP = """\
klimb: policy gradients that climb inside a trust region

usage:
  klimb train RULE ENV [--flags]     train, evaluate, and leave a report     (klimb train RULE --help)
  klimb sweep RULE ENV --over FIELD V...   train with several values of a field in one program
  klimb resume RUN [--flags]         go on with a run from its newest checkpoint
  klimb evaluate RUN [--flags]       returns of whole episodes under a run's policy
  klimb record RUN [--episodes N]    keep episodes of a run's policy as demonstrations
  klimb report RUN [-o FILE]         write the report of a run again
  klimb compare RUN... [--flags]     runs side by side, with intervals
  klimb verify [--mdp ID]            the theory, both sides of every statement computed
  klimb figure [NAME] [-o FILE]      the theory, drawn
  klimb list [rules|environments]    what there is
  klimb --version

A run of somebody else's is data, and reading it runs no code. Only an environment named MODULE:ID in its config.toml
is code: evaluate, record, resume and train --config import MODULE when they are given --trust-environment.

examples:
  klimb train trpo CartPole-v1
  klimb train ppo gymnasium:HalfCheetah-v5 --env-steps 1000000 --num-envs 8
  klimb train trpo CartPole-v1 --num-seeds 10 --max-kl 0.02
  klimb sweep trpo CartPole-v1 --over max_kl 0.003 0.01 0.03 --num-seeds 5
  klimb train behaviour-cloning CartPole-v1 --demonstrations runs/trpo-CartPole-v1
  klimb train ppo CartPole-v1 --init-from runs/behaviour-cloning-CartPole-v1
  klimb compare runs/trpo-CartPole-v1 runs/ppo-CartPole-v1 -o compare.png
  klimb verify --mdp FrozenLake-v1
  klimb train --config runs/trpo-CartPole-v1/config.toml --seed 1
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 the user's mistake (one line on standard error), 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"klimb: there is no command {command!r}{nearest(command, COMMANDS)} (see klimb --help)", file=sys.stderr)
        return 2
    asks_for_help = any(word in ("--help", "-h") for word in rest)
    if asks_for_help and (
        command in ("resume", "report", "list") or (command in ("train", "sweep") and rest[0][0] == "-")
    ):
        print(HELP, end="")
        return 0
    return _run(command, rest)


def _run(command: str, rest: list[str]) -> int:
    try:
        _function(command)(rest)
    except TrainingFailed as failure:
        print(f"klimb: {failure}", file=sys.stderr)
        return 1
    except KlimbError as error:
        print(f"klimb: {error}", file=sys.stderr)
        return 2
    except CheckFailed as failure:
        print(f"klimb: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output went away: nothing to say, and nobody to say it to.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\nklimb: {interrupt if interrupt.args else 'stopped'}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", 2)
    return 0


def _function(name: str) -> Callable[[list[str]], None]:
    """The function of a command: `klimb.cli.NAME` is imported when it is wanted, and nothing before."""
    function = "list_" if name == "list" else name
    return getattr(importlib.import_module(f"klimb.cli.{name}"), function)
