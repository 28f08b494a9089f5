"""The types of checked fields as a reader needs them: with the values and the bounds that they allow."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

SIGNS = {"gt": "<", "ge": "≤", "lt": "<", "le": "≤"}
"""What stands between a bound and the value: the bound before it or, for the last two, behind it."""
TURNED = {"<": ">", "≤": "≥"}


def in_words(hint: Any) -> str:
    """A type, such as `float > 0` or `"exact" | "empirical"`. hint: of the field, with what is annotated to it."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(in_words(inside[0]), inside[1:])
    if origin is Literal:
        return " | ".join(f'"{value}"' if isinstance(value, str) else repr(value) for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(in_words, inside))
    if hint is type(None):
        return "None"
    if origin is tuple:
        return f"tuple[{', '.join('...' if part is Ellipsis else in_words(part) for part in inside)}]"
    return getattr(hint, "__name__", str(hint))


def _bounded(name: str, annotated: Iterable[Any]) -> str:
    """A type with the bounds that are annotated to it."""
    marks = [mark for one in annotated for mark in (one.metadata if isinstance(one, FieldInfo) else [one])]
    bounds = {kind: _number(getattr(mark, kind)) for mark in marks for kind in SIGNS if hasattr(mark, kind)}
    below = next((kind for kind in ("gt", "ge") if kind in bounds), None)
    above = next((kind for kind in ("lt", "le") if kind in bounds), None)
    if above is None:
        return name if below is None else f"{name} {TURNED[SIGNS[below]]} {bounds[below]}"
    lower = "" if below is None else f"{bounds[below]} {SIGNS[below]} "
    return f"{lower}{name} {SIGNS[above]} {bounds[above]}"


def _number(value: Any) -> str:
    """A bound; large powers of two as such."""
    if isinstance(value, int) and value >= 2**16 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)
