"""Checked fields: the kinds of numbers that options and rules have, and how both are built from plain values."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from klimb.errors import ConfigError, nearest, one_line, shown

T = TypeVar("T", bound=type)

# Options and rules are pydantic dataclasses (`checked`): their fields are checked when they are made, print, compare,
# serialise and become the command line's flags. Misspelt fields and NaN are refused.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
# A configuration may be a stranger's. The upper bounds keep it from asking for more than a large machine has.
Count = Annotated[int, Field(ge=1, le=2**20)]
Iterations = Annotated[int, Field(ge=1, lt=2**32)]
Width = Annotated[int, Field(ge=1, le=2**16)]
LayerSizes = Annotated[
    tuple[Width, ...],
    Field(max_length=16),
    # One layer may be written as a number.
    BeforeValidator(lambda sizes: (sizes,) if isinstance(sizes, int) else sizes),
]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
MAX_NAME = 200
"""Characters of a name in a message or a configuration."""
MAX_LISTED = 16
"""Names that a message lists: those of a rule, but not all options of a training."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def checked(cls: T) -> T:
    """A class decorator: a frozen dataclass whose fields are checked by their annotations when an instance is made.

    cls: the class. What is wrong with a field is a ConfigError, in one line; also of `dataclasses.replace`.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls)
    made.__init__ = _one_error(made.__init__, made)
    return made


def _one_error(init: Callable[..., None], cls: type) -> Callable[..., None]:
    """The constructor of a pydantic dataclass, which raises ConfigError."""

    @functools.wraps(init)
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    return __init__


def build(cls: type, fields: dict[str, Any]) -> Any:
    """An instance of a configuration class from plain values.

    cls: a pydantic dataclass: `klimb.TrainOptions`, or a rule.
    fields: values by field name; the text "none" stands for None, which TOML does not have.

    Raises ConfigError, which names the first field that is unknown or wrong.
    """
    fields = {key: (None if value == "none" else value) for key, value in fields.items()}
    for name in fields:
        if name not in _names(cls):
            raise ConfigError(unknown_field(cls, name))
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        raise ConfigError(explain(error, cls)) from None


def unknown_field(cls: type, name: str) -> str:
    """The message about a field that a configuration class does not have, with the name that it may be meant for.

    cls: the class. name: of the field.
    """
    known = _names(cls)
    hint = nearest(name[:MAX_NAME], known)
    if not hint and len(known) <= MAX_LISTED:
        hint = f" (it has {', '.join(known)}; what is no hyperparameter is given to klimb.train)"
    return f"{cls.__name__} has no option {shown(name)}{hint}"


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def explain(error: ValidationError, cls: type | None = None) -> str:
    """The first thing pydantic found wrong, in one line: which option, what it was, what it should be.

    error: of pydantic. cls: the class that was made, where its fields are to be suggested.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    if cls is not None and first["type"] == "unexpected_keyword_argument":
        return unknown_field(cls, str(first["loc"][0]))
    if cls is not None and first["type"] in ("unexpected_positional_argument", "missing_argument"):
        return f"{cls.__name__}({', '.join(_names(cls))}): {first['msg'][0].lower()}{first['msg'][1:]}"
    at = list(first["loc"])
    if cls is not None and at and isinstance(at[0], int):  # an argument without a name
        at[0] = _names(cls)[at[0]]
    name = one_line(".".join(map(str, at)), 80)
    message = one_line(first["msg"])
    if not name:  # about several fields together: our own words
        return message.removeprefix("Value error, ")
    return f"{name} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"


def plain_types(hint: Any) -> list[Any]:
    """The types that an annotation allows, without what is annotated to them. hint: the annotation of a field."""
    if typing.get_origin(hint) is Annotated:
        return plain_types(typing.get_args(hint)[0])
    if _is_union(hint):
        return [kind for part in typing.get_args(hint) for kind in plain_types(part)]
    if typing.get_origin(hint) is tuple and Path in typing.get_args(hint):
        return [Path]
    return [hint]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, type(int | str))
