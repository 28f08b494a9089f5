"""Command-line words: what comes before the flags."""

from __future__ import annotations

from pathlib import Path

from klimb.errors import ConfigError


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and the rest."""
    at = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:at], arguments[at:]


def one_path(command: str, words: list[str]) -> Path:
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError(f"klimb {command} takes one run directory, not {len(words)}: klimb {command} RUN")
    return Path(words[0])
