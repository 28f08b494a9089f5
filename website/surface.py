"""klimb's public names as they stand in the source: by topic, with their signatures, fields and methods."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import klimb
from docstrings import Docstring, parse
from field_types import in_words

ROOT = Path(__file__).parent.parent
STUB = ROOT / "src" / "klimb" / "__init__.pyi"
UNTITLED = "version"
"""The topic of names that stand before the first comment of the stub."""
NO_ARGUMENTS = ("self", "cls")


def topics() -> dict[str, list[str]]:
    """The public names of each topic: what the comments of `__init__.pyi` put together, in their order."""
    made: dict[str, list[str]] = {}
    topic = UNTITLED
    for line in STUB.read_text().splitlines():
        if line.startswith("# ") and not line.startswith("# ruff"):
            topic = line[2:]
        elif named := re.search(r" as (\w+)$", line):
            made.setdefault(topic, []).append(named[1])
    return made


@dataclass(frozen=True)
class Member:
    """Something that has a docstring. name: with that of its class before a dot. kind: function, method, property.

    signature: as Python would write it; empty for a property. arguments: its names, types and defaults.
    """

    name: str
    kind: str
    signature: str
    arguments: tuple[Argument, ...]
    result: str
    doc: Docstring
    source: ast.FunctionDef | None


@dataclass(frozen=True)
class Argument:
    """An argument or a field. type: as the source has it. default: the same; None where there is none."""

    name: str
    type: str
    default: str | None
    meaning: str = ""


@dataclass(frozen=True)
class Entry:
    """One public name. kind: function, class, error, enumeration or constant. members: public methods and properties.

    fields: of a dataclass and the like. bases: the public classes that it extends. file, line: where it is defined.
    """

    name: str
    kind: str
    head: Member
    fields: tuple[Argument, ...]
    members: tuple[Member, ...]
    bases: tuple[str, ...]
    file: Path
    line: int


@functools.cache
def entry(name: str) -> Entry:
    """What the source says about a public name. name: one of `klimb.__all__`."""
    thing = getattr(klimb, name)
    if inspect.isclass(thing):
        return _class_entry(name, thing)
    if not callable(thing):
        file = Path(inspect.getsourcefile(klimb._version) or "")
        doc = parse(ast.get_docstring(ast.parse(file.read_text())), ())
        return Entry(name, "constant", Member(name, "constant", name, (), "str", doc, None), (), (), (), file, 1)
    function = inspect.unwrap(thing)
    member = _member(name, "function", function)
    return Entry(name, "function", member, (), (), (), *_place(function))


def _class_entry(name: str, cls: type) -> Entry:
    """A class. What is said about its fields may stand behind each of them, or in its docstring."""
    constructor = _constructor(name, cls)
    fields = tuple(_fields(cls))
    names = [one.name for one in (*fields, *(constructor.arguments if constructor else ()))]
    doc = parse(ast.get_docstring(_tree(cls)), names)
    fields = _explained(fields, doc)
    if constructor is not None:
        both = _joined(doc, constructor.doc)
        head = dataclasses.replace(constructor, doc=both, arguments=_explained(constructor.arguments, both))
    else:
        signature = _signature_of_fields(name, fields) if dataclasses.is_dataclass(cls) else name
        head = Member(name, "class", signature, (), "", doc, None)
    bases = tuple(base.__name__ for base in cls.__mro__[1:] if _is_public(base))
    return Entry(name, _kind(cls), head, fields, tuple(_members(name, cls)), bases, *_place(cls))


def _constructor(name: str, cls: type) -> Member | None:
    """The `__init__` that a class writes itself; None for one that follows from its fields, or is inherited."""
    written = any(isinstance(node, ast.FunctionDef) and node.name == "__init__" for node in _tree(cls).body)
    return _member(name, "class", inspect.unwrap(vars(cls)["__init__"])) if written else None


def _joined(doc: Docstring, other: Docstring) -> Docstring:
    """The docstrings of a class and of its constructor as one."""
    arguments = doc.arguments | other.arguments
    return Docstring(doc.prose + other.prose, arguments, doc.returns + other.returns, doc.raises + other.raises)


def _explained(arguments: tuple[Argument, ...], doc: Docstring) -> tuple[Argument, ...]:
    return tuple(dataclasses.replace(one, meaning=one.meaning or doc.arguments.get(one.name, "")) for one in arguments)


def _kind(cls: type) -> str:
    if issubclass(cls, Exception):
        return "error"
    return "enumeration" if issubclass(cls, enum.Enum) else "class"


def _members(name: str, cls: type) -> Iterator[Member]:
    """Methods and properties with a docstring of their own, also of bases that are not public themselves."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner is not cls and (not owner.__module__.startswith("klimb") or _is_public(owner)):
            continue
        for attribute, value in vars(owner).items():
            if (attribute.startswith("_") and attribute != "__call__") or attribute in seen:
                continue
            function = _function(value)
            if function is not None and function.__doc__ and function.__module__.startswith("klimb"):
                seen.add(attribute)
                kind = "property" if isinstance(value, property | functools.cached_property) else "method"
                yield _member(f"{name}.{attribute}", kind, function)


def _is_public(cls: type) -> bool:
    return getattr(klimb, cls.__name__, None) is cls


def _function(value: Any) -> Any:
    """The function behind a method, a property or a class method; None for anything else."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    value = inspect.unwrap(getattr(value, "__func__", value)) if value is not None else None
    return value if inspect.isfunction(value) else None


def _tree(thing: Any) -> Any:
    """The syntax tree of a class or a function."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _place(thing: Any) -> tuple[Path, int]:
    return Path(inspect.getsourcefile(thing) or ""), inspect.getsourcelines(thing)[1]


def _member(name: str, kind: str, function: Any) -> Member:
    node: ast.FunctionDef = _tree(function)
    arguments = tuple(one for one in _arguments(node.args) if one.name not in NO_ARGUMENTS)
    doc = parse(function.__doc__, [one.name for one in arguments])
    arguments = _explained(arguments, doc)
    result = "" if node.returns is None else _text(node.returns)
    signature = "" if kind == "property" else _signature(name, node.args, "" if kind == "class" else result)
    return Member(name, kind, signature, arguments, result, doc, node)


def _text(node: ast.expr) -> str:
    """An expression as one writes it."""
    return ast.unparse(node).replace("'", '"')


def _arguments(args: ast.arguments) -> Iterator[Argument]:
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + [*args.defaults] + [*args.kw_defaults]
    for arg, default in zip([*plain, *args.kwonlyargs], defaults, strict=True):
        kind = "" if arg.annotation is None else _text(arg.annotation)
        yield Argument(arg.arg, kind, None if default is None else _text(default))
    for arg in filter(None, (args.vararg, args.kwarg)):
        yield Argument(arg.arg, "" if arg.annotation is None else _text(arg.annotation), None)


LONGEST = 100
"""Characters of a signature on one line."""


def _signature(name: str, args: ast.arguments, result: str) -> str:
    plain = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    keyword_only = {arg.arg for arg in args.kwonlyargs}
    stars = {arg.arg: mark for mark, arg in (("*", args.vararg), ("**", args.kwarg)) if arg is not None}
    parts = []
    for one in _arguments(args):
        if one.name in keyword_only and "*" not in parts and args.vararg is None:
            parts.append("*")
        parts.append(f"{stars.get(one.name, '')}{_argument(one)}")
    parts = [part for part in parts if part not in NO_ARGUMENTS or part not in plain]
    return _laid_out(name, parts, f" -> {result}" if result else "")


def _argument(one: Argument) -> str:
    kind = f": {one.type}" if one.type else ""
    return f"{one.name}{kind}" if one.default is None else f"{one.name}{kind} = {one.default}"


def _laid_out(name: str, parts: list[str], end: str = "") -> str:
    line = f"{name}({', '.join(parts)}){end}"
    if len(line) <= LONGEST:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _signature_of_fields(name: str, fields: tuple[Argument, ...]) -> str:
    return _laid_out(name, [one.name if one.default is None else f"{one.name}={one.default}" for one in fields])


def _fields(cls: type) -> Iterator[Argument]:
    """The annotated attributes of a class and of its bases in klimb that are not public, with their docstrings."""
    found: dict[str, Argument] = {}
    checked = hasattr(cls, "__pydantic_fields__")
    hints = typing.get_type_hints(cls, include_extras=True) if checked else {}
    kinds = {name: in_words(hint) for name, hint in hints.items()}
    for owner in reversed(cls.__mro__):
        if not owner.__module__.startswith("klimb"):
            continue
        body = _tree(owner).body
        inherited = parse(ast.get_docstring(_tree(owner)), [node.target.id for node in body if _is_field(node)])
        for node, after in zip(body, [*body[1:], None], strict=True):
            if _is_field(node):
                name = node.target.id
                default = _default(node.value)
                before = found[name].meaning if name in found else ""
                meaning = _string(after) or inherited.arguments.get(name, before)
                found[name] = Argument(name, kinds.get(name, _text(node.annotation)), default, meaning)
            elif issubclass(cls, enum.Enum) and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = Argument(node.targets[0].id, "", None, _string(after))
    yield from (one for one in found.values() if not one.name.startswith("_"))


def _default(value: ast.expr | None) -> str | None:
    """The default of a field; None where it has to be given."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "eqx.field"):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        value = given.get("default", given.get("default_factory"))
    return None if value is None else _text(value)


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _string(node: ast.AST | None) -> str:
    """The text of a string that stands alone, or is assigned; empty for anything else."""
    value = node.value if isinstance(node, ast.Expr) else node
    return inspect.cleandoc(value.value) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
