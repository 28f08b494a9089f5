"""A traced program as one list of operations, with a mark for every value: whether it has a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# JAX has no public function to tell its own functions from the user's.
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

INFINITE, NAN = 1, 2
# Operations with a jaxpr inside that `first_nan` follows by itself.
BRANCHING = {"cond", "scan", "while"}
# Calls that are inlined. Any other operation with a jaxpr inside, unless it is branching, counts as one operation.
CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_jvp_call_jaxpr", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
# Operations that only move elements, so that the output has the mark of the input.
REARRANGING = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "stop_gradient", "copy", "reshard"}


class Equation(NamedTuple):
    """One operation.

    source: in the jaxpr. inputs, outputs: numbers of the values it reads and makes. line: the equation that has its
    source line; None for `source` itself. Inside a function of JAX it is the outermost call of that function, because
    JAX caches traced functions with the lines of their first caller.
    """

    source: JaxprEqn
    inputs: list[int]
    outputs: list[int]
    line: JaxprEqn | None


class FlatProgram:
    """A jaxpr with all calls inlined. Values are numbered; constants come first among the inputs."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.equations: list[Equation] = []
        self._constants: dict[int, Any] = {}
        self._mark_of: list[int] = []
        self._marked: set[int] = set()
        self.inputs = self._new(len(jaxpr.constvars) + len(jaxpr.invars))
        self.outputs = self._inline(jaxpr, self.inputs, None)

    def _new(self, count: int) -> list[int]:
        new = list(range(len(self._mark_of), len(self._mark_of) + count))
        self._mark_of += new
        return new

    def _constant(self, value: Any) -> int:
        (number,) = self._new(1)
        self._constants[number] = value
        return number

    def _inline(self, jaxpr: Jaxpr, inputs: Sequence[int], line: JaxprEqn | None) -> list[int]:
        """Append the equations of a jaxpr whose inputs have these numbers. Returns the numbers of its outputs."""
        numbers: dict[Var, int] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def number_of(atom: Any) -> int:
            """The number of a variable or literal."""
            return self._constant(np.asarray(atom.val)) if isinstance(atom, Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            operands = [number_of(atom) for atom in equation.invars]
            called = _called(equation)
            if called is None:
                results = self._new(len(equation.outvars))
                self.equations.append(Equation(equation, operands, results, line))
                if _keeps_mark(equation):
                    self._mark_of[results[0]] = self._mark_of[operands[0]]
            else:
                constants = [self._constant(value) for value in called.consts]
                inner_line = equation if line is None and _is_of_jax(called.jaxpr) else line
                results = self._inline(called.jaxpr, [*constants, *operands], inner_line)
            numbers.update(zip(equation.outvars, results, strict=True))
        return [number_of(atom) for atom in jaxpr.outvars]

    def _equations_of(self, values: set[int]) -> list[int]:
        """The numbers of the equations on which some values depend, in order."""
        needed, equations = set(values), []
        for k, equation in reversed(list(enumerate(self.equations))):
            if not needed.isdisjoint(equation.outputs):
                equations.append(k)
                needed.update(equation.inputs)
        return equations[::-1]

    def _values(self, inputs: Sequence[Any], equations: Sequence[int]) -> dict[int, Any]:
        """Evaluate some equations: all values by number."""
        values = self._constants | dict(zip(self.inputs, inputs, strict=True))
        for source, operands, outputs, _ in (self.equations[k] for k in equations):
            primitive = source.primitive
            with source.ctx.manager:
                results = primitive.bind(*(values[i] for i in operands), **primitive.get_bind_params(source.params))
            values.update(zip(outputs, results if primitive.multiple_results else [results], strict=True))
        return values

    def marks(self, inputs: Sequence[Any], wanted: set[int]) -> tuple[list[int], dict[int, list[int]], dict[int, Any]]:
        """Evaluate the program with marks.

        inputs: of the program. wanted: positions of the outputs whose dependencies are evaluated.
        Returns the marks of all values (0 where not evaluated), for each `select_n` the marks of the elements that it
        took from each case, and the inputs of each branching operation; the latter two by number of the equation.
        """
        if not wanted <= self._marked:
            self._marked |= wanted
            self._program = self._with_marks(self._equations_of({self.outputs[i] for i in self._marked}))
        marks, selects, insides = self._program(inputs)
        marks, selects = jax.device_get((marks, selects))
        all_marks = [int(marks.get(n, 0)) for n in self._mark_of]
        return all_marks, {k: [int(mark) for mark in case_marks] for k, case_marks in selects.items()}, insides

    def _with_marks(self, equations: Sequence[int]) -> Callable[..., Any]:
        def evaluate(inputs: Sequence[Any]) -> tuple:
            """(marks, selects, insides), as `marks` returns them."""
            values = self._values(inputs, equations)
            insides, selects = {}, {}
            for k in equations:
                source, operands, outputs, _ = self.equations[k]
                if source.primitive.name in BRANCHING:
                    insides[k] = [values[i] for i in operands]
                elif source.primitive.name == "select_n" and has_marks(values[outputs[0]]):
                    which, *cases = (values[i] for i in operands)
                    selects[k] = [mark(case, which == n) for n, case in enumerate(cases)]
            marks = {n: mark(values[n]) for n in {self._mark_of[n] for n in values} if has_marks(values[n])}
            return marks, selects, insides

        return jax.jit(evaluate)

    def at(self, numbers: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        """Some of the values.

        numbers: of the values. inputs: of the program.
        """
        equations = self._equations_of(set(numbers))

        def evaluate(inputs: Sequence[Any]) -> list[Any]:
            """The values."""
            values = self._values(inputs, equations)
            return [jnp.asarray(values[i]) for i in numbers]

        return jax.jit(evaluate)(inputs)


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The function that a call equation calls; None for other equations."""
    if equation.primitive.name not in CALLS:
        return None
    name = next(name for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in equation.params)
    called = equation.params[name]
    return called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())


def _is_of_jax(jaxpr: Jaxpr) -> bool:
    file = jaxpr.debug_info.func_filename
    return file is not None and not source_info_util.is_user_filename(file)


def _keeps_mark(equation: JaxprEqn) -> bool:
    """Whether the output has the elements of the input, so that its mark is the same."""
    avals: list[Any] = [atom.aval for atom in (*equation.invars[:1], *equation.outvars)]
    if equation.primitive.name == "convert_element_type":
        return has_marks(avals[0]) and avals[0].dtype == avals[1].dtype
    return equation.primitive.name in REARRANGING and 0 not in avals[1].shape


def has_marks(value: Any) -> bool:
    """Whether an array can have a NaN or an infinity, by its dtype."""
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def mark(value: Any, taken: Any = True) -> Array:
    """The bits INFINITE and NAN, for an array with an infinity or a NaN.

    value: the array. taken: which elements count.
    """
    if not has_marks(value):
        return jnp.uint8(0)
    bits = jnp.where(jnp.isnan(value), NAN, jnp.where(jnp.isinf(value), INFINITE, 0)).astype(jnp.uint8)
    bits = jnp.where(taken, bits, 0)
    return jax.lax.reduce(bits, np.uint8(0), jax.lax.bitwise_or, range(bits.ndim))
