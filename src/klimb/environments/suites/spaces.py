"""The spaces of JAX libraries as Gymnasium's, by what they have: each library has classes of its own for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium.spaces
import jax
import numpy as np

from klimb.errors import UnsupportedSpace, one_line

MAX_ONE_HOT = 32
"""Values that an integer in observations has at most to become a one-hot vector. Larger ones are clocks and scores,
which networks read as a number."""


def observation_space(space: Any, what: str) -> gymnasium.spaces.Space:
    """The space of observations, where integers of many values are numbers, and flags are 0 and 1.

    space: the library's. what: the observations it is of, for messages. Raises UnsupportedSpace.
    """
    found = gymnasium_space(space, what)
    return _with_numbers(found)


def gymnasium_space(space: Any, what: str) -> gymnasium.spaces.Space:
    """The same space in Gymnasium's classes. UnsupportedSpace for what is none.

    space: with `spaces` or attributes that are spaces (several parts), `n` or `num_values` (integers from 0 on), `low`
    and `high` or `minimum` and `maximum` (bounds), or a shape alone. what: it is the space of, for messages.
    """
    # Bounds may be JAX arrays, and spaces may be asked for while a program is traced.
    with jax.ensure_compile_time_eval():
        found = _space(space)
    if found is None:
        raise UnsupportedSpace(f"{what} space is {one_line(space, 120)}, of which klimb makes no space of Gymnasium")
    return found


def part_names(space: Any) -> tuple[str, ...]:
    """The names of the parts of a space; none for one that has no parts."""
    return tuple(_parts(space) or ())


def named_parts(observation: Any, space: Any) -> Any:
    """An observation of several parts as dictionaries of them, nested as its space is; any other one as it is.

    observation: a dictionary, or an object with the parts as attributes. space: the library's.
    """
    inner = _parts(space)
    if inner is None:
        return observation
    is_mapping = isinstance(observation, Mapping)
    return {
        name: named_parts(observation[name] if is_mapping else getattr(observation, name), part)
        for name, part in inner.items()
    }


def _space(space: Any) -> gymnasium.spaces.Space | None:
    parts = _parts(space)
    if parts is not None:
        inner = [(name, _space(part)) for name, part in parts.items()]
        known = [(name, part) for name, part in inner if part is not None]
        # As pairs, which keep their order: of a dictionary Gymnasium sorts the names.
        return gymnasium.spaces.Dict(known) if len(known) == len(inner) else None
    count, shape = getattr(space, "num_values", getattr(space, "n", None)), getattr(space, "shape", None)
    if count is not None and np.ndim(count) == 1:
        return gymnasium.spaces.MultiDiscrete(np.asarray(count))
    if count is not None and not shape:
        return gymnasium.spaces.Discrete(int(count))
    return None if shape is None else _box(space, tuple(shape))


def _box(space: Any, shape: tuple[int, ...]) -> gymnasium.spaces.Box:
    """The box of arrays of a shape; flags are floats, 0 and 1, and so are numbers without bounds."""
    dtype = np.dtype(getattr(space, "dtype", np.float32))
    low = getattr(space, "low", getattr(space, "minimum", None))
    high = getattr(space, "high", getattr(space, "maximum", None))
    if dtype == np.bool_:
        low, high = 0, 1
    if low is None or high is None:
        low, high = -np.inf, np.inf
    bytes_only = dtype == np.uint8
    return box(shape, low, high, np.uint8 if bytes_only else np.float32)


def box(shape: tuple[int, ...], low: Any, high: Any, dtype: Any = np.float32) -> gymnasium.spaces.Box:
    """A box of numbers.

    shape: of the arrays. low, high: bounds, which are broadcast to it. dtype: of the numbers.
    """
    low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high))
    return gymnasium.spaces.Box(low, high, dtype=dtype)


def _parts(space: Any) -> dict[str, Any] | None:
    """The parts of a space by name; None for a space without parts."""
    spaces = getattr(space, "spaces", None)
    if isinstance(spaces, Mapping):
        return dict(spaces)
    if spaces is not None:
        return {str(number): part for number, part in enumerate(spaces)}
    if hasattr(space, "shape"):
        return None
    # Jumanji's, whose parts are attributes.
    attributes = getattr(space, "__dict__", {})
    named = {name: part for name, part in attributes.items() if hasattr(part, "generate_value")}
    return named or None


def _with_numbers(space: gymnasium.spaces.Space) -> gymnasium.spaces.Space:
    match space:
        case gymnasium.spaces.Dict():
            return gymnasium.spaces.Dict([(name, _with_numbers(part)) for name, part in space.spaces.items()])
        case gymnasium.spaces.Discrete() if int(space.n) > MAX_ONE_HOT:
            return box((), 0, int(space.n) - 1)
        case gymnasium.spaces.MultiDiscrete() if _largest(space) > MAX_ONE_HOT:
            return box(space.shape, 0, np.asarray(space.nvec) - 1)
    return space


def _largest(space: gymnasium.spaces.MultiDiscrete) -> int:
    return max(int(count) for count in np.ravel(np.asarray(space.nvec)).tolist())
