"""klimb report RUN: the report, written again."""

from __future__ import annotations

from dataclasses import dataclass

from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.report.page import FILE_NAME, write_report
from klimb.runs.directory import RunDirectory
from klimb.terminal import write_line


@dataclass(frozen=True)
class ReportArguments:
    """What is typed after `klimb report`."""

    run: RunWord
    """Run directory."""
    output: OutputFlag = None
    """File to write; by default report.html in the run directory, which is replaced."""
    overwrite: bool = False
    """Overwrite an existing file."""


def report(arguments: ReportArguments) -> None:
    """Write the report of a run, and print where it is.

    arguments: which run, and where to.
    """
    directory = RunDirectory.open(arguments.run).path
    output = arguments.output
    if output is not None and output.resolve() != (directory / FILE_NAME).resolve():
        require_unused([output], arguments.overwrite)
    write_line(write_report(directory, output))


COMMAND = Command("report", ReportArguments, report)
