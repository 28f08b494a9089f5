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
SCALARS = (str, int, float, bool)
WORDS = {bool: "True or False", str: "word", int: "whole number"}
_BY_ID: dict[str, CompiledEnvironment] = {}
_NAME = re.compile(r"([^()]*)(?:\((.*)\))?", re.DOTALL)


def make_suite(prefix: str, name: str) -> CompiledEnvironment:
    """The environment of a library. One object for each name, so that nothing is compiled twice.

    prefix: one of SUITES. name: the library's, with options in parentheses if it has some. Raises EnvironmentNotFound,
    MissingExtra, UnsupportedSpace, and ConfigError for options that the library's environments do not have.
    """
    match = _NAME.fullmatch(name)
    options = None if match is None else read_arguments(match[2] or "", words=True)
    if match is None or options is None or not all(isinstance(value, SCALARS) for _, value in options):
        raise EnvironmentNotFound(
            f"{one_line(f'{prefix}:{name}', 80)!r}: write {prefix}:NAME, or {prefix}:NAME(option=value) with numbers, "
            "words, True or False, each option once"
        )
    made = _made(prefix, match[1], tuple(sorted(options)))
    # However the same options are written: `backend=generalized` is what no option means.
    return _BY_ID.setdefault(made.id, made)


@functools.cache
def _made(prefix: str, name: str, options: Arguments) -> CompiledEnvironment:
    maker = getattr(importlib.import_module(f"klimb.environments.suites.{prefix}"), f"make_{prefix}")
    parameters = {key: one for key, one in inspect.signature(maker).parameters.items() if key != "name"}
    is_open = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    known = [key for key, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    for option, value in options:
        what = f"{prefix}:{one_line(name, 60)}"
        if option not in known and (not is_open or option == "name"):
            has = f"they are {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{what} has no option {one_line(option, 40)}{nearest(option, known)} ({has})")
        wanted = type(parameters[option].default) if option in known else object
        if not isinstance(value, wanted):
            raise ConfigError(f"{what}: {option} = {value!r} is no {WORDS[wanted]}")
    return maker(name, **dict(options))
