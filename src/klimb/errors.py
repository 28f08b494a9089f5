"""Errors whose message is for the user: cause, numbers and remedy in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from klimb.other_names import OTHER_NAMES, REMARKS, WITHOUT_COUNTERPART

SIMILAR = 0.72
"""Part that a wrong name has in common with a right one that it is taken for."""


class KlimbError(Exception):
    """An error that the user can correct. The command line prints it in one line and exits with status 2."""


class ConfigError(KlimbError, ValueError):
    """An invalid configuration: unknown names, wrong types, values out of range."""


class WrongObject(KlimbError, TypeError):
    """An object of another kind than the function takes: a name or a class for an instance, a run for a policy."""


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


class ExportError(KlimbError):
    """An exported policy that computes something else than the policy that it was made of."""


class DemonstrationError(KlimbError, ValueError):
    """Demonstrations that are missing, damaged, truncated, or from another environment."""


class RunError(KlimbError):
    """A run directory that can't be used: it exists already, is not a run, or has no usable checkpoint."""


class NameTaken(RunError):
    """A new directory that exists already."""


class EnvironmentFault(RunError):
    """A host environment that raises, hangs, ends its process, or returns an invalid observation or reward.

    message: one line for people. environment_traceback: of what the environment raised, here or in a worker process, as
    text that begins in the user's own code; None where it raised nothing. In this process the exception itself is
    `__cause__`.
    """

    def __init__(self, message: str, environment_traceback: str | None = None) -> None:
        super().__init__(message)
        self.environment_traceback = environment_traceback


class TrainingFailed(RunError):
    """A training that can't continue: its steps, or its environment, fail again and again.

    message: one line for people. directories: of the runs that were written.
    """

    def __init__(self, message: str, directories: Sequence[Path] = ()) -> None:
        super().__init__(message)
        self.directories = tuple(directories)


class PeerLost(TrainingFailed):
    """Another process of a training in several processes is gone, and this one can't go on without it."""


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
    """`; did you mean 'x'?` for the known name that a wrong one is meant for; empty if there is none.

    What another library calls one of them is recognised: `; total_timesteps is env_steps here`.

    name: the wrong name. known: the right ones, which may be flags. Case, dashes, and `_` for `-` are ignored; the
    version of an environment (`-v5`) counts only between names that are equally near without it.
    """
    by_word = {_word(one): one for one in known}
    word = _word(name)
    for other in OTHER_NAMES.get(word, ()):
        if other in by_word:
            remark = f", {REMARKS[word]}" if word in REMARKS else ""
            return f"; {name} is {by_word[other]} here{remark}"
    if word in WITHOUT_COUNTERPART:
        return f"; {name} has no counterpart here: {WITHOUT_COUNTERPART[word]}"

    def similarity(other: str) -> tuple[float, float, str]:
        return _ratio(_unversioned(word), _unversioned(other)), _ratio(word, other), other

    match = max(by_word, key=similarity, default="")
    return f"; did you mean {by_word[match]!r}?" if match and similarity(match)[0] >= SIMILAR else ""


def _word(name: str) -> str:
    """A name as it is compared: of a flag, an option or an environment."""
    return name.lower().lstrip("-").replace("-", "_")


def _unversioned(word: str) -> str:
    return re.sub(r"_v\d+$", "", word)


def _ratio(a: str, b: str) -> float:
    """The part of two words that they have in common, in order: 1 for the same word."""
    return difflib.SequenceMatcher(None, a, b).ratio()


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


def printable(text: str) -> str:
    """Text of several lines without what could move the cursor, colour the terminal, or turn its direction.

    text: anything. Line ends and tabs stay; every other unprintable character is written as its escape.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text.replace("\r\n", "\n"))
