"""Finds the operation that produced a NaN, not the many that propagated it.

JAX's own `debug_nans` and `checkify.float_checks` stop at any operation with a NaN in its output. klimb also uses NaN
on purpose, for "unknown"; the operation to find is one that produced a NaN from inputs without NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# JAX has no public function from an equation to its source line.
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from klimb.precision import full_precision
from klimb.training.diagnose.flat_program import INFINITE, NAN, Equation, FlatProgram, mark

INTERNALS = {"equinox", "jaxtyping", "beartype", "optax"}
"""Libraries whose frames are skipped in the search for the source line."""
MAX_INPUTS = 4
"""Inputs of an operation that are described."""


@dataclass(frozen=True)
class Origin:
    """An operation that produced a NaN from inputs without NaN, or an infinity from finite inputs."""

    primitive: str
    """Its name in JAX: log, div, …"""
    where: str
    """Its innermost source line outside libraries, e.g. `klimb/estimate/advantages.py:88 (gae)`."""
    inputs: str
    """Shape and range of each input, e.g. `f32[64,2] in [-3.1, 4.2]`."""
    infinity: Origin | None = None
    """The operation that produced the infinities among the inputs, if the function did."""

    def __str__(self) -> str:
        """The origin in one line."""
        infinity = "" if self.infinity is None else f"; its infinity is from {self.infinity}"
        return f"{self.primitive} at {self.where} of {self.inputs}{infinity}"


def first_nan(function: Callable[..., Any], *arguments: Any) -> Origin | None:
    """The first operation, in order of execution, that produced a NaN which reaches a result of a function.

    function: traceable, of pytrees of arrays and PRNG keys. arguments: to call it with.

    The operation has a NaN in its output and none in its inputs. The search starts at every result with a NaN and
    follows it back, array by array, through calls, the branches taken and the steps of loops. Returns the earliest
    such operation; None if no result has a NaN, or if every NaN was already in the arguments, a literal or a constant.
    A NaN that reaches no result is not reported: one that `where` does not select, or that only a comparison or
    `isfinite` reads, in the condition of a loop for example.

    The function is compiled again with a mark for every value, so rounding may differ from the original run. Memory:
    all carries of a loop that returns a NaN are stored. Raises what tracing the function raises.
    """
    closed = jax.make_jaxpr(full_precision(function))(*arguments)
    inputs = jax.tree.leaves(arguments)
    # Compiling with marks takes several times as long: only what a result with a NaN depends on is compiled so.
    marks = np.asarray(_marks_of_results(closed)(*inputs))
    trail = _follow(closed, inputs, set(np.flatnonzero(marks & NAN).tolist()), set())
    return None if trail.made is None else trail.made.origin(trail.infinity)


def explain_first_nan(function: Callable[..., Any], *arguments: Any) -> str:
    """`first_nan` of `function(*arguments)`, in one line for a message."""
    origin = first_nan(function, *arguments)
    if origin is None:
        return "none of its operations produced a NaN from other numbers: look for infinities"
    return f"the first NaN was made by {origin}"


class _Site(NamedTuple):
    """One operation, in one evaluation of its jaxpr.

    flat: the program. equation: the operation. inputs: of the program. line: the equation whose source line is shown.
    """

    flat: FlatProgram
    equation: Equation
    inputs: Sequence[Any]
    line: JaxprEqn | None = None

    def origin(self, infinity: _Site | None = None) -> Origin:
        """The operation's description. infinity: the operation that produced its infinite inputs."""
        source, operands = self.equation.source, self.equation.inputs
        texts = [_describe(value) for value in self.flat.at(operands[:MAX_INPUTS], self.inputs)]
        more = len(operands) - len(texts)
        inputs = ", ".join(texts + ([f"{more} more"] if more else []))
        cause = None if infinity is None else infinity.origin()
        return Origin(source.primitive.name, _where(self.line or self.equation.line or source), inputs, cause)


@dataclass
class _Trail:
    """State of the search: the values that are still to be followed back, and the operations found.

    nan, infinite: numbers of values with a NaN or an infinity to follow; in the result of a search, positions among
    the inputs. made: the operation that produced the NaN. infinity: the one that produced the infinities among the
    inputs of `made`. seen: whether the NaN or infinity to follow occurred at all: in a program that was compiled
    differently it may not, because of rounding.
    """

    nan: set[int]
    infinite: set[int]
    made: _Site | None = None
    infinity: _Site | None = None
    seen: bool = True

    def relabel(self, line: JaxprEqn | None) -> None:
        """Attribute operations inside a function of JAX to the line that calls it."""
        if line is not None:
            self.made = self.made and self.made._replace(line=line)
            self.infinity = self.infinity and self.infinity._replace(line=line)

    def join(self, earlier: _Trail, place: Callable[[int], int]) -> None:
        """Continue with the result of a search in operations executed earlier.

        earlier: that result. place: position of an input ↦ number of the value here.
        """
        if earlier.made is not None:
            self.made, self.infinity, self.infinite = earlier.made, earlier.infinity, set()
        self.infinity = earlier.infinity or self.infinity
        self.nan |= set(map(place, earlier.nan))
        self.infinite |= set(map(place, earlier.infinite))


def _follow(closed: ClosedJaxpr, arguments: Sequence[Any], nan: set[int], infinite: set[int]) -> _Trail:
    """Follow the NaN and infinities of some outputs, by position, back to their origin or to the inputs."""
    if not nan and not infinite:
        return _Trail(set(), set(), seen=False)
    flat = _flat(closed.jaxpr)
    inputs = [*closed.consts, *arguments]
    marks, selects, insides = flat.marks(inputs, nan | infinite)
    trail = _Trail(
        {flat.outputs[i] for i in nan if marks[flat.outputs[i]] & NAN},
        {flat.outputs[i] for i in infinite if marks[flat.outputs[i]] & INFINITE},
    )
    trail.seen = bool(trail.nan or trail.infinite)
    for k, equation in reversed(list(enumerate(flat.equations))):
        wanted = [{i for i, n in enumerate(equation.outputs) if n in values} for values in (trail.nan, trail.infinite)]
        if not any(wanted):
            continue
        # Elements that a select did not take do not affect its output.
        input_marks = [0, *selects[k]] if k in selects else [marks[n] for n in equation.inputs]
        earlier = _Trail(set(), set(), seen=False)
        if k in insides:
            earlier = FOLLOW[equation.source.primitive.name](equation.source, insides[k], *wanted)
            earlier.relabel(equation.line)
        if not earlier.seen:
            earlier = _produced_or_propagated(_Site(flat, equation, inputs), input_marks, *map(bool, wanted))
        trail.join(earlier, equation.inputs.__getitem__)
    offset = len(closed.consts)
    for name in ("nan", "infinite"):
        values = getattr(trail, name)
        setattr(trail, name, {i - offset for i, n in enumerate(flat.inputs) if n in values and i >= offset})
    return trail


def _produced_or_propagated(site: _Site, marks: Sequence[int], nan: bool, infinite: bool) -> _Trail:
    """Whether an operation produced the NaN or infinity of its output or propagated it, by the marks of its inputs."""
    bad = {bit: {i for i, mark in enumerate(marks) if mark & bit} for bit in (NAN, INFINITE)}
    if nan and not bad[NAN]:
        return _Trail(set(), bad[INFINITE], made=site)
    made_infinity = infinite and not any(marks)
    return _Trail(
        bad[NAN] if nan else set(), bad[INFINITE] if infinite else set(), infinity=site if made_infinity else None
    )


def _follow_cond(source: JaxprEqn, inputs: list[Any], nan: set[int], infinite: set[int]) -> _Trail:
    branches = source.params["branches"]
    taken = min(max(int(inputs[0]), 0), len(branches) - 1)
    trail = _follow(branches[taken], inputs[1:], nan, infinite)
    return _Trail(
        {i + 1 for i in trail.nan}, {i + 1 for i in trail.infinite}, trail.made, trail.infinity, seen=trail.seen
    )


def _follow_scan(source: JaxprEqn, inputs: list[Any], nan: set[int], infinite: set[int]) -> _Trail:
    params = source.params
    body, length = params["jaxpr"], params["length"]
    first = params["num_consts"]
    last = first + params["num_carry"]
    step, carry, history = _compiled(body), inputs[first:last], []
    for t in reversed(range(length)) if params["reverse"] else range(length):
        history.append([*inputs[:first], *carry, *_row(inputs[last:], t)])
        carry = step(*history[-1])[: last - first]
    return _follow_steps(body, history, range(first, last), 0, nan, infinite)


def _follow_while(source: JaxprEqn, inputs: list[Any], nan: set[int], infinite: set[int]) -> _Trail:
    params = source.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    continues, step = _compiled(params["cond_jaxpr"]), _compiled(params["body_jaxpr"])
    carry, history = inputs[last:], []
    while bool(continues(*inputs[:first], *carry)[0]):
        history.append([*inputs[first:last], *carry])
        carry = step(*history[-1])
    return _follow_steps(params["body_jaxpr"], history, range(last, len(inputs)), first, nan, infinite)


def _follow_steps(
    body: ClosedJaxpr, history: list[list[Any]], carry: range, offset: int, nan: set[int], infinite: set[int]
) -> _Trail:
    """Follow through the steps of a loop, the last one first.

    body: one step. history: the inputs of every step. carry: positions of the carry among the loop's inputs; among the
    outputs the carry comes first, and the outputs of each step after it. offset: input i of a step is input i + offset
    of the loop. nan, infinite: positions of the loop's outputs to follow.
    """
    stacked = [{i for i in wanted if i >= len(carry)} for wanted in (nan, infinite)]
    trail = _Trail({carry[i] for i in nan - stacked[0]}, {carry[i] for i in infinite - stacked[1]})
    trail.seen = not history
    for inputs in reversed(history):
        carried = [{i - carry.start for i in wanted if i in carry} for wanted in (trail.nan, trail.infinite)]
        trail.nan -= set(carry)
        trail.infinite -= set(carry)
        earlier = _follow(body, inputs, carried[0] | stacked[0], carried[1] | stacked[1])
        if earlier.made is not None:
            stacked[1] = set()
        trail.join(earlier, lambda i: i + offset)
        trail.seen |= earlier.seen
    return trail


FOLLOW = {"cond": _follow_cond, "scan": _follow_scan, "while": _follow_while}


@lru_cache(maxsize=128)
def _flat(jaxpr: Jaxpr) -> FlatProgram:
    return FlatProgram(jaxpr)


@lru_cache(maxsize=128)
def _compiled(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    return jax.jit(jaxpr_as_fun(closed))


@lru_cache(maxsize=128)
def _marks_of_results(closed: ClosedJaxpr) -> Callable[..., Array]:
    return jax.jit(lambda *inputs: jnp.stack([*map(mark, jaxpr_as_fun(closed)(*inputs)), jnp.uint8(0)]))


def _is_outside_libraries(frame: source_info_util.Frame) -> bool:
    return not frame.file_name.startswith("<@") and INTERNALS.isdisjoint(Path(frame.file_name).parts)


@jax.jit
def _row(columns: list[Any], t: Any) -> list[Any]:
    return [x[t] for x in columns]


def _describe(value: Array) -> str:
    kind = jax.typeof(value).str_short(short_dtypes=True)
    if not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value) or value.size == 0:
        return kind
    low, high = float(jnp.min(value)), float(jnp.max(value))
    return f"{kind} = {low:.4g}" if low == high else f"{kind} in [{low:.4g}, {high:.4g}]"


def _where(source: JaxprEqn) -> str:
    frames = list(source_info_util.user_frames(source.source_info.traceback))
    frame = next(filter(_is_outside_libraries, frames), next(iter(frames), None))
    if frame is None:
        return "an unknown line"
    file = Path(frame.file_name)
    root = next((folder for folder in file.parents if not (folder / "__init__.py").exists()), file.parent)
    return f"{file.relative_to(root)}:{frame.start_line} ({frame.function_name.replace('<locals>.', '')})"
