"""Which view a training gets: a panel where one can be drawn, else lines."""

from __future__ import annotations

import logging

from rich.console import Console

from klimb.console import print_line, training_console
from klimb.training.progress.panel import NotebookPanel, TerminalPanel, notebook_display
from klimb.training.progress.view import SILENT, Lines, View


def view_of(progress: bool | View) -> View:
    """The view that a caller of `klimb.train` asks for.

    progress: False for nothing, True for what suits where Python runs, or a view.
    """
    if isinstance(progress, View):
        return progress
    # Standard output belongs to the caller's program.
    return view_on(training_console(error=True)) if progress else SILENT


def view_on(console: Console) -> View:
    """A panel in a terminal or a notebook; else, as in a pipe or a file, a line now and then.

    console: where to.
    """
    display = notebook_display() if console.is_jupyter else None
    if display is not None:
        return NotebookPanel(display)
    if draws_panels(console):
        return TerminalPanel(console)
    return lines_on(console)


def draws_panels(console: Console) -> bool:
    """Whether a console is a terminal that can draw a line again. console: any.

    Colours may be forced into a file; that makes no terminal of it.
    """
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def lines_on(console: Console, level: int = logging.INFO) -> Lines:
    """A view that prints its lines. console: where to. level: of `logging`, the lowest one that is printed."""
    return Lines(lambda _, line: print_line(console, line), level)


def view_of_episodes() -> View:
    """The view of a command that only runs episodes: a line on standard error that goes away, where it is a terminal.

    Standard output is for the result, which programs may read.
    """
    console = training_console(error=True)
    return view_on(console) if draws_panels(console) else SILENT
