"""Gymnasium wrappers by name: `module:Wrapper`, or `module:Wrapper(argument=value)`, behind an environment's name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym

from klimb import modules
from klimb.environments.arguments import Arguments, read_arguments
from klimb.environments.faults import Trouble
from klimb.environments.returns import described
from klimb.errors import ConfigError, one_line

_SEPARATOR = re.compile(r"\+(?=[A-Za-z_][\w.]*:)")
_WRAPPER = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(?:\((.*)\))?")


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """The environment's own name, and the wrappers, innermost first: `ID+module:Wrapper+…`.

    name: as `klimb.make` takes it.
    """
    base, *wrappers = _SEPARATOR.split(name)
    return base, tuple(wrappers)


@dataclass(frozen=True)
class NamedWrapper:
    """A wrapper by its name.

    name: `module:Wrapper`, a class or a function that is called with an environment. arguments: by keyword, literals.
    """

    name: str
    arguments: Arguments = ()

    @classmethod
    def read(cls, text: str) -> NamedWrapper:
        """From its text; the module is not imported. ConfigError for what is none."""
        match = _WRAPPER.fullmatch(text)
        arguments = None if match is None else read_arguments(match[2] or "")
        if match is None or arguments is None:
            raise ConfigError(
                f"wrapper {one_line(text, 80)!r}: write module:Wrapper, or module:Wrapper(argument=value) with "
                "numbers, texts, True, False, None, or tuples of these"
            )
        return cls(match[1], arguments)

    def __call__(self, env: gym.Env) -> gym.Env:
        """The environment in this wrapper. Raises ConfigError, and EnvironmentFault when the wrapper's code fails."""
        wrapper = modules.load(self.name, "wrapper")
        try:
            wrapped = wrapper(env, **dict(self.arguments))
        except Exception as error:
            trouble = Trouble.of(error, "make")
            raise trouble.fault(f"the wrapper {one_line(self.name, 80)} can't be made") from trouble.error
        if not isinstance(wrapped, gym.Env):
            raise ConfigError(
                f"the wrapper {one_line(self.name, 80)} returned {described(wrapped)}, which is not a gymnasium.Env"
            )
        return wrapped


def wrapped(env: gym.Env, wrappers: Sequence[str]) -> gym.Env:
    """An environment in wrappers.

    env: as it was made. wrappers: their texts, innermost first.
    """
    for text in wrappers:
        env = NamedWrapper.read(text)(env)
    return env
