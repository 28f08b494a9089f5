"""The panel that shows a training in a terminal or a notebook: figures, a bar, and what goes on now."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.training.progress.figures import Figures, Part, Row, duration
from klimb.training.progress.view import View

MARGIN = 4
"""Columns that stay free at the right. A terminal writes `^C` where the cursor is, which is behind the last line of the
panel: without room for it (twice) the line would wrap, and the panel's first line would stay where it is."""
FRAME, GAP = 4, 3
"""Columns of the panel's border with its padding, and between two figures."""
MAX_ROWS = 20
"""Combinations of a sweep that have a row."""
SECONDS_UNTIL_TOLD = 5.0
"""An iteration that takes longer than this has its time shown."""


class Board(JupyterMixin):
    """What the panel shows, as something that rich prints at any width. clock: seconds since some moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._figures: Figures | None = None
        self._parts: dict[str, Figures] = {}
        self._row: Row = {}
        # The widest value of each figure so far: columns neither move nor come and go.
        self._widths: dict[str, int] = {}
        self._doing, self._since = "preparing", clock()

    @property
    def has_figures(self) -> bool:
        """Whether it shows the figures of a training; else it only says what goes on."""
        return bool(self._row)

    def begin(self, config: RunConfig, parts: Sequence[Part] = ()) -> None:
        """Show the figures of a training. config, parts: as for `View.begin`."""
        self._figures = Figures(config)
        self._parts = {part.name: Figures(part.config, part.copies) for part in parts}

    def doing(self, what: str) -> None:
        """Show what goes on. what: in a few words; empty for nothing but an iteration."""
        if what.partition(":")[0] != self._doing.partition(":")[0]:
            self._since = self._clock()
        self._doing = what

    def update(self, records: Sequence[Record]) -> None:
        """Show the figures of the last of new records. records: at least one."""
        if self._figures is None:
            return
        for record in records:
            for figures in (self._figures, *self._parts.values()):
                figures.take_in(record)
        self._row, self._doing, self._since = self._figures.row, "", self._clock()
        for row in [self._row, *(figures.row for figures in self._parts.values())]:
            for name, value in row.items():
                self._widths[name] = max(self._widths.get(name, 0), cell_len(name), cell_len(value))

    def end(self) -> None:
        """Nothing goes on any more."""
        self._doing, self._since = "", float("inf")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        width = max(1, options.max_width - MARGIN)
        if self._figures is None:
            yield Text(fitting(width, self._activities), style="dim")
            return
        body, subtitle = Table.grid(expand=True), None
        if self._row:
            for table in self._tables(width - FRAME):
                body.add_row(table)
            body.add_row(ProgressBar(total=1.0, completed=self._figures.fraction_done, complete_style="cyan"))
            subtitle = Text(fitting(width - FRAME - 2, self._activities), style="dim")
        else:
            body.add_row(Text(fitting(width - FRAME, self._activities), style="dim"))
        yield Panel(
            body,
            title=Text(fitting(width - FRAME - 2, self._figures.titles)) or None,
            title_align="left",
            subtitle=subtitle or None,
            subtitle_align="left",
            width=width,
        )

    def _tables(self, room: int) -> Iterator[Table]:
        """The figures; of a sweep those that are common to its combinations, and a row for each of these."""
        assert self._figures is not None
        order, common = self._figures.by_importance, self._figures.common
        if not self._parts:
            yield self._table(columns_within(room, self._widths, order), {"": self._row})
            return
        shared = columns_within(room, self._widths, [name for name in order if name in common])
        yield self._table(shared, {"": self._row})
        rows = {name: figures.row for name, figures in list(self._parts.items())[:MAX_ROWS]}
        room_of_names = min(max(map(cell_len, rows)), room // 2)
        own = [name for name in order if name not in common]
        names = columns_within(room - room_of_names - GAP, self._widths, own)
        yield self._table(names, rows, room_of_names)
        if len(self._parts) > MAX_ROWS:
            yield self._table([], {f"and {len(self._parts) - MAX_ROWS} more": {}}, room)

    def _table(self, names: Sequence[str], rows: Mapping[str, Row], room_of_labels: int = 0) -> Table:
        """Some figures. names: of the columns. rows: by their labels. room_of_labels: columns for these; 0 for none."""
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        labelled = room_of_labels > 0
        if labelled:
            table.add_column(width=room_of_labels, no_wrap=True, overflow="ellipsis")
        for name in names:
            table.add_column(width=self._widths[name], no_wrap=True)
        if names:
            table.add_row(*([Text("")] if labelled else []), *(Text(name, style="dim") for name in names))
        for label, row in rows.items():
            cells = (Text(row[name], style="bold") for name in names)
            table.add_row(*([Text(label)] if labelled else []), *cells)
        return table

    @property
    def _activities(self) -> tuple[str, ...]:
        """What goes on, and for how long; and in fewer words."""
        seconds = self._clock() - self._since
        if self._doing:
            return f"{self._doing} … {duration(max(0.0, seconds))}", f"{self._doing} …"
        if self._figures is not None and seconds >= SECONDS_UNTIL_TOLD:
            return f"in iteration {self._figures.iteration + 1} for {duration(seconds)}", duration(seconds)
        return ()


def fitting(room: int, texts: Sequence[str]) -> str:
    """The first of some texts that fits; empty where none does.

    room: columns of the terminal. texts: each shorter than the one before.
    """
    return next((text for text in texts if cell_len(text) <= room), "")


def columns_within(room: int, widths: dict[str, int], by_importance: Sequence[str]) -> list[str]:
    """The columns that are shown, in their order: the most important ones that fit, and none of them cut.

    room: columns of the terminal. widths: of each column, in their order. by_importance: the most important one first.
    """
    chosen: set[str] = set()
    remaining = room + GAP
    for name in by_importance:
        if name in widths and widths[name] + GAP <= remaining:
            chosen.add(name)
            remaining -= widths[name] + GAP
    return [name for name in widths if name in chosen]


class PanelView(View):
    """A panel that is drawn again whenever there is something new. clock: seconds since some moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = Board(clock)

    def begin(self, config: RunConfig, iteration: int, directories: Sequence[Path], parts: Sequence[Part] = ()) -> None:
        self.board.begin(config, parts)
        self.draw()

    def doing(self, what: str) -> None:
        self.board.doing(what)
        self.draw()

    def episodes(self, done: int, total: int) -> None:
        self.board.doing(f"evaluating: {done} of {total} episodes" if done < total else "")
        self.draw()

    def update(self, records: Sequence[Record]) -> None:
        self.board.update(records)
        self.draw()

    def end(self, *, finished: bool) -> None:
        self.board.end()
        self.draw()

    def draw(self) -> None:
        """Draw the board as it is now."""


class TerminalPanel(PanelView):
    """The panel in a terminal, drawn some times a second by a thread. console: where to."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._live = Live(self.board, console=console, refresh_per_second=4)

    def __enter__(self) -> TerminalPanel:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.end()
        # The figures of a training stay in the terminal; what went on does not.
        self._live.transient = not self.board.has_figures
        self._live.stop()


class NotebookPanel(PanelView):
    """The panel below a cell of a notebook. display: `IPython.display.display`."""

    def __init__(self, display: Callable[..., Any], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._display, self._clock = display, clock
        self._handle: Any = None
        self._drawn = -float("inf")

    def __enter__(self) -> NotebookPanel:
        self._handle = self._display(self.board, display_id=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.end()
        self._handle.update(self.board)

    def draw(self) -> None:
        # A notebook keeps up with a few pictures a second.
        if self._clock() - self._drawn >= 0.25:
            self._drawn = self._clock()
            self._handle.update(self.board)


def notebook_display() -> Callable[..., Any] | None:
    """`IPython.display.display`; None where there is none."""
    try:
        return importlib.import_module("IPython.display").display
    except (ImportError, AttributeError):
        return None
