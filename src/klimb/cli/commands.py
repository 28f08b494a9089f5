"""The table of commands. `klimb --help`, the nearest name for a wrong one, completion and every page follow from it.

It imports nothing heavy: what a command needs is imported when the command is run.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from klimb.errors import ConfigError, nearest


class Entry(NamedTuple):
    """What is typed after the name of a command, and what the command does, in one line."""

    words: str
    summary: str


COMMANDS = {
    "train": Entry("RULE ENV [FLAGS]", "train a policy, evaluate it and write a report"),
    "sweep": Entry("RULE ENV --over FIELD V... [FLAGS]", "train with several values of options, in every combination"),
    "tune": Entry("RULE ENV --over FIELD:LOW:HIGH... [FLAGS]", "search for good values of options with Optuna"),
    "resume": Entry("RUN [FLAGS]", "continue a run, a sweep or a search from its newest checkpoints"),
    "evaluate": Entry("RUN [FLAGS]", "run whole episodes with a run's policy, and print their returns"),
    "watch": Entry("RUN [FLAGS]", "watch a run's policy in the browser, one episode after the other"),
    "check-env": Entry("ENV [REFERENCE] [FLAGS]", "check an environment of your own before training in it"),
    "record": Entry("RUN [FLAGS]", "record episodes of a run's policy as demonstrations"),
    "export": Entry("RUN -o FILE [FLAGS]", "write a run's policy as ONNX, StableHLO or a file of Python"),
    "push": Entry("RUN USER/NAME [FLAGS]", "put a run's policy on the Hugging Face Hub, with its evaluation"),
    "estimate": Entry(
        "POLICY --demonstrations DATA [FLAGS]", "estimate a policy's return from episodes of another policy"
    ),
    "sync": Entry("RUN TRACKER [FLAGS]", "log a run, a sweep or a search to W&B or MLflow after the fact"),
    "report": Entry("RUN [FLAGS]", "write the report of a run or of a search again, or serve it live"),
    "compare": Entry("RUN... [FLAGS]", "compare runs, with confidence intervals"),
    "verify": Entry("[FLAGS]", "check every statement of the theory numerically"),
    "figure": Entry("[NAME] [FLAGS]", "draw a figure of the theory, or list the figures"),
    "list": Entry("[SECTION]", "list rules, environments, presets, figures or metrics"),
    "completion": Entry("SHELL", "print a completion script for bash, zsh or fish"),
}
"""Every command. `klimb.cli.NAME`, with _ for -, holds the rest of it, as `COMMAND`."""


def usage(name: str) -> str:
    """How a command is typed. name: a key of `COMMANDS`."""
    return f"klimb {name} {COMMANDS[name].words}"


def load(name: str) -> Any:
    """The `klimb.cli.parser.Command` of a name, whose module is imported. ConfigError when there is none.

    name: as it is typed.
    """
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}{nearest(name, COMMANDS)} (see klimb --help)")
    return importlib.import_module(f"klimb.cli.{name.replace('-', '_')}").COMMAND
