"""What a person watching a sweep sees: a line for every value that is being trained, with its KL against its limit."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from klimb.cli.progress import SECONDS_BETWEEN_LINES
from klimb.improve.rule import is_offline, rule_title, traits_of
from klimb.runs.metrics import Record
from klimb.runs.sweep_file import Member, Sweep
from klimb.training.length import length_of
from klimb.types import Status

MAX_NAMES = 4
LAST_RETURNS = 20
"""Iterations over which the return that is shown is averaged."""


class _Value:
    """One combination of values: what its seeds have done so far. member: of the sweep."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._returns: deque[float] = deque(maxlen=LAST_RETURNS)
        self._rejected = 0

    def take_in(self, record: Record, seeds: slice) -> None:
        """Add a record. seeds: those of this combination among all."""
        self._rejected += sum(Status[name].rejected for name in _of(record["status"], seeds))
        value = _mean(_of(record["episode_return"], seeds))
        if value is not None:
            self._returns.append(value)

    def cells(self, record: Record, seeds: slice) -> dict[str, str]:
        """What is shown of it, by name. record: the newest. seeds: those of this combination among all."""
        traits = traits_of(self.member.config.rule)
        limit, _, direction = traits.kl
        kl = _mean(_of(record[f"kl_{direction}"], seeds))
        watched = {traits.metrics[name].title.lower(): _mean(_of(record[name], seeds)) for name in traits.watched}
        shown = {name: "–" if value is None else f"{value:.4g}" for name, value in watched.items()}
        if is_offline(self.member.config.rule):
            return shown
        return {
            "return": f"{np.mean(self._returns):.1f}" if self._returns else "–",
            "KL": ("–" if kl is None else f"{kl:.4f}") + (f" / {limit:g}" if limit else ""),
            **shown,
            "rejected": str(self._rejected),
        }


class SweepProgress:
    """Shows records as they come: a panel with a row for every value in a terminal, lines now and then elsewhere.

    plan: of the sweep. console: where to print.
    """

    def __init__(self, plan: Sweep, console: Console) -> None:
        self._plan, self._console = plan, console
        self._total = len(plan.members())
        self._begun: set[str] = set()
        self._values: list[_Value] = []
        self._live: Live | None = None
        self._last_line = -float("inf")
        # The last record that has not been printed.
        self._unprinted: Record | None = None

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def begin(self, members: list[Member]) -> None:
        """Begin to show some combinations, whose records come from now on.

        members: that share the next program, in the order of its copies.
        """
        self.end()
        self._values = [_Value(member) for member in members]
        self._begun |= {member.name for member in members}
        self._last_line = -float("inf")
        if self._console.is_terminal:
            self._live = Live(Text("compiling …", style="dim"), console=self._console, refresh_per_second=8)
            self._live.start()
        else:
            names = ", ".join(member.name for member in members[:MAX_NAMES])
            more = f" and {len(members) - MAX_NAMES} more" if len(members) > MAX_NAMES else ""
            self._print(f"training     {names}{more} ({self._counted()})")

    def end(self) -> None:
        """The combinations that are shown have been trained, or stopped."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._unprinted is not None:
            self._print_values(self._unprinted)
        self._unprinted = None

    def update(self, records: list[Record]) -> None:
        """Show the last of the new records.

        records: one per iteration, in order, with a value for every seed of every combination.
        """
        for record in records:
            for value, seeds in self._parts():
                value.take_in(record, seeds)
        last = records[-1]
        if self._live is not None:
            self._live.update(self._panel(last))
        elif time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES or self._done(last) == 1:
            self._print_values(last)
        else:
            self._unprinted = last

    def _parts(self) -> list[tuple[_Value, slice]]:
        each = self._plan.config.options.num_seeds
        return [(value, slice(i * each, (i + 1) * each)) for i, value in enumerate(self._values)]

    def _counted(self) -> str:
        return f"{len(self._begun)} of {self._total} combinations begun"

    def _done(self, record: Record) -> float:
        length = length_of(self._values[0].member.config)
        return float(length.fraction_done(record["iteration"], record["env_steps"]))

    def _common(self, record: Record) -> dict[str, str]:
        """What all combinations of a program share."""
        config = self._values[0].member.config
        offline, total = is_offline(config.rule), length_of(config).iterations
        name = "epoch" if offline else "iteration"
        common = {name: f"{record['iteration']}" + (f"/{total}" if total else "")}
        if not offline:
            common["env steps"] = f"{record['env_steps']:,}"
        return {**common, "rows/s" if offline else "steps/s": f"{record['steps_per_second']:,.0f}"}

    def _print_values(self, record: Record) -> None:
        self._last_line, self._unprinted = time.perf_counter(), None
        width = max(len(value.member.name) for value in self._values)
        for value, seeds in self._parts():
            cells = {**self._common(record), **value.cells(record, seeds)}
            self._print(f"{value.member.name:<{width}}  " + "  ".join(f"{name} {text}" for name, text in cells.items()))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _panel(self, record: Record) -> Panel:
        table = Table.grid(padding=(0, 3))
        rows = [(value.member.name, value.cells(record, seeds)) for value, seeds in self._parts()]
        headings = ["", *rows[0][1]]
        for _ in headings:
            table.add_column(no_wrap=True)
        table.add_row(*(Text(name, style="dim") for name in headings))
        for name, cells in rows:
            table.add_row(Text(name), *(Text(text, style="bold") for text in cells.values()))
        config = self._values[0].member.config
        seeds = config.options.num_seeds
        title = f"{rule_title(config.rule)} on {config.env}" + (f" · {seeds} seeds" if seeds > 1 else "")
        common = "  ".join(f"{name} {text}" for name, text in self._common(record).items())
        return Panel(
            table, title=title, title_align="left", subtitle=f"{common} · {self._counted()}", subtitle_align="left"
        )


def _of(value: Any, seeds: slice) -> list[Any]:
    """The values of some seeds; of a program with a single copy a record holds its value alone."""
    return value[seeds] if isinstance(value, list) else [value]


def _mean(values: list[Any]) -> float | None:
    """Mean over the seeds that have a value."""
    numbers = [number for number in values if number is not None]
    return float(np.mean(numbers)) if numbers else None
