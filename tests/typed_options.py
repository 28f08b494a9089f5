"""Writes src/klimb/runs/typed_options.py: what `klimb.train(**options)` takes, for type checkers and editors.

python tests/typed_options.py
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

from tyro._docstrings import get_field_docstring

from klimb.runs.config import TrainOptions

FILE = Path(__file__).parent.parent / "src" / "klimb" / "runs" / "typed_options.py"
OBJECTS = ("policy", "critic", "demonstrations")
"""Options that are arguments of `klimb.train` too, which takes objects for them."""

HEAD = '''\
"""The options of a training as types of keyword arguments: for type checkers and editors.

Written by tests/typed_options.py from `klimb.TrainOptions`, which checks the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class TrainOptionsDict(TypedDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.train` takes by name."""

'''
SWEEP = '''

class SweepOptionsDict(TrainOptionsDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.sweep` takes by name: all of them."""

'''


def written(kind: Any) -> str:
    """A type as it is written. Sizes of layers and names may be given as any sequence, or as a single one."""
    if kind is type(None):
        return "None"
    if typing.get_origin(kind) is Literal:
        return "Literal[" + ", ".join(f'"{value}"' for value in typing.get_args(kind)) + "]"
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        one = written(parts[0])
        return f"Sequence[{one}] | {one}" if ... in parts else f"tuple[{', '.join(map(written, parts))}]"
    if typing.get_args(kind):
        return " | ".join(map(written, typing.get_args(kind)))
    return kind.__name__


def text() -> str:
    """The whole file."""
    kinds = typing.get_type_hints(TrainOptions)
    parts: dict[bool, str] = {False: "", True: ""}
    for field in dataclasses.fields(TrainOptions):
        meaning = " ".join((get_field_docstring(TrainOptions, field.name, ()) or "").split())
        line = f"    {field.name}: {written(kinds[field.name])}\n"
        if len(line) > 120:
            values = "".join(f'        "{value}",\n' for value in typing.get_args(kinds[field.name]))
            line = f"    {field.name}: Literal[\n{values}    ]\n"
        parts[field.name in OBJECTS] += line + f'    """{meaning}"""\n'
    return HEAD + parts[False] + SWEEP + parts[True]


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
