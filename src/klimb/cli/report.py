"""klimb report RUN: the report, written again."""

from __future__ import annotations

from dataclasses import dataclass

from klimb.cli.parser import Command, OutputFlag, RunWord
from klimb.report.page import write_report
from klimb.runs.directory import RunDirectory


@dataclass(frozen=True)
class ReportArguments:
    """What is typed after `klimb report`."""

    run: RunWord
    """Run directory."""
    output: OutputFlag = None
    """File to write; by default report.html in the run."""


def report(arguments: ReportArguments) -> None:
    """Write the report of a run, and print where it is.

    arguments: which run, and where to.
    """
    print(write_report(RunDirectory.open(arguments.run).path, arguments.output))


COMMAND = Command("report", ReportArguments, report)
