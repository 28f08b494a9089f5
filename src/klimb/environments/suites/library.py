"""The libraries whose environments have names, `prefix:NAME` or `prefix:NAME(option=value)`."""

from __future__ import annotations

import functools
import importlib
import inspect
import re

from klimb.environments.arguments import Arguments, read_arguments
from klimb.environments.base import CompiledEnvironment
from klimb.errors import ConfigError, EnvironmentNotFound, nearest, one_line

SUITES = ("gymnax", "brax", "playground", "jumanji", "craftax", "navix", "pgx")
"""Prefixes, each with a file beside this one and a function `make_…` in it."""
_NAME = re.compile(r"([^()]*)(?:\((.*)\))?", re.DOTALL)


def make_suite(prefix: str, name: str) -> CompiledEnvironment:
    """The environment of a library. One object for each name, so that nothing is compiled twice.

    prefix: one of SUITES. name: the library's, with options in parentheses if it has some. Raises EnvironmentNotFound,
    MissingExtra, UnsupportedSpace, and ConfigError for options that the library's environments do not have.
    """
    match = _NAME.fullmatch(name)
    options = None if match is None else read_arguments(match[2] or "", words=True)
    if match is None or options is None:
        raise EnvironmentNotFound(
            f"{one_line(f'{prefix}:{name}', 80)!r}: write {prefix}:NAME, or {prefix}:NAME(option=value) with numbers, "
            "words, True or False"
        )
    return _made(prefix, match[1], options)


@functools.cache
def _made(prefix: str, name: str, options: Arguments) -> CompiledEnvironment:
    maker = getattr(importlib.import_module(f"klimb.environments.suites.{prefix}"), f"make_{prefix}")
    parameters = inspect.signature(maker).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [option for option in parameters if option != "name"]
        for option, _ in options:
            if option not in known:
                has = f"they are {', '.join(known)}" if known else "it has none"
                wrong = f"{prefix}:{one_line(name, 60)} has no option {one_line(option, 40)}"
                raise ConfigError(f"{wrong}{nearest(option, known)} ({has})")
    return maker(name, **dict(options))
