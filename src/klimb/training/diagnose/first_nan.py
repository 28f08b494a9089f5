"""Where a NaN comes from: the operation that made it, not the many that passed it on.

JAX's own `debug_nans` and `checkify.float_checks` stop at any operation with a NaN in its output. Here NaN also says
"unknown", on purpose, and is passed on; what is looked for is an operation that made one of numbers.
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

# There is no public way from an equation to the line that made it.
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from klimb.training.diagnose.flat_program import INFINITE, NAN, Equation, FlatProgram, mark

INTERNALS = {"equinox", "jaxtyping", "beartype", "optax"}
MOST_INPUTS = 4


@dataclass(frozen=True)
class Origin:
    """An operation that made a NaN of numbers, or an infinity of finite ones."""

    primitive: str
    """JAX's name of it: log, div, …"""
    where: str
    """`klimb/estimate/advantages.py:88 (gae)`: the innermost line that is not inside a library."""
    inputs: str
    """`f32[64,2] in [-3.1, 4.2]`: shape and range of each input."""
    infinity: Origin | None = None
    """The operation that made the infinities among the inputs, if it is one of the function's."""

    def __str__(self) -> str:
        """In one line."""
        before = "" if self.infinity is None else f"; its infinity is from {self.infinity}"
        return f"{self.primitive} at {self.where} of {self.inputs}{before}"


def first_nan(function: Callable[..., Any], *arguments: Any) -> Origin | None:
    """The first operation, as executed, that makes a NaN which reaches a result of `function(*arguments)`.

    It is one whose inputs hold no NaN and whose output does. From every result that holds a NaN it is followed back,
    array by array, through calls, branches taken and steps of loops, to what made it; the earliest such operation is
    returned. None where there is no NaN in the results, or where each was there before: in the arguments, a literal
    or a constant. A NaN that no result holds is not reported: one that `where` leaves out, or that only a comparison
    or `isfinite` sees, in the condition of a loop for example.

    `arguments` are pytrees of arrays, PRNG keys among them; results too. The function is traced, and compiled again
    with a mark beside every value, so that what hangs on a rounding error may come out otherwise than it did. All
    carries of a loop are kept that a NaN comes out of. Raises whatever tracing the function raises.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = jax.tree.leaves(arguments)
    # Only what a NaN result depends on is compiled with marks, which costs several times as much.
    marks = np.asarray(_marks_of_results(closed)(*inputs))
    trail = _follow(closed, inputs, set(np.flatnonzero(marks & NAN).tolist()), set())
    return None if trail.made is None else trail.made.origin(trail.infinity)


def explain_first_nan(function: Callable[..., Any], *arguments: Any) -> str:
    """`first_nan` of `function(*arguments)`, in one line for a message."""
    origin = first_nan(function, *arguments)
    if origin is None:
        return "no operation of it made a NaN of numbers: look for infinities"
    return f"the first NaN was made by {origin}"


class _Site(NamedTuple):
    """One operation in one evaluation of the jaxpr that it is in."""

    flat: FlatProgram
    equation: Equation
    inputs: Sequence[Any]
    line: JaxprEqn | None = None

    def origin(self, infinity: _Site | None = None) -> Origin:
        source, given = self.equation.source, self.equation.inputs
        texts = [_describe(value) for value in self.flat.at(given[:MOST_INPUTS], self.inputs)]
        more = len(given) - len(texts)
        inputs = ", ".join(texts + ([f"{more} more"] if more else []))
        before = None if infinity is None else infinity.origin()
        return Origin(source.primitive.name, _where(self.line or self.equation.line or source), inputs, before)


@dataclass
class _Trail:
    """Where the NaN was found to come from, and by which numbers (positions, once it is handed out) it came in.

    `infinite` is followed from what made the NaN, back to what made its infinities. `seen` says whether what was to
    be followed was there at all: compiled otherwise, a rounding error can be another.
    """

    nan: set[int]
    infinite: set[int]
    made: _Site | None = None
    infinity: _Site | None = None
    seen: bool = True

    def relabel(self, line: JaxprEqn | None) -> None:
        """Put what was found inside a function of JAX's on the line that calls it."""
        if line is not None:
            self.made = self.made and self.made._replace(line=line)
            self.infinity = self.infinity and self.infinity._replace(line=line)

    def join(self, earlier: _Trail, place: Callable[[int], int]) -> None:
        """Go on with what was found in something that was executed earlier; `place` numbers its inputs."""
        if earlier.made is not None:
            self.made, self.infinity, self.infinite = earlier.made, earlier.infinity, set()
        self.infinity = earlier.infinity or self.infinity
        self.nan |= set(map(place, earlier.nan))
        self.infinite |= set(map(place, earlier.infinite))


def _follow(closed: ClosedJaxpr, arguments: Sequence[Any], nan: set[int], infinite: set[int]) -> _Trail:
    """From these outputs' NaN and infinities, where they hold any, back to what made them or to the inputs."""
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
        wanted = [{i for i, n in enumerate(equation.outputs) if n in found} for found in (trail.nan, trail.infinite)]
        if not any(wanted):
            continue
        # What a select did not take of a case has no part in what comes out.
        seen = [0, *selects[k]] if k in selects else [marks[n] for n in equation.inputs]
        before = _Trail(set(), set(), seen=False)
        if k in insides:
            before = FOLLOW[equation.source.primitive.name](equation.source, insides[k], *wanted)
            before.relabel(equation.line)
        if not before.seen:
            before = _made_or_passed_on(_Site(flat, equation, inputs), seen, *map(bool, wanted))
        trail.join(before, equation.inputs.__getitem__)
    offset = len(closed.consts)
    for name in ("nan", "infinite"):
        found = getattr(trail, name)
        setattr(trail, name, {i - offset for i, n in enumerate(flat.inputs) if n in found and i >= offset})
    return trail


def _made_or_passed_on(site: _Site, marks: Sequence[int], nan: bool, infinite: bool) -> _Trail:
    """For an operation whose output is to be followed, by the marks of its inputs."""
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
    goes_on, step = _compiled(params["cond_jaxpr"]), _compiled(params["body_jaxpr"])
    carry, history = inputs[last:], []
    while bool(goes_on(*inputs[:first], *carry)[0]):
        history.append([*inputs[first:last], *carry])
        carry = step(*history[-1])
    return _follow_steps(params["body_jaxpr"], history, range(last, len(inputs)), first, nan, infinite)


def _follow_steps(
    body: ClosedJaxpr, history: list[list[Any]], carry: range, offset: int, nan: set[int], infinite: set[int]
) -> _Trail:
    """Through the steps of a loop, the last one first; input i of a step is input i + offset of the loop.

    `carry` are the carry's positions among the loop's inputs; its outputs come first, those of each step after them.
    """
    each = [{i for i in wanted if i >= len(carry)} for wanted in (nan, infinite)]
    trail = _Trail({carry[i] for i in nan - each[0]}, {carry[i] for i in infinite - each[1]})
    trail.seen = not history
    for inputs in reversed(history):
        found = [{i - carry.start for i in wanted if i in carry} for wanted in (trail.nan, trail.infinite)]
        trail.nan -= set(carry)
        trail.infinite -= set(carry)
        before = _follow(body, inputs, found[0] | each[0], found[1] | each[1])
        if before.made is not None:
            each[1] = set()
        trail.join(before, lambda i: i + offset)
        trail.seen |= before.seen
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
    def ours(frame: source_info_util.Frame) -> bool:
        return not frame.file_name.startswith("<@") and INTERNALS.isdisjoint(Path(frame.file_name).parts)

    frames = list(source_info_util.user_frames(source.source_info.traceback))
    frame = next(filter(ours, frames), next(iter(frames), None))
    if frame is None:
        return "an unknown line"
    file = Path(frame.file_name)
    root = next((folder for folder in file.parents if not (folder / "__init__.py").exists()), file.parent)
    return f"{file.relative_to(root)}:{frame.start_line} ({frame.function_name.replace('<locals>.', '')})"
