"""Ctrl-C in front of the live panel: the terminal writes ^C into it, and nothing of an older panel is left over."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from klimb import TRPO, RunConfig, TrainOptions
from klimb.cli.progress import Progress

RECORD = {
    "iteration": 3, "env_steps": 6144, "steps_per_second": 1e5, "episode_return": 20.0, "kl_old_new": 0.01,
    "status": "ACCEPTED", "wall_time": 1.0,
}  # fmt: skip


class Terminal:
    """The lines of a terminal of some width, which wraps what is longer."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, flags=re.DOTALL):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self._down()
            elif re.fullmatch(r"\x1b\[\d*A", token):
                self.row = max(self.row - int(token[2:-1] or 1), 0)
            elif token == "\x1b[2K":
                self.lines[self.row] = ""
            elif not token.startswith("\x1b"):
                if self.column == self.width:
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_an_interrupt_leaves_one_panel(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    progress = Progress(RunConfig("CartPole-v1", TRPO(), TrainOptions()), console)
    with progress:
        for echo in ("^C", "^C", ""):
            progress.update([RECORD])
            progress._live.refresh()
            console.file.write(echo)
    terminal = Terminal(width)
    terminal.write(console.file.getvalue())
    text = "\n".join(terminal.lines)
    assert text.count("╭") == text.count("╰") == 1, text
    assert "TRPO on CartPole-v1" in text


def test_the_terminal_of_this_test_would_show_a_doubled_border():
    """A line as wide as the terminal, with ^C behind it, drawn again from one line up."""
    terminal = Terminal(4)
    terminal.write("╭──╮\n╰──╯")
    terminal.write("^C")
    terminal.write("\r\x1b[2K\x1b[1A\x1b[2K" + "╭──╮\n╰──╯")
    assert terminal.lines == ["╭──╮", "╭──╮", "╰──╯"]
