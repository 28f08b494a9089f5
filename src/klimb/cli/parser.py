"""The parser of all commands: from words typed to a checked object, and from a mistake to one line.

The fields of a dataclass are the words and flags of a command; tyro reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import tyro
from pydantic import ValidationError
from tyro import _errors as events  # the only way tyro offers to word its errors; hence its pin below 1.1
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from klimb.cli.commands import COMMANDS, usage
from klimb.cli.flags import flags_of
from klimb.environments.registry import GIVEN, PREFIXES
from klimb.errors import ConfigError, RunError, nearest, one_line
from klimb.fields import explain
from klimb.files import exists, is_stream
from klimb.modules import module_of
from klimb.runs.own_files import require_no_file_of_a_run
from klimb.terminal import write_page

T = TypeVar("T")

RunWord = Annotated[Path, Positional, arg(metavar="RUN")]
"""A run directory, as a word before the flags."""
OutputFlag = Annotated[Path | None, arg(aliases=["-o"])]
"""`--output FILE`, also `-o FILE`. A command that has it has `--overwrite` too."""
MAX_DIGITS = 25
NO_BRACES = str.maketrans("", "", "{}")
NO_MODULE = {*PREFIXES, GIVEN, "minari"}
"""What stands before a colon without being a module to import."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """One command."""

    name: str
    """Its name in `COMMANDS`, which has its usage and its summary."""
    arguments: type[T]
    """A dataclass with a field for each word and each flag."""
    run: Callable[[T], None]
    """What the command does with an instance of it."""
    arguments_for: Callable[[Sequence[str]], type[T]] | None = None
    """For flags that depend on what is typed: the dataclass for these words, which has more fields."""
    description_without: Callable[[], str] | None = None
    """What stands on the command's page while these are not known."""

    @property
    def summary(self) -> str:
        """What the command does, in one line."""
        return COMMANDS[self.name].summary

    def parse(self, words: Sequence[str]) -> T | None:
        """The arguments that the words say; None when they ask for help, which is then printed.

        words: what is typed after the command's name.

        Raises ConfigError, in one line, when a word or a flag is wrong.
        """
        make_importable(words)
        arguments = self.arguments if self.arguments_for is None else self.arguments_for(words)
        summary = f"{self.summary[0].upper()}{self.summary[1:]}."
        if arguments is self.arguments and self.description_without is not None:
            description = f"{summary}\n\n{self.description_without()}"
        else:
            description = summary
        page = _Page()
        try:
            with contextlib.redirect_stdout(page):
                return parse(arguments, words, self.name, description)
        except SystemExit:  # tyro's way to end after --help
            _, _, rest = page.getvalue().partition("\n\n")
            write_page(f"usage: {usage(self.name)}\n\n{rest.rstrip()}")
            return None


class _Page(io.StringIO):
    """What tyro prints, kept: with the colours and the characters of the real output."""

    def __init__(self) -> None:
        super().__init__()
        self._output = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._output.encoding

    def isatty(self) -> bool:
        return self._output.isatty()


def parse(arguments: type[T], words: Sequence[str], command: str, description: str = "") -> T:
    """An instance of a dataclass from words and flags.

    arguments: the dataclass. words: what was typed. command: the name of the command, for messages.
    description: what stands at the top of the page of `--help`.

    Raises ConfigError, in one line, when a word or a flag is wrong; SystemExit after help.
    """
    with _one_line_errors(words, arguments, command):
        return tyro.cli(
            arguments, args=list(words), prog=f"klimb {command}", description=description, registry=_registry()
        )


def parse_known(arguments: type[T], words: Sequence[str], command: str) -> tuple[T, list[str]]:
    """The same, of some flags only, and the words that belong to others.

    arguments, words, command: as for `parse`.
    """
    with _one_line_errors(words, arguments, command):
        return tyro.cli(arguments, args=list(words), return_unknown_args=True, add_help=False, registry=_registry())


@contextlib.contextmanager
def _one_line_errors(words: Sequence[str], arguments: type, command: str) -> Iterator[None]:
    """Errors of tyro become a ConfigError."""

    def report(event: events.ParseErrorEvent) -> NoReturn:
        raise ConfigError(_message(event, words, arguments, command))

    with events.on_parse_error(report):
        yield


def _registry() -> ConstructorRegistry:
    """How values are typed: `none` for None, as in the configuration file; whole numbers; sizes of layers."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def whole(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def sizes(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[int, ...]] | None:
        if not _is_sizes(info.type):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="INT...",
            instance_from_str=lambda words: tuple(map(whole_number, " ".join(words).replace(",", " ").split())),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(size, int) for size in value),
            str_from_instance=lambda value: [str(size) for size in value],
        )

    @registry.primitive_rule
    def none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
        if info.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none",
            choices=("none", "None"),
            instance_from_str=lambda words: None,
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["none"],
        )

    return registry


def _is_sizes(kind: Any) -> bool:
    """Whether it is `tuple[int, ...]`, whatever is annotated to the int."""
    if typing.get_origin(kind) is not tuple:
        return False
    inner, *rest = typing.get_args(kind)
    return rest == [...] and int in (inner, *typing.get_args(inner)[:1])


def whole_number(word: str) -> int:
    """An integer, also written as 1e6 or 1_000_000.

    word: as typed. ValueError for anything else.
    """
    try:
        number = Decimal(word)
    except InvalidOperation:
        raise ValueError(f"{word!r} is not a whole number") from None
    # No option is as large; and 1e999999999 would fill the memory.
    if number.is_finite() and number.adjusted() > MAX_DIGITS:
        raise ValueError(f"{word!r} is too large")
    if not number.is_finite() or number != number.to_integral_value():
        raise ValueError(f"{word!r} is not a whole number")
    return int(number)


def require_unused(paths: Sequence[Path], overwrite: bool, flag: str = "-o") -> None:
    """RunError when a command would write over a file, before it has done anything.

    paths: that it writes. overwrite: whether the user has allowed it. flag: that names the file.
    """
    for path in paths:
        require_no_file_of_a_run(path)
        if not overwrite and exists(path) and not is_stream(path):
            raise RunError(f"{one_line(path)} exists already; give --overwrite, or another file with {flag} FILE")


def leading(words: Sequence[str]) -> list[str]:
    """The words before the first flag.

    words: words and flags.
    """
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:at])


def make_importable(words: Sequence[str]) -> None:
    """Let Python import from the current directory, when words name a module of the user's own or trust a file's.

    words: of a command line. A module is named `module:name`, as a word or as the value of a flag.
    """
    values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    asked = "--trust-environment" in words or any(_names_module(value) for value in values)
    if asked and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _names_module(value: str) -> bool:
    # An environment's name may have wrappers behind it.
    named = [module_of(name.removeprefix("gymnasium:")) for name in value.partition("(")[0].split("+")]
    return any(module is not None and module not in NO_MODULE and _is_module(module) for module in named)


def _is_module(module: str) -> bool:
    return all(part.isidentifier() for part in module.split("."))


def _message(event: events.ParseErrorEvent, words: Sequence[str], arguments: type, command: str) -> str:
    match event:
        case events.UnrecognizedArgs(tokens=tokens):
            return _unknown(tokens[0], arguments, command)
        case events.MissingArgs(missing_arguments=missing):
            return _missing([_shown(one.arg) for one in missing], words, arguments, command)
        case events.BadValue(argument=argument) if argument.is_positional():
            return _missing([_shown(argument)], words, arguments, command)
        case events.InvalidChoice(argument=argument, value=value, choices=choices):
            field = argument.field.intern_name
            known = next((flag.values for flag in flags_of(arguments) if flag.field == field), None) or choices
            return f"{_shown(argument)} is one of {', '.join(known)}; not {value!r}{nearest(value, known)}"
        case events.BadValue(argument=argument):
            return f"{_shown(argument)} needs a value"
        case events.InstantiationFailure(message=message, argument=argument):
            # tyro calls this while it handles the exception: what pydantic has to say is in its context.
            cause: BaseException | None = sys.exception()
            while cause is not None and not isinstance(cause, ValidationError | ConfigError):
                cause = cause.__context__
            if cause is not None:
                return explain(cause) if isinstance(cause, ValidationError) else str(cause)
            plain = " ".join(re.sub(r"\[/?[a-z ]+\]", "", str(message)).split())
            several = re.match(r"no type matching (.+) could be instantiated from \[(.*?)\]", plain)
            if several is not None:
                plain = f"it takes {several[1].replace('|', ' or ').translate(NO_BRACES)}, not {several[2]}"
            return f"{_shown(argument)}: {plain}" if argument is not None else plain
    return f"the arguments can't be understood (see klimb {command} --help)"


def _missing(names: list[str], words: Sequence[str], arguments: type, command: str) -> str:
    """A message for words or flags that are missing, or for a misspelt flag, whose value was taken for a word."""
    known = [name for flag in flags_of(arguments) for name in flag.names]
    flags = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for flag in flags:
        if flag not in known:
            return _unknown(flag, arguments, command)
    are = "is" if len(names) == 1 else "are"
    return f"{' and '.join(names)} {are} missing: {usage(command)} (see klimb {command} --help)"


def _unknown(token: str, arguments: type, command: str) -> str:
    """A message for a word or a flag that there is not."""
    if token.startswith("-"):
        flag = token.partition("=")[0]
        known = [name for one in flags_of(arguments) for name in one.names]
        return f"there is no flag {flag}{nearest(flag.replace('_', '-'), known)} (see klimb {command} --help)"
    return f"{token!r} is one word too many: {usage(command)} (see klimb {command} --help)"


def _shown(argument: Any) -> str:
    """How a word or a flag is called."""
    if argument.is_positional():
        return argument.lowered.metavar
    return next(name for name in argument.lowered.name_or_flags if name.startswith("--"))
