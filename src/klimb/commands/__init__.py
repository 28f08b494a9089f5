"""What each command does, one file a command. `klimb.cli` chooses the command and words its errors."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def command(name: str) -> Callable[[list[str]], None]:
    """The function of a command: `klimb.commands.NAME` is imported when it is wanted, and nothing before."""
    function = "list_" if name == "list" else name
    return getattr(importlib.import_module(f"klimb.commands.{name}"), function)
