"""What an environment's exception says to whoever wrote it: one line, and the traceback from their own code on."""

from __future__ import annotations

import contextlib
import itertools
import re
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium

from klimb.environments.returns import OLD_STEP, RESET, STEP, InvalidObservation, InvalidReturn, described
from klimb.errors import EnvironmentFault, KlimbError, one_line, printable

_KLIMB, _GYMNASIUM = str(Path(__file__).parents[1]), str(Path(gymnasium.__file__).parent)
_JAX = tuple(str(Path(spec.origin).parent) for name in ("jax", "equinox") if (spec := find_spec(name)) and spec.origin)
"""What may stand between klimb and an environment's own code; found, because worker processes import neither."""
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_UNPACKING = re.compile(r"(not enough|too many) values to unpack \(expected [25](?:, got (\d+))?\)")
_NOT_SEVERAL = re.compile(r"cannot unpack non-iterable (\w+) object")
MAX_CAUSE = 200
"""Characters of an exception's text from which on a line says the first of its lines."""
MAX_TEXT = 20_000
"""Characters of a traceback after which its middle is left out."""


class RemoteTraceback(Exception):
    """An exception of another process: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(f'\n"""\n{text}"""')


@dataclass(frozen=True)
class Trouble:
    """What went wrong in a call of an environment.

    cause: in one line. traceback: as text, from the user's own code on; None where nothing was raised. error: the
    exception, whose traceback begins in the user's code; None where nothing was raised.
    """

    cause: str
    traceback: str | None
    error: BaseException | None

    @classmethod
    def of(cls, error: BaseException, call: str, env: gymnasium.Env | None = None) -> Trouble:
        """From an exception.

        error: that was caught. call: what was called: `step`, `reset` or another word for it. env: that was called, or
        None where there is none yet.
        """
        returned = str(error) if isinstance(error, InvalidReturn) else _returned_wrongly(error, call)
        if isinstance(error, InvalidObservation):
            returned = f"{call} must return {error}"
        if returned is not None:
            return cls(one_line(f"{returned}{_defined_in(env, call)}", 500), None, None)
        cause = one_line(_explained(error))
        return cls(cause, traceback_text(error), error.with_traceback(_own_part(error.__traceback__)))

    def fault(self, message: str) -> EnvironmentFault:
        """The error to raise, `from` its exception. message: what can't be done; the cause is added to it."""
        return EnvironmentFault(f"{message}: {self.cause}", self.traceback)


@contextlib.contextmanager
def traced(name: str) -> Iterator[None]:
    """What the code of a compiled environment raises while it is traced is an EnvironmentFault.

    name: of the environment.
    """
    try:
        yield
    except KlimbError:
        raise
    except Exception as error:
        trouble = Trouble.of(error, "trace")
        raise trouble.fault(f"{one_line(name, 80)} can't be compiled") from trouble.error


def traceback_text(error: BaseException) -> str:
    """The traceback of an exception and of those that led to it, without klimb's and Gymnasium's frames before theirs.

    It is printable: the text of an exception may hold anything.

    error: that was caught.
    """
    summary = traceback.TracebackException.from_exception(error)
    _cut(summary)
    text = printable("".join(summary.format()))
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]}\n  […]\n{text[-MAX_TEXT // 2 :]}"
    return text


def _cut(summary: traceback.TracebackException) -> None:
    """Drop the frames before the user's own, here and in the exceptions that led to this one."""
    count = _frames_before([frame.filename for frame in summary.stack])
    del summary.stack[:count]
    for earlier in (summary.__cause__, summary.__context__):
        if earlier is not None:
            _cut(earlier)


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    for _ in range(_frames_before(frames)):
        trace = None if trace is None else trace.tb_next
    return trace


def _frames_before(files: list[str]) -> int:
    """How many frames come before the user's own; where none is theirs, all but the last."""
    foreign = itertools.takewhile(lambda file: _is_in(file, _KLIMB, _GYMNASIUM, *_JAX), files)
    return min(sum(1 for _ in foreign), max(len(files) - 1, 0))


def _is_in(file: str, *folders: str) -> bool:
    return any(file.startswith((f"{folder}/", f"{folder}\\")) for folder in folders)


def _explained(error: BaseException) -> str:
    """The type of an exception, its text, or the line of code where it has none, and its place in the user's code."""
    stack = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in stack if not _is_in(frame.filename, _KLIMB, _GYMNASIUM, *_INSTALLED)]
    own = [frame for frame in own if not frame.filename.startswith("<frozen ")]  # Python's own import system
    text = str(error) or (stack[-1].line or "" if stack else "")
    text = text if len(text) <= MAX_CAUSE else text.splitlines()[0]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _returned_wrongly(error: BaseException, call: str) -> str | None:
    """What an environment returned that Gymnasium's own wrappers fail on; None for all other exceptions."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    must, size = {"step": (STEP, 5), "reset": (RESET, 2)}.get(call, ("", 0))
    if not must or not frames or not _is_in(frames[-1].f_code.co_filename, _GYMNASIUM):
        return None
    count, single = _UNPACKING.match(str(error)), _NOT_SEVERAL.match(str(error))
    if count is not None:
        number = count[2] or f"more than {size}"
        return f"{must}; it returned {number} values{OLD_STEP if (call, number) == ('step', '4') else ''}"
    if single is not None:
        return f"{must}; it returned {'None' if single[1] == 'NoneType' else single[1]}"
    for frame in frames:
        # A wrapper's `observation` method, which could not do anything with the observation it got.
        names: dict[str, Any] = frame.f_locals
        if frame.f_code.co_name == "observation" and isinstance(names.get("self"), gymnasium.Wrapper):
            space = names["self"].env.observation_space
            return f"{call} must return an observation in {space}; it returned {described(names.get('observation'))}"
    return None


def _defined_in(env: gymnasium.Env | None, call: str) -> str:
    """Where the method is that returned something wrong, in brackets; nothing where a wrapper may have done it."""
    if env is None:
        return ""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if not type(layer).__module__.startswith("gymnasium."):
            return ""
        layer = layer.env
    code = getattr(getattr(type(layer), call, None), "__code__", None)
    if code is None:
        return ""
    return f" ({type(layer).__name__}.{call}: {Path(code.co_filename).name}, line {code.co_firstlineno})"
