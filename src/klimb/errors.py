"""Errors whose message is meant for the person at the keyboard: cause, numbers and remedy in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class KlimbError(Exception):
    """Something the caller can mend. The command line prints it in one line and exits with 2."""


class ConfigError(KlimbError, ValueError):
    """A configuration that does not say a valid run: unknown names, wrong types, values out of range."""


class EnvironmentNotFound(KlimbError, ValueError):
    """No environment has this name."""


class UntrustedEnvironment(KlimbError):
    """A file names an environment whose name would import a module, and nobody has said that it may."""


class UnsupportedSpace(KlimbError, ValueError):
    """An observation or action space that klimb has no network or distribution for."""


class MissingExtra(KlimbError, ImportError):
    """An optional package is needed and not installed."""


class PolicyFileError(KlimbError):
    """A policy file that is missing, damaged, of another format, or trained on another environment."""


class DemonstrationError(KlimbError, ValueError):
    """Demonstrations that are missing, damaged, cut off, or from another environment."""


class RunError(KlimbError):
    """A run directory that can't be used as asked: exists already, is none, or holds no usable checkpoint."""


class EnvironmentFault(RunError):
    """A host environment that raises, hangs, ends its process, or answers with what is no observation or reward."""


class TrainingFailed(RunError):
    """A training that can't go on: its steps, or its environment, fail one time after the other."""


class CheckFailed(Exception):
    """A statement of the theory does not hold: a failure of klimb's, not a mistake of the user's."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to a wrong one, whatever its case; or nothing."""
    by_lower = {word.lower(): word for word in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[match[0]]!r}?" if match else ""


def shown(value: Any, limit: int = 80) -> str:
    """A value out of a file as part of a message: one printable line, cut when it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or what holds itself deeply
        text = f"<a value of type {type(value).__name__}, too long to show>"
    return one_line(text, limit)


def one_line(text: object, limit: int = 400) -> str:
    """Text, or a path, or what another library says of a file, on one printable line, cut when it is long."""
    line = str(text)
    line = line if line.isprintable() else " ".join(line.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"
