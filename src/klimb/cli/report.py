"""klimb report RUN: the report of a run or a search, written again."""

from __future__ import annotations

from dataclasses import dataclass

from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.report.html import FILE_NAME
from klimb.report.page import write_report
from klimb.report.tuning_page import write_tuning_report
from klimb.runs.directory import RunDirectory
from klimb.runs.tune_file import is_search
from klimb.terminal import write_line


@dataclass(frozen=True)
class ReportArguments:
    """What is typed after `klimb report`."""

    run: RunWord
    """Run directory, or the directory of a search."""
    output: OutputFlag = None
    """File to write; by default report.html in the run directory, which is replaced."""
    overwrite: bool = False
    """Overwrite an existing file."""


def report(arguments: ReportArguments) -> None:
    """Write the report of a run or a search, and print where it is.

    arguments: which run, and where to.
    """
    searched = is_search(arguments.run)
    directory = arguments.run if searched else RunDirectory.open(arguments.run).path
    output = arguments.output
    if output is not None and output.resolve() != (directory / FILE_NAME).resolve():
        require_unused([output], arguments.overwrite)
    write_line((write_tuning_report if searched else write_report)(directory, output))


COMMAND = Command("report", ReportArguments, report)
