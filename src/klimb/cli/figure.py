"""klimb figure NAME: the theory, drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from klimb.cli.parser import Command, OutputFlag, require_unused
from klimb.errors import ConfigError, RunError
from klimb.files import make_directory
from klimb.terminal import write_line
from klimb.theory.figures.registry import FIGURES, SUFFIXES, check_suffix, load


@dataclass(frozen=True)
class FigureArguments:
    """What is typed after `klimb figure`."""

    name: Annotated[str | None, Positional, arg(metavar="NAME")] = None
    """Name of a figure, or `all`; without a name the figures are listed."""
    output: OutputFlag = None
    """File to write: .png, .svg or .pdf; by default NAME.png and NAME.svg. With `all`, a directory."""
    overwrite: bool = False
    """Overwrite existing files."""


def figure(arguments: FigureArguments) -> None:
    """Draw a figure or all of them, or list them.

    arguments: which figure, and where to.
    """
    name, output = arguments.name, arguments.output
    if name is None:
        _print_names()
    elif name == "all":
        _draw_all(output or Path(), arguments.overwrite)
    else:
        paths = [Path(f"{name}.png"), Path(f"{name}.svg")] if output is None else [output]
        load(name)
        for path in paths:
            check_suffix(path)
        require_unused(paths, arguments.overwrite)
        _draw(name, paths)


def _print_names() -> None:
    width = max(map(len, FIGURES))
    for name, entry in FIGURES.items():
        write_line(f"{name:<{width}}  {entry.title}")
    write_line(f"{'all':<{width}}  every one of them; -o names a directory")


def _draw_all(directory: Path, overwrite: bool) -> None:
    if directory.suffix.lower() in SUFFIXES:
        raise ConfigError(f"{directory} names a file, and all figures need a directory: -o {directory.stem}")
    paths = {name: [directory / f"{name}.png", directory / f"{name}.svg"] for name in FIGURES}
    require_unused([path for pair in paths.values() for path in pair], overwrite)
    try:
        make_directory(directory)
    except OSError as error:
        raise RunError(f"cannot make the directory {directory}: {error.strerror}") from None
    for name, pair in paths.items():
        _draw(name, pair)


def _draw(name: str, paths: list[Path]) -> None:
    # Matplotlib takes half a second to import: a list of names does without.
    from klimb.theory.figures import style

    module = load(name)
    data = module.compute()
    drawing = module.draw(data)
    for path in paths:
        style.save(drawing, path)
        write_line(path)
    for line in module.summary(data):
        write_line(f"  {line}")


COMMAND = Command("figure", FigureArguments, figure)
