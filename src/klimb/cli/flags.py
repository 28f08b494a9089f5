"""From command-line words to checked objects: tyro makes the flags out of the fields, errors become one line."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from pydantic import ValidationError
from tyro import _errors as events  # the only way tyro offers to word its errors; hence its pin below 1.1

from klimb.errors import ConfigError, nearest
from klimb.fields import explain

T = TypeVar("T")


def parse(command: type[T], arguments: Sequence[str], *, default: T, program: str) -> T:
    """An instance of a dataclass from flags named after its fields. ConfigError, one line, when one is wrong."""

    def report(event: events.ParseErrorEvent) -> NoReturn:
        raise ConfigError(_message(event, _flags(default), program))

    # tyro writes `None`; the configuration file, and whoever types, writes `none`.
    words = ["None" if word == "none" else word for word in arguments]
    with events.on_parse_error(report):
        return tyro.cli(command, args=words, default=default, prog=program)


def _message(event: events.ParseErrorEvent, flags: list[str], program: str) -> str:
    match event:
        case events.UnrecognizedArgs(tokens=tokens):
            token = tokens[0].split("=")[0]
            if token.startswith("-"):
                return f"there is no flag {token}{nearest(token.replace('_', '-'), flags)} (see {program} --help)"
            return f"{token!r} is one word too many (see {program} --help)"
        case events.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{_flag(argument)} is one of {', '.join(choices)}; not {value!r}{nearest(value, choices)}"
        case events.BadValue(argument=argument):
            return f"{_flag(argument)} needs a value"
        case events.InstantiationFailure(message=message, argument=argument):
            # tyro calls this while it handles the exception: what pydantic has to say is in its context.
            cause: BaseException | None = sys.exception()
            while cause is not None and not isinstance(cause, ValidationError):
                cause = cause.__context__
            if isinstance(cause, ValidationError):
                return explain(cause)
            plain = " ".join(re.sub(r"\[/?[a-z ]+\]", "", str(message)).split())
            return f"{_flag(argument)}: {plain}" if argument is not None else plain
    return f"the arguments can't be understood (see {program} --help)"


def _flag(argument: Any) -> str:
    return argument.lowered.name_or_flags[0]


def _flags(value: Any) -> list[str]:
    """Every flag of a command: the names of its fields, and of the fields of those that are dataclasses."""
    flags = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        flags += _flags(inner) if dataclasses.is_dataclass(inner) else ["--" + field.name.replace("_", "-")]
    return flags
