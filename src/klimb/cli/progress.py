"""What a person watching a training sees: one live panel in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from klimb.improve.rule import is_offline, rule_title, traits_of
from klimb.runs.config import RunConfig
from klimb.runs.metrics import Record
from klimb.training.length import length_of
from klimb.types import Status

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows records as they come: iteration, env steps, steps/s, return, KL against its limit, time left.

    config: of the run. console: where to print.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self._config, self._console = config, console
        self._returns: deque[float] = deque(maxlen=20)
        self._rejected = 0
        self._start = time.perf_counter()
        self._length = length_of(config)
        self._first_done: float | None = None
        self._last_line = -float("inf")
        # The last row that has not been printed: a training may end, or be stopped, before its last iteration.
        self._unprinted: dict[str, str] | None = None
        self._live = Live(Text("compiling …", style="dim"), console=console, refresh_per_second=8)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        elif self._unprinted is not None:
            self._print(self._unprinted)

    def update(self, records: list[Record]) -> None:
        """Show the last of the new records.

        records: one per iteration, in order.
        """
        for record in records:
            self._rejected += sum(Status[status].rejected for status in _seeds(record["status"]))
            value = _mean(record["episode_return"])
            if value is not None:
                self._returns.append(value)
        last = records[-1]
        row = self._row(last)
        if self._console.is_terminal:
            self._live.update(self._panel(last, row))
        elif time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES or self._done(last) == 1:
            self._print(row)
        else:
            self._unprinted = row

    def _print(self, row: dict[str, str]) -> None:
        self._last_line, self._unprinted = time.perf_counter(), None
        self._console.print("  ".join(f"{name} {value}" for name, value in row.items()), highlight=False)

    def _done(self, record: Record) -> float:
        return float(self._length.fraction_done(record["iteration"], record["env_steps"]))

    def _row(self, record: Record) -> dict[str, str]:
        traits = traits_of(self._config.rule)
        limit, _, direction = traits.kl
        kl = _mean(record[f"kl_{direction}"])
        watched = {traits.metrics[name].title.lower(): _short(_mean(record[name])) for name in traits.watched}
        if is_offline(self._config.rule):
            return {
                "epoch": f"{record['iteration']}/{self._config.num_iterations}",
                "rows/s": f"{record['steps_per_second']:,.0f}",
                **watched,
                "time left": self._time_left(record),
            }
        return {
            "iteration": f"{record['iteration']}" + (f"/{total}" if (total := self._length.iterations) else ""),
            "env steps": f"{record['env_steps']:,}",
            "steps/s": f"{record['steps_per_second']:,.0f}",
            "return": f"{np.mean(self._returns):.1f}" if self._returns else "–",
            "KL": ("–" if kl is None else f"{kl:.4f}") + (f" / {limit:g}" if limit else ""),
            **watched,
            "rejected": str(self._rejected),
            "time left": self._time_left(record),
        }

    def _time_left(self, record: Record) -> str:
        done = self._done(record)
        # From after the first call on: that one compiled.
        if self._first_done is None:
            self._start, self._first_done = time.perf_counter(), done
            return "–"
        if done == self._first_done:  # the seeds that still train are behind the mean of all
            return "–"
        seconds = time.perf_counter() - self._start
        left = round(seconds / (done - self._first_done) * (1 - done))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"

    def _panel(self, record: Record, row: dict[str, str]) -> Panel:
        table = Table.grid(padding=(0, 3))
        for _ in row:
            table.add_column()
        table.add_row(*(Text(name, style="dim") for name in row))
        table.add_row(*(Text(value, style="bold") for value in row.values()))
        body = Table.grid(expand=True)
        body.add_row(table)
        body.add_row(ProgressBar(total=1.0, completed=self._done(record), complete_style="cyan"))
        seeds = self._config.options.num_seeds
        suffix = f" · {seeds} seeds" if seeds > 1 else ""
        # The terminal echoes Ctrl-C as ^C behind the panel. Without room for it the line would wrap, and what is drawn
        # again would begin one line too low: the old upper border would stay.
        width = self._console.width - len("^C^C")
        return Panel(
            body,
            width=width,
            title=f"{rule_title(self._config.rule)} on {self._config.env}{suffix}",
            title_align="left",
        )


def _short(value: float | None) -> str:
    """A number of any size in few characters."""
    return "–" if value is None else f"{value:.4g}"


def _seeds(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mean(value: Any) -> float | None:
    """Mean over the seeds that have a value."""
    numbers = [number for number in _seeds(value) if number is not None]
    return float(np.mean(numbers)) if numbers else None
