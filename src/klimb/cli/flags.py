"""The words and flags of a command, read off its dataclass: for the nearest name of a wrong one, and for completion."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro._docstrings import get_field_docstring
from tyro.conf import Positional

from klimb.fields import plain_types


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command, or a word before its flags."""

    field: str
    """The field that it fills."""
    names: tuple[str, ...]
    """How it is typed, `--name`; of a word, its name in the usage."""
    help: str
    """What it means."""
    values: tuple[str, ...] | None
    """The values that it can have, where they can be counted; () for a flag without a value; None for any."""
    file: bool
    """Whether its value is a file or a directory."""
    positional: bool
    """Whether it is a word before the flags."""


def flags_of(arguments: type) -> Iterator[Flag]:
    """Every word and flag of a command, those of the dataclasses inside it included.

    arguments: the dataclass of a command's arguments, or a part of one: a rule, `TrainOptions`.
    """
    hints = typing.get_type_hints(arguments, include_extras=True)
    for field in dataclasses.fields(arguments):
        hint = hints[field.name]
        kinds = plain_types(hint)
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if inner is not None:
            yield from flags_of(inner)  # type: ignore[arg-type]
        elif kinds != [Any]:
            metadata = _metadata(hint)
            positional = Positional in metadata
            name = "--" + field.name.replace("_", "-")
            aliases = [alias for mark in metadata for alias in getattr(mark, "aliases", None) or ()]
            names = (name, *aliases)
            values = tuple(value for kind in kinds for value in typing.get_args(kind) if _is_literal(kind))
            if bool in kinds:
                names = (*names, name.replace("--", "--no-", 1))
            elif positional:
                names = (next(mark.metavar for mark in metadata if getattr(mark, "metavar", None)),)
            elif values and type(None) in kinds:
                values = (*values, "none")
            text = get_field_docstring(arguments, field.name, ()) or ""
            yield Flag(
                field=field.name,
                names=names,
                help=" ".join(text.split()),
                values=() if bool in kinds else values or None,
                file=Path in kinds,
                positional=positional,
            )


def _metadata(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal
