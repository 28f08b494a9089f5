"""klimb completion SHELL: a script by which a shell completes commands, flags and their values.

The script is static: it holds what there is when it is printed, so that a shell need not start Python to complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from klimb.cli.commands import COMMANDS, load
from klimb.cli.flags import Flag, flags_of
from klimb.cli.list import rule_summaries
from klimb.cli.parser import Command
from klimb.cli.train import AUTO, NONE
from klimb.environments.registry import BUILT_IN, TOY_TEXT
from klimb.presets.shipped import all_presets
from klimb.rules import RULES
from klimb.runs.config import TrainOptions
from klimb.terminal import write_line
from klimb.theory.figures.registry import FIGURES

Shell = Literal["bash", "zsh", "fish"]

KNOWN = {
    "rule_name": tuple(RULES),
    "env": tuple(BUILT_IN),
    "mdp": TOY_TEXT,
    "name": (*FIGURES, "all"),
    "preset": (AUTO, NONE, *sorted({one.name for one in all_presets()})),
}
"""Values of fields that are names."""

HOW_TO = """\
to load it, in the shell or in the file that it reads when it starts:
  bash  eval "$(klimb completion bash)"        (~/.bashrc)
  zsh   source <(klimb completion zsh)         (~/.zshrc, after compinit)
  fish  klimb completion fish | source         (~/.config/fish/config.fish)

Load it again after an update of klimb: the script contains the commands and options of the installed version."""

FILES = ("init_from", "demonstrations")
"""Fields whose values are files or directories, though their type is text."""


@dataclass(frozen=True)
class CompletionArguments:
    """What is typed after `klimb completion`."""

    shell: Annotated[Shell, Positional, arg(metavar="SHELL")]
    """bash, zsh or fish."""


def completion(arguments: CompletionArguments) -> None:
    """Print the script for a shell.

    arguments: which shell.
    """
    script = {"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]
    write_line(script(pages()), end="")


@dataclass(frozen=True)
class Page:
    """What can be typed after one command."""

    name: str
    summary: str
    words: tuple[Flag, ...]
    flags: tuple[Flag, ...]
    by_rule: bool
    """Whether the flags of a rule follow when its first word names one."""


def pages() -> list[Page]:
    """Every command."""
    made = []
    for name, entry in COMMANDS.items():
        command: Command[Any] = load(name)
        given = tuple(flags_of(command.arguments))
        words = tuple(flag for flag in given if flag.positional)
        flags = (*(flag for flag in given if not flag.positional), HELP)
        by_rule = any(word.field == "rule_name" for word in words)
        made.append(Page(name, entry.summary, words, flags, by_rule))
    return made


HELP = Flag("help", ("--help", "-h"), "show the page of the command", (), file=False, positional=False)


def _rules() -> Iterator[tuple[str, tuple[Flag, ...]]]:
    """The flags of every rule."""
    for name, rule in RULES.items():
        yield name, tuple(flags_of(rule))


def _swept(rule: str) -> list[str]:
    """The fields that `--over` of `sweep` and `tune` takes: those of a rule, then those of every training."""
    names = [field.name for cls in (RULES[rule], TrainOptions) for field in fields(cls)]
    return [name for name in names if name not in ("seed", "num_seeds")]


def _values(flag: Flag) -> tuple[str, ...] | Literal["file", "directory"] | None:
    """What a word, or the value of a flag, can be; () for a flag without one, None for anything."""
    if flag.file or flag.field in FILES:
        return "directory" if flag.positional else "file"
    return flag.values if flag.values is not None else KNOWN.get(flag.field)


def _offers(pages: list[Page]) -> Iterator[tuple[str, str | None, Flag]]:
    """Every flag with the command that has it, and the rule, for a flag of a rule."""
    for page in pages:
        for flag in page.flags:
            yield page.name, None, flag
        for rule, flags in _rules() if page.by_rule else ():
            for flag in flags:
                yield page.name, rule, flag


def bash(pages: list[Page]) -> str:
    """The script for bash.

    pages: of all commands.
    """
    actions: dict[str, list[str]] = {}
    for command, rule, flag in _offers(pages):
        action = _bash_action(_values(flag))
        actions.setdefault(action, []).extend(f"{command}:{rule or '*'}:{name}" for name in flag.names)
    # A flag that takes any value: nothing is offered. After one without a value a word may follow.
    switches = actions.pop("word=1")
    del actions[""]
    cases = [f"{'|'.join(patterns)}) {action} ;;" for action, patterns in actions.items()]
    cases += [f'sweep:{rule}:--over|tune:{rule}:--over) offered="{" ".join(_swept(rule))}" ;;' for rule in RULES]
    cases += [f"{'|'.join(switches)}) word=1 ;;", "*:*:-*) ;;", "*) word=1 ;;"]
    words = []
    for page in pages:
        for number, flag in enumerate(page.words, 2):
            position = number if page.by_rule else "*"
            words.append(f"{page.name}:{position}) {_bash_action(_values(flag))} ;;")
    commands = " ".join([*(page.name for page in pages), "--help", "--version"])
    flags = [f'{page.name}:*) offered="{_names(page.flags)}" ;;' for page in pages if not page.by_rule]
    for page in pages:
        if page.by_rule:
            flags += [f'{page.name}:{rule}) offered="{_names((*own, *page.flags))}" ;;' for rule, own in _rules()]
            flags.append(f'{page.name}:*) offered="{_names(page.flags)}" ;;')
    return f"""\
# Completion of klimb for bash. Load it with: eval "$(klimb completion bash)"
_klimb() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local command=${{COMP_WORDS[1]}} rule=${{COMP_WORDS[2]}} offered= kind= word= IFS=$' \\t\\n'
    # bash takes --flag=value apart.
    [[ $current == = ]] && current=
    [[ $previous == = ]] && previous=${{COMP_WORDS[COMP_CWORD-2]}}
    if [[ $COMP_CWORD -eq 1 ]]; then
        offered="{commands}"
    elif [[ $current == -* ]]; then
        case $command:$rule in
{_indented(flags, 12)}
        esac
    else
        case $command:$rule:$previous in
{_indented(cases, 12)}
        esac
    fi
    if [[ -n $word ]]; then
        case $command:$COMP_CWORD in
{_indented(words, 12)}
        esac
    fi
    IFS=$'\\n'
    case $kind in
        file) COMPREPLY=($(compgen -f -- "$current")); compopt -o filenames 2>/dev/null ;;
        directory) COMPREPLY=($(compgen -d -- "$current")); compopt -o filenames 2>/dev/null ;;
        *) IFS=$' \\t\\n'; COMPREPLY=($(compgen -W "$offered" -- "$current")) ;;
    esac
}}
complete -F _klimb klimb
"""


def _bash_action(values: tuple[str, ...] | str | None) -> str:
    match values:
        case None:
            return ""
        case ():
            return "word=1"
        case str():
            return f"kind={values}"
    return f'offered="{" ".join(values)}"'


def zsh(pages: list[Page]) -> str:
    """The script for zsh.

    pages: of all commands.
    """
    commands = [_described(page.name, page.summary) for page in pages]
    actions: dict[str, list[str]] = {}
    for command, rule, flag in _offers(pages):
        action = _zsh_action(_values(flag), flag.field)
        actions.setdefault(action, []).extend(f"{command}:{rule or '*'}:{name}" for name in flag.names)
    switches = actions.pop("word=1")
    del actions[""]
    cases = [f"({'|'.join(patterns)}) {action} ;;" for action, patterns in actions.items()]
    cases += [f"(sweep:{rule}:--over|tune:{rule}:--over) compadd -- {' '.join(_swept(rule))} ;;" for rule in RULES]
    cases += [f"({'|'.join(switches)}) word=1 ;;", "(*:*:-*) ;;", "(*) word=1 ;;"]
    words = []
    for page in pages:
        for number, flag in enumerate(page.words, 3):
            position = number if page.by_rule else "*"
            words.append(f"({page.name}:{position}) {_zsh_action(_values(flag), flag.field)} ;;")
    flags = [f"({page.name}:*) {_zsh_flags(page.flags)} ;;" for page in pages]
    rule_flags = [f"({rule}) {_zsh_flags(own)} ;;" for rule, own in _rules()]
    by_rule = "|".join(page.name for page in pages if page.by_rule)
    return f"""\
#compdef klimb
# Completion of klimb for zsh. Load it, after compinit, with: source <(klimb completion zsh)
# or write it to a file _klimb in a directory of $fpath.
_klimb() {{
    local command=$words[2] rule=$words[3] current=$words[CURRENT] previous=$words[CURRENT-1] word=
    local -a offered
    if (( CURRENT == 2 )); then
        offered=({" ".join(commands)})
        _describe command offered
    elif [[ $current == -* ]]; then
        case $command:$rule in
{_indented(flags, 12)}
        esac
        if [[ $command == ({by_rule}) ]]; then
            case $rule in
{_indented(rule_flags, 16)}
            esac
        fi
        _describe -o flag offered
    else
        case $command:$rule:$previous in
{_indented(cases, 12)}
        esac
        if [[ -n $word ]]; then
            case $command:$CURRENT in
{_indented(words, 16)}
            esac
        fi
    fi
}}
if [[ $funcstack[1] == _klimb ]]; then _klimb "$@"; else compdef _klimb klimb; fi
"""


def _zsh_action(values: tuple[str, ...] | str | None, field: str) -> str:
    match values:
        case None:
            return ""
        case ():
            return "word=1"
        case "file":
            return "_files"
        case "directory":
            return "_files -/"
    if field == "rule_name":
        described = (_described(name, summary) for name, summary in rule_summaries().items())
        return f"offered=({' '.join(described)}); _describe rule offered"
    return f"compadd -- {' '.join(values)}"


def _zsh_flags(flags: tuple[Flag, ...]) -> str:
    """Flags, with what they mean, added to the array `offered`."""
    return f"offered+=({' '.join(_described(name, flag.help) for flag in flags for name in flag.names)})"


def _described(name: str, text: str) -> str:
    """A name and what it means, as one quoted word of zsh."""
    return _quoted(f"{name}:{text}" if text else name)


def fish(pages: list[Page]) -> str:
    """The script for fish.

    pages: of all commands.
    """
    lines = [f"complete -c klimb -n '__klimb_at 1' -a {page.name} -d {_quoted(page.summary)}" for page in pages]
    lines += ["complete -c klimb -n '__klimb_at 1' -l help -s h", "complete -c klimb -n '__klimb_at 1' -l version"]
    for page in pages:
        for number, flag in enumerate(page.words, 2):
            at = f"__klimb_at {number} {page.name}" if page.by_rule else f"__klimb_in {page.name}"
            if flag.field == "rule_name":
                lines += [
                    f"complete -c klimb -n '{at}' -a {name} -d {_quoted(summary)}"
                    for name, summary in rule_summaries().items()
                ]
            else:
                lines.append(f"complete -c klimb -n '{at}' {_fish_action(_values(flag), flag).removeprefix('-x ')}")
    for command, rule, flag in _offers(pages):
        where = f"__klimb_in {command}" + (f"; and __klimb_rule {rule}" if rule else "")
        action, meaning = _fish_action(_values(flag), flag), _quoted(flag.help)
        for name in flag.names:
            option = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            lines.append(f"complete -c klimb -n '{where}' {option} {action} -d {meaning}".replace("  ", " "))
    for rule in RULES:
        values = _quoted(" ".join(_swept(rule)))
        for command in ("sweep", "tune"):
            lines.append(f"complete -c klimb -n '__klimb_in {command}; and __klimb_rule {rule}' -l over -x -a {values}")
    text = "\n".join(lines)
    return f"""\
# Completion of klimb for fish. Load it with: klimb completion fish | source
function __klimb_at -d 'The word of this number is being typed, after one of some commands'
    set -l typed (commandline -opc)
    test (count $typed) -eq $argv[1]; or return 1
    test (count $argv) -eq 1; or contains -- $typed[2] $argv[2..-1]
end
function __klimb_in -d 'The command is this one'
    set -l typed (commandline -opc)
    test (count $typed) -gt 1; and test $typed[2] = $argv[1]
end
function __klimb_rule -d 'The rule is this one'
    set -l typed (commandline -opc)
    test (count $typed) -gt 2; and test $typed[3] = $argv[1]
end
complete -c klimb -f
{text}
"""


def _fish_action(values: tuple[str, ...] | str | None, flag: Flag) -> str:
    match values:
        case None:
            return "-x"
        case ():
            return ""
        case "file":
            return "-r -F"
        case "directory":
            return "-a '(__fish_complete_directories)'"
    return f"-x -a {_quoted(' '.join(values))}"


def _names(flags: tuple[Flag, ...]) -> str:
    return " ".join(name for flag in flags for name in flag.names)


def _indented(lines: list[str], width: int) -> str:
    return "\n".join(" " * width + line for line in lines)


def _quoted(text: str) -> str:
    """Text as one word of any of the shells."""
    return "'" + text.replace("'", "’") + "'"


COMMAND = Command("completion", CompletionArguments, completion, description_without=lambda: HOW_TO)
