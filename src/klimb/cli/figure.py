"""klimb figure NAME: the theory, drawn."""

from __future__ import annotations

from pathlib import Path

from klimb.errors import ConfigError, RunError
from klimb.theory.figures.registry import FIGURES, load


def figure(arguments: list[str]) -> None:
    """klimb figure [NAME | all] [-o FILE]: without a name, which figures there are."""
    words, output = _parsed(arguments)
    if not words or any(word in ("-h", "--help") for word in words):
        _print_names()
        return
    if len(words) > 1:
        raise ConfigError(f"klimb figure draws one figure, or all: not {' and '.join(map(repr, words))}")
    (name,) = words
    if name == "all":
        _draw_all(output or Path())
        return
    _draw(name, [Path(f"{name}.png"), Path(f"{name}.svg")] if output is None else [output])


def _parsed(arguments: list[str]) -> tuple[list[str], Path | None]:
    words, output = list(arguments), None
    for flag in ("-o", "--output"):
        if flag in words:
            at = words.index(flag)
            if at + 1 == len(words):
                raise ConfigError(f"{flag} needs a file name")
            output = Path(words[at + 1])
            del words[at : at + 2]
    for word in words:
        if word.startswith("-") and word not in ("-h", "--help"):
            raise ConfigError(f"klimb figure has no flag {word!r}; it has -o FILE")
    return words, output


def _print_names() -> None:
    width = max(map(len, FIGURES))
    for name, entry in FIGURES.items():
        print(f"{name:<{width}}  {entry.title}")
    print(f"{'all':<{width}}  every one of them; -o names a directory")


def _draw_all(directory: Path) -> None:
    if directory.suffix in (".png", ".svg"):
        raise ConfigError(f"{directory} names a file, and all figures need a directory: -o {directory.stem}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the directory {directory}: {error.strerror}") from None
    for name in FIGURES:
        _draw(name, [directory / f"{name}.png", directory / f"{name}.svg"])


def _draw(name: str, paths: list[Path]) -> None:
    # Matplotlib takes half a second to import: a list of names does without.
    from klimb.theory.figures import style

    module = load(name)
    for path in paths:
        style.check_suffix(path)
    data = module.compute()
    drawing = module.draw(data)
    for path in paths:
        style.save(drawing, path)
        print(path)
    for line in module.summary(data):
        print(f"  {line}")
