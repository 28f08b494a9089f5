"""What `reset` and `step` of a Gymnasium environment must return, and what to say of anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from klimb.errors import one_line, shown

STEP = "step must return five values (observation, reward, terminated, truncated, info)"
OLD_STEP = "; old Gym's done is split into terminated (the task has ended) and truncated (the time is over)"
_BOOLS, _NUMBERS = (bool, np.bool_), (float, np.float64, np.float32)
RESET = "reset must return two values (observation, info)"


class InvalidReturn(Exception):
    """A return value that is none, in one line that says what it must be and what it was."""


class InvalidObservation(InvalidReturn):
    """An observation that is none, found where it is not known what returned it: continues "step must return"."""


def step_of(result: Any) -> tuple[Any, Any, bool, bool]:
    """(observation, reward, terminated, truncated) of what `step` returned; InvalidReturn where it can't be a step.

    The observation is left to `numbers_of`. A reward of a common type is returned as it is, any other one by it.

    result: that was returned.
    """
    # What nearly every environment returns; looking at each value takes half a microsecond more.
    if type(result) is tuple and len(result) == 5:
        obs, reward, terminated, truncated, info = result
        if type(terminated) in _BOOLS and type(truncated) in _BOOLS and type(info) is dict and type(reward) in _NUMBERS:
            return obs, reward, bool(terminated), bool(truncated)
    return _examined(result)


def _examined(result: Any) -> tuple[Any, Any, bool, bool]:
    """`step_of`, with every value looked at by itself."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        is_old = isinstance(result, tuple | list) and len(result) == 4
        raise InvalidReturn(f"{STEP}; it returned {described(result)}{OLD_STEP if is_old else ''}")
    obs, reward, terminated, truncated, info = result
    if reward is None or isinstance(reward, str | bytes):  # NumPy would make numbers of them
        raise InvalidReturn(f"step must return a reward that is one number; it returned {described(reward)}")
    if not isinstance(info, dict | Mapping):
        raise InvalidReturn(f"{STEP}, info as a dict; it returned {described(info)} as info")
    flags = _flag(terminated, "terminated"), _flag(truncated, "truncated")
    return obs, numbers_of(reward, (), "step", "reward")[()], *flags


def reset_of(result: Any) -> Any:
    """The observation of what `reset` returned; InvalidReturn where that is no observation and info.

    result: that was returned.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise InvalidReturn(f"{RESET}; it returned {described(result)}, without an info")
    obs, info = result
    if not isinstance(info, dict | Mapping):
        raise InvalidReturn(f"{RESET}, info as a dict; it returned {described(info)} as info")
    return obs


def numbers_of(value: Any, shape: tuple[int, ...], call: str, what: str) -> np.ndarray:
    """A float32 array of a shape, a copy of the value; InvalidReturn, which describes the value, where it can't be one.

    value: as it was returned. shape: that it has to have. call: that returned it, `step` or `reset`. what: it is,
    `observation` or `reward`.
    """
    is_complex = False
    try:
        is_complex = np.iscomplexobj(np.asarray(value))
        # NumPy would drop the imaginary part.
        array = None if is_complex else np.array(value, np.float32)
    except (ValueError, TypeError, OverflowError):
        array = None
    if array is not None and array.shape == shape:
        return array
    if is_complex:
        wanted = "of real numbers"
    else:
        wanted = "that is one number" if what == "reward" else f"of shape {shape}, as its space says"
    article = "an" if what == "observation" else "a"
    raise InvalidReturn(f"{call} must return {article} {what} {wanted}; it returned {described(value)}")


def real_dtype(value: Any) -> np.dtype | None:
    """The dtype of an array, where all of its kind are real numbers; None for everything else.

    value: anything.
    """
    return value.dtype if type(value) is np.ndarray and value.dtype.kind in "fiub" else None


def described(value: Any) -> str:
    """A value that was returned, in a few words.

    value: anything.
    """
    match value:
        case np.ndarray():
            return f"an array of shape {value.shape} and dtype {value.dtype}"
        case tuple() | list():
            if isinstance(value, list) and len(value) > 8:
                return f"a list of {len(value)} elements"
            return f"{len(value)} values ({', '.join(_kind(one) for one in value)})"
        case Mapping():
            keys = ", ".join(shown(key, 20) for key in list(value)[:5])
            return f"a {type(value).__name__} with the keys {keys}" if value else f"an empty {type(value).__name__}"
        case None:
            return "None"
        case bool() | int() | float() | complex() | str() | bytes() | np.generic():
            return f"{shown(value, 40)} ({type(value).__name__})"
    return one_line(f"an object of type {type(value).__name__}", 80)


def _kind(value: Any) -> str:
    """The type of one of several values, with its shape where it has one."""
    return f"array of shape {value.shape}" if isinstance(value, np.ndarray) else one_line(type(value).__name__, 40)


def _flag(value: Any, name: str) -> bool:
    """`terminated` or `truncated` as a bool; InvalidReturn for what only happens to be true or false."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and value in (0, 1):
        return bool(value)
    if getattr(value, "shape", None) == () and getattr(value, "dtype", None) == np.bool_:
        return bool(value)
    raise InvalidReturn(f"step must return {name} as a bool; it returned {described(value)}")
