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
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jaxtyping import Array

INFINITE, NAN = 1, 2
# Written out in place; whatever else holds a jaxpr and is no loop or branch counts as one operation.
CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_jvp_call_jaxpr", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
ARRANGES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "stop_gradient", "copy", "reshard"}
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


class _Equation(NamedTuple):
    """One operation, with the numbers of the values it is from and of those it makes.

    `line` is the equation that says on which line it is: its own, or the outermost call of a function of JAX's. What
    JAX traced once it uses again, with the lines of the first caller.
    """

    source: JaxprEqn
    inputs: list[int]
    outputs: list[int]
    line: JaxprEqn | None


class _Flat:
    """A jaxpr with all calls written out. Values are numbered; constants come first among the inputs."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.equations: list[_Equation] = []
        self._constants: dict[int, Any] = {}
        self._mark_of: list[int] = []
        self._marked: set[int] = set()
        self.inputs = self._new(len(jaxpr.constvars) + len(jaxpr.invars))
        self.outputs = self._write_out(jaxpr, self.inputs, None)

    def _new(self, count: int) -> list[int]:
        new = list(range(len(self._mark_of), len(self._mark_of) + count))
        self._mark_of += new
        return new

    def _constant(self, value: Any) -> int:
        (number,) = self._new(1)
        self._constants[number] = value
        return number

    def _write_out(self, jaxpr: Jaxpr, inputs: Sequence[int], line: JaxprEqn | None) -> list[int]:
        numbers: dict[Var, int] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def read(atom: Any) -> int:
            return self._constant(np.asarray(atom.val)) if isinstance(atom, Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            given = [read(atom) for atom in equation.invars]
            called = _called(equation)
            if called is None:
                made = self._new(len(equation.outvars))
                self.equations.append(_Equation(equation, given, made, line))
                if _holds_the_same(equation):
                    self._mark_of[made[0]] = self._mark_of[given[0]]
            else:
                constants = [self._constant(value) for value in called.consts]
                inside = equation if line is None and _is_of_jax(called.jaxpr) else line
                made = self._write_out(called.jaxpr, [*constants, *given], inside)
            numbers.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equations_of(self, values: set[int]) -> list[int]:
        """The equations, by number, that some values depend on."""
        needed, found = set(values), []
        for k, equation in reversed(list(enumerate(self.equations))):
            if not needed.isdisjoint(equation.outputs):
                found.append(k)
                needed.update(equation.inputs)
        return found[::-1]

    def _values(self, inputs: Sequence[Any], equations: Sequence[int]) -> dict[int, Any]:
        values = self._constants | dict(zip(self.inputs, inputs, strict=True))
        for source, given, made, _ in (self.equations[k] for k in equations):
            primitive = source.primitive
            with source.ctx.manager:
                results = primitive.bind(*(values[i] for i in given), **primitive.get_bind_params(source.params))
            values.update(zip(made, results if primitive.multiple_results else [results], strict=True))
        return values

    def marks(self, inputs: Sequence[Any], wanted: set[int]) -> tuple[list[int], dict[int, list[int]], dict[int, Any]]:
        """The marks of all values that some outputs depend on; of what each select took of its cases; loops' inputs."""
        if not wanted <= self._marked:
            self._marked |= wanted
            self._program = self._with_marks(self._equations_of({self.outputs[i] for i in self._marked}))
        marks, selects, insides = self._program(inputs)
        marks, selects = jax.device_get((marks, selects))
        all_marks = [int(marks.get(n, 0)) for n in self._mark_of]
        return all_marks, {k: [int(mark) for mark in found] for k, found in selects.items()}, insides

    def _with_marks(self, equations: Sequence[int]) -> Callable[..., Any]:
        def run(inputs: Sequence[Any]) -> tuple:
            values = self._values(inputs, equations)
            insides, selects = {}, {}
            for k in equations:
                source, given, made, _ = self.equations[k]
                if source.primitive.name in INSIDE:
                    insides[k] = [values[i] for i in given]
                elif source.primitive.name == "select_n" and _has_marks(values[made[0]]):
                    which, *cases = (values[i] for i in given)
                    selects[k] = [_mark(case, which == n) for n, case in enumerate(cases)]
            marks = {n: _mark(values[n]) for n in {self._mark_of[n] for n in values} if _has_marks(values[n])}
            return marks, selects, insides

        return jax.jit(run)

    def at(self, numbers: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        """Some of the values."""
        equations = self._equations_of(set(numbers))

        def run(inputs: Sequence[Any]) -> list[Any]:
            values = self._values(inputs, equations)
            return [jnp.asarray(values[i]) for i in numbers]

        return jax.jit(run)(inputs)


class _Site(NamedTuple):
    """One operation in one evaluation of the jaxpr that it is in."""

    flat: _Flat
    equation: _Equation
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
            before = INSIDE[equation.source.primitive.name](equation.source, insides[k], *wanted)
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


INSIDE = {"cond": _follow_cond, "scan": _follow_scan, "while": _follow_while}


@lru_cache(maxsize=128)
def _flat(jaxpr: Jaxpr) -> _Flat:
    return _Flat(jaxpr)


@lru_cache(maxsize=128)
def _compiled(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    return jax.jit(jaxpr_as_fun(closed))


@lru_cache(maxsize=128)
def _marks_of_results(closed: ClosedJaxpr) -> Callable[..., Array]:
    return jax.jit(lambda *inputs: jnp.stack([*map(_mark, jaxpr_as_fun(closed)(*inputs)), jnp.uint8(0)]))


@jax.jit
def _row(columns: list[Any], t: Any) -> list[Any]:
    return [x[t] for x in columns]


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """What an equation that is only a call calls."""
    if equation.primitive.name not in CALLS:
        return None
    name = next(name for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in equation.params)
    called = equation.params[name]
    return called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())


def _is_of_jax(jaxpr: Jaxpr) -> bool:
    file = jaxpr.debug_info.func_filename
    return file is not None and not source_info_util.is_user_filename(file)


def _holds_the_same(equation: JaxprEqn) -> bool:
    """Whether what comes out holds what goes in, elsewhere: its mark is the same."""
    avals: list[Any] = [atom.aval for atom in (*equation.invars[:1], *equation.outvars)]
    if equation.primitive.name == "convert_element_type":
        return _has_marks(avals[0]) and avals[0].dtype == avals[1].dtype
    return equation.primitive.name in ARRANGES and 0 not in avals[1].shape


def _has_marks(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _mark(value: Any, taken: Any = True) -> Array:
    """Whether there is an infinity, and a NaN, among the numbers of an array: bits."""
    if not _has_marks(value):
        return jnp.uint8(0)
    bits = jnp.where(jnp.isnan(value), NAN, jnp.where(jnp.isinf(value), INFINITE, 0)).astype(jnp.uint8)
    bits = jnp.where(taken, bits, 0)
    return jax.lax.reduce(bits, np.uint8(0), jax.lax.bitwise_or, range(bits.ndim))


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
