"""Checked fields: the kinds of numbers that options and rules have, and how both are built from plain values."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from klimb.errors import ConfigError, nearest, one_line, shown

# Options and rules are pydantic dataclasses: their fields are checked when they are made, print, compare, serialise
# and become the command line's flags. Misspelt fields and NaN are refused.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
# A configuration may be a stranger's. The upper bounds keep it from asking for more than a large machine has.
Count = Annotated[int, Field(ge=1, le=2**20)]
Iterations = Annotated[int, Field(ge=1, lt=2**32)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
MAX_NAME = 200
"""Characters of a name in a message or a configuration."""


def build(cls: type, fields: dict[str, Any]) -> Any:
    """An instance of a configuration class from plain values.

    cls: a pydantic dataclass: `klimb.TrainOptions`, or a rule.
    fields: values by field name; the text "none" stands for None, which TOML does not have.

    Raises ConfigError, which names the first field that is unknown or wrong.
    """
    fields = {key: (None if value == "none" else value) for key, value in fields.items()}
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"{cls.__name__} has no option {shown(name)}{nearest(name[:MAX_NAME], known)}")
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first thing pydantic found wrong, in one line: which option, what it was, what it should be."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = one_line(".".join(str(part) for part in first["loc"]), 80)
    message = one_line(first["msg"])
    if not name:  # about several fields together: our own words
        return message.removeprefix("Value error, ")
    return f"{name} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"
