"""klimb report RUN: the report, written again."""

from __future__ import annotations

from pathlib import Path

from klimb.cli.arguments import one_path
from klimb.errors import ConfigError
from klimb.report.page import write_report
from klimb.runs.directory import RunDirectory


def report(arguments: list[str]) -> None:
    """klimb report RUN [-o FILE]"""
    output = None
    if "-o" in arguments:
        at = arguments.index("-o")
        if at + 1 == len(arguments):
            raise ConfigError("-o needs a file name")
        output = Path(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    run_dir = RunDirectory.open(one_path("report", arguments)).path
    print(write_report(run_dir, output))
