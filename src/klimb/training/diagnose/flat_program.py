"""A traced program in one list of operations, with a mark beside every value: whether it holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# There is no public way to tell JAX's own functions from the user's.
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

INFINITE, NAN = 1, 2
# One operation each, which can be looked into.
BRANCHING = {"cond", "scan", "while"}
# Written out in place; whatever else holds a jaxpr and is no loop or branch counts as one operation.
CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_jvp_call_jaxpr", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
ARRANGES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "stop_gradient", "copy", "reshard"}


class Equation(NamedTuple):
    """One operation, with the numbers of the values it is from and of those it makes.

    `line` is the equation that says on which line it is: its own, or the outermost call of a function of JAX's. What
    JAX traced once it uses again, with the lines of the first caller.
    """

    source: JaxprEqn
    inputs: list[int]
    outputs: list[int]
    line: JaxprEqn | None


class FlatProgram:
    """A jaxpr with all calls written out. Values are numbered; constants come first among the inputs."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.equations: list[Equation] = []
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
                self.equations.append(Equation(equation, given, made, line))
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
                if source.primitive.name in BRANCHING:
                    insides[k] = [values[i] for i in given]
                elif source.primitive.name == "select_n" and has_marks(values[made[0]]):
                    which, *cases = (values[i] for i in given)
                    selects[k] = [mark(case, which == n) for n, case in enumerate(cases)]
            marks = {n: mark(values[n]) for n in {self._mark_of[n] for n in values} if has_marks(values[n])}
            return marks, selects, insides

        return jax.jit(run)

    def at(self, numbers: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        """Some of the values."""
        equations = self._equations_of(set(numbers))

        def run(inputs: Sequence[Any]) -> list[Any]:
            values = self._values(inputs, equations)
            return [jnp.asarray(values[i]) for i in numbers]

        return jax.jit(run)(inputs)


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
        return has_marks(avals[0]) and avals[0].dtype == avals[1].dtype
    return equation.primitive.name in ARRANGES and 0 not in avals[1].shape


def has_marks(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def mark(value: Any, taken: Any = True) -> Array:
    """Whether there is an infinity, and a NaN, among the numbers of an array: bits."""
    if not has_marks(value):
        return jnp.uint8(0)
    bits = jnp.where(jnp.isnan(value), NAN, jnp.where(jnp.isinf(value), INFINITE, 0)).astype(jnp.uint8)
    bits = jnp.where(taken, bits, 0)
    return jax.lax.reduce(bits, np.uint8(0), jax.lax.bitwise_or, range(bits.ndim))
