"""Errors whose message is for the user: cause, numbers and remedy in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class KlimbError(Exception):
    """An error that the user can correct. The command line prints it in one line and exits with status 2."""


class ConfigError(KlimbError, ValueError):
    """An invalid configuration: unknown names, wrong types, values out of range."""


class EnvironmentNotFound(KlimbError, ValueError):
    """No environment has this name."""


class UntrustedEnvironment(KlimbError):
    """A file names something whose module would have to be imported, and the user has not allowed it."""


class UnsupportedSpace(KlimbError, ValueError):
    """An observation or action space for which klimb has no network or distribution."""


class MissingExtra(KlimbError, ImportError):
    """An optional package is needed but not installed."""


class PolicyFileError(KlimbError):
    """A policy file that is missing, damaged, of another format, or trained on another environment."""


class DemonstrationError(KlimbError, ValueError):
    """Demonstrations that are missing, damaged, truncated, or from another environment."""


class RunError(KlimbError):
    """A run directory that can't be used: it exists already, is not a run, or has no usable checkpoint."""


class EnvironmentFault(RunError):
    """A host environment that raises, hangs, ends its process, or returns an invalid observation or reward.

    environment_traceback: of what the environment raised, here or in a worker process, as text that begins in the
    user's own code; None where it raised nothing. In this process the exception itself is `__cause__`.
    """

    def __init__(self, message: str, environment_traceback: str | None = None) -> None:
        super().__init__(message)
        self.environment_traceback = environment_traceback


class TrainingFailed(RunError):
    """A training that can't continue: its steps, or its environment, fail again and again."""


class CheckFailed(Exception):
    """What the user asked to have checked does not hold. The command line exits with status 1."""


def environment_traceback(error: BaseException) -> str | None:
    """The traceback of the environment that an error, or one that led to it, is about; None for all other errors.

    error: that was caught.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EnvironmentFault) and cause.environment_traceback is not None:
            return cause.environment_traceback
        cause = cause.__cause__
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the most similar known name, or an empty string if none is similar.

    name: the wrong name. known: the right ones. Case is ignored.
    """
    by_lower = {word.lower(): word for word in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[match[0]]!r}?" if match else ""


def shown(value: Any, limit: int = 80) -> str:
    """A value from a file for a message: one printable line.

    value: anything. limit: characters after which it is truncated.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deeply nested containers
        text = f"<a value of type {type(value).__name__}, too long to show>"
    return one_line(text, limit)


def one_line(text: object, limit: int = 400) -> str:
    """Text, a path or another library's error as one printable line, without control characters.

    text: anything, by `str`. limit: characters after which it is truncated.
    """
    line = str(text)
    line = line if line.isprintable() else " ".join(line.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"
