"""The reference of the command line as Markdown: every command with its words and flags, from their parsers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from klimb.cli.commands import COMMANDS, load, usage
from klimb.cli.flags import Flag, flags_of
from klimb.rules import RULES
from klimb.runs.config import TrainOptions
from reference import prose

PLACE = "commands.md"
OF_TRAINING = "options-of-every-training"
"""The anchor of the section with the options that all trainings have."""

OPTIONS = (
    "Those of `klimb train`, `klimb sweep` and `klimb tune`; `klimb resume` takes those that "
    "[may change](runs.md#changing-settings). In Python they are the fields of `klimb.TrainOptions`."
)


@dataclasses.dataclass(frozen=True)
class Described:
    """A flag with its anchor. default: what it is without the flag; None where it has to be given."""

    flag: Flag
    anchor: str
    default: str | None


def page() -> str:
    """The page."""
    lines = [
        "# Commands",
        "",
        "Every command with its options, which `klimb COMMAND --help` shows in a terminal.",
        "",
    ]
    for name in COMMANDS:
        lines += _command(name)
    lines += ["## Options of every training", "", OPTIONS, ""]
    lines += _described(options_of_training())
    lines += ["## Options of the rules", "", "Each rule has options of its own, which its page explains.", ""]
    for name, rule in RULES.items():
        flags = ", ".join(f"`{flag.names[0]}`" for flag in flags_of(rule))
        lines += [f"[{name}](algorithms/{name}.md#options)", f":   {flags}", ""]
    return "\n".join(lines)


def options_of(command: str) -> list[Described]:
    """The words and flags of a command, without those of the training. command: its name."""
    shared = {flag.field for flag in flags_of(TrainOptions)}
    arguments = load(command).arguments
    return list(_with_defaults(arguments, command, (flag for flag in flags_of(arguments) if flag.field not in shared)))


def options_of_training() -> list[Described]:
    """The flags that every training has."""
    return list(_with_defaults(TrainOptions, "training", flags_of(TrainOptions)))


def options_of_rule(name: str) -> list[str]:
    """The flags of a rule, as they are typed. name: of the rule."""
    return [flag.names[0] for flag in flags_of(RULES[name])]


def _with_defaults(arguments: type, owner: str, flags: Iterable[Flag]) -> Iterator[Described]:
    defaults = _defaults(arguments)
    for flag in flags:
        yield Described(flag, f"{owner}-{flag.names[0].lstrip('-')}", defaults.get(flag.field))


def _defaults(arguments: Any) -> dict[str, str]:
    """How the default of each field is typed, also of the fields of dataclasses inside; switches have none."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(arguments):
        made = field.default
        if field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
        if dataclasses.is_dataclass(made):
            found |= _defaults(made)
        elif made is not dataclasses.MISSING and made != ():
            found[field.name] = _typed(made)
    return found


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, tuple):
        return " ".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _command(name: str) -> list[str]:
    summary = COMMANDS[name].summary
    lines = [f"## klimb {name} {{#klimb-{name}}}", "", "```", usage(name), "```", ""]
    lines += [f"{summary[0].upper()}{summary[1:]}.", ""]
    arguments = {flag.field for flag in flags_of(load(name).arguments)}
    if {flag.field for flag in flags_of(TrainOptions)} <= arguments:
        lines += [f"Its flags are also the [options of every training](#{OF_TRAINING}) and those of the rule.", ""]
    return lines + _described(options_of(name))


def _described(options: Iterable[Described]) -> list[str]:
    lines = []
    for one in options:
        first, *others = (f"`{name}`" for name in one.flag.names)
        names = ", ".join([f"{first}{{#{one.anchor}}}", *others])
        values = "".join(f" `{value}`" for value in one.flag.values or () if not one.flag.positional)
        default = "" if one.default is None else f", default `{one.default}`"
        lines += [f"{names}{values}{default}", f":   {prose(one.flag.help) or '–'}", ""]
    return lines
