"""The operation that made a NaN is found, inside whatever it was done; what NaN was there on purpose is not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

from klimb import PPO, TRPO, NaturalGradient, RunConfig, TrainOptions, make
from klimb.training.diagnose.first_nan import Origin, first_nan
from klimb.training.program import Program

X = jnp.array([1.0, 4.0, -1.0, 9.0])
UNKNOWN = jnp.array([jnp.nan, 2.0])


def line_of(function: Callable[..., Any], text: str) -> str:
    """`test_first_nan.py:line` of the first line of a function that has `text` in it."""
    lines, start = inspect.getsourcelines(function)
    return f"{Path(__file__).name}:{start + next(i for i, line in enumerate(lines) if text in line)} "


def found(function: Callable[..., Any], *arguments: Any) -> Origin:
    origin = first_nan(function, *arguments)
    assert origin is not None
    return origin


def test_the_operation_its_line_and_its_inputs() -> None:
    def harmless(x: Array) -> Array:
        return jnp.tanh(jnp.log(x + 1.5)) / x

    def broken(x: Array) -> Array:
        y = 2 * x
        return jnp.sum(jnp.exp(jnp.log(y) + 1))

    assert first_nan(harmless, X) is None
    origin = found(broken, X)
    assert origin.primitive == "log"
    assert origin.where.startswith(line_of(broken, "jnp.log"))
    assert "test_the_operation_its_line_and_its_inputs.broken)" in origin.where
    assert origin.inputs == "f32[4] in [-2, 18]"
    assert str(origin) == f"log at {origin.where} of f32[4] in [-2, 18]"


def test_the_same_function_of_jax_from_another_line() -> None:
    # What JAX traced once it uses again, with the lines of the first caller.
    first, second = jax.jit(lambda x: jnp.log2(x)), jax.jit(lambda x: -jnp.log2(x))
    for function in (first, second):
        assert found(function, X).where.startswith(line_of(test_the_same_function_of_jax_from_another_line, "jnp.log2"))
    third = lambda x: 3 * jnp.log2(x)  # noqa: E731
    assert found(third, X).where.startswith(line_of(third, "third"))


@pytest.mark.parametrize("reverse", [False, True])
def test_in_a_step_of_a_scan(reverse: bool) -> None:
    @jax.jit
    def inner(x: Array) -> Array:
        return jnp.sqrt(x)

    def by_carry(x: Array) -> Array:
        return jax.lax.scan(lambda total, y: (total + inner(y), total), 0.0, x, reverse=reverse)[0]

    def by_rows(x: Array) -> Array:
        return jax.lax.scan(lambda total, y: (total, inner(y)), 0.0, x, reverse=reverse)[1]

    for function in (by_carry, by_rows):
        origin = found(jax.jit(function), X)
        assert (origin.primitive, origin.inputs) == ("sqrt", "f32[] = -1")
        assert origin.where.startswith(line_of(inner.__wrapped__, "jnp.sqrt"))
        assert first_nan(jax.jit(function), jnp.abs(X)) is None


def test_the_earliest_of_several() -> None:
    def steps(x: Array) -> Array:
        return jax.lax.scan(lambda total, y: (total + jnp.log(y), None), 0.0, x)[0]

    assert found(steps, jnp.array([1.0, -3.0, -2.0])).inputs == "f32[] = -3"
    assert found(lambda x: (jnp.log(x), jnp.sqrt(x - 1)), X).primitive == "log"
    assert found(lambda x: (jnp.sqrt(x - 1), steps(x)), X).primitive == "sqrt"


def test_in_the_body_of_a_while_loop() -> None:
    def halve(x: Array) -> Array:
        scale = 2 * x

        def body(carry: tuple) -> tuple:
            i, y, z = carry
            return i + 1, y - scale, z + jnp.sqrt(y)

        return jax.lax.while_loop(lambda carry: carry[0] < 4, body, (0, 5 * x, x))[2]

    assert found(halve, jnp.float32(1)).inputs == "f32[] = -1"
    # The condition sees it, and ends the loop; no result holds it.
    assert first_nan(lambda x: jax.lax.while_loop(lambda y: jnp.log(y) > -5, lambda y: y - 3, x), 5.0) is None


def test_in_the_branch_that_is_taken() -> None:
    def choose(which: Array, x: Array) -> Array:
        return jax.lax.switch(which, [lambda x: jnp.log(x), lambda x: jnp.sqrt(x), lambda x: x], x)

    primitives = [getattr(first_nan(choose, which, X), "primitive", None) for which in (0, 1, 2, 7, -3)]
    assert primitives == ["log", "sqrt", None, None, "log"]


def test_under_vmap_and_custom_derivatives() -> None:
    def one(x: Array) -> Array:
        return jnp.log(x)

    assert found(jax.vmap(one), X).where.startswith(line_of(one, "jnp.log"))

    def relu(x: Array) -> Array:
        return jax.nn.relu(x - jnp.inf * x)

    origin = found(relu, jnp.float32(0))
    assert (origin.primitive, origin.where.split()[0]) == ("mul", line_of(relu, "jax.nn").strip())

    @jax.custom_jvp
    def ratio(x: Array) -> Array:
        return x / (x - x)

    ratio.defjvp(lambda primals, tangents: (ratio(*primals), tangents[0]))
    assert found(ratio, jnp.float32(0)).where.startswith(line_of(ratio.fun, "return"))
    assert found(jax.checkpoint(one), X).primitive == "log"
    assert first_nan(jax.nn.logsumexp, jnp.array([-jnp.inf, -jnp.inf])) is None


def test_infinities_on_the_way() -> None:
    origin = found(jax.grad(lambda x: jnp.sqrt(x) * x), 0.0)
    assert (origin.primitive, origin.infinity.primitive) == ("mul", "div")  # type: ignore[union-attr]
    assert "; its infinity is from div at " in str(origin)

    def difference(x: Array) -> Array:
        y = jax.lax.fori_loop(0, 3, lambda i, y: jnp.where(i == 1, jnp.exp(y), y), x)
        return jax.jit(lambda y: y - 2 * y)(y)

    origin = found(difference, jnp.float32(1000))
    assert (origin.primitive, origin.inputs) == ("sub", "f32[] = inf, f32[] = inf")
    assert origin.infinity == Origin("exp", origin.infinity.where, "f32[] = 1000")  # type: ignore[union-attr]
    assert found(lambda x: x / (x - x), jnp.float32(0)).infinity is None
    # An infinity that was there on purpose was made by no operation.
    assert found(lambda x: x - jnp.inf * 2 + jnp.inf, 1.0).infinity is None


def test_what_a_select_leaves_out() -> None:
    def guarded(x: Array) -> Array:
        return jnp.where(x > 0, jnp.log(x), 0)

    assert first_nan(guarded, X) is None
    assert first_nan(lambda n: jnp.where(n > 0, 1 / n - 1 / n, jnp.nan), jnp.zeros(3)) is None
    assert found(lambda x: jnp.where(x < 0, jnp.log(x), 0), X).primitive == "log"


def test_nan_on_purpose() -> None:
    assert first_nan(lambda x: jnp.log(x) + 1, UNKNOWN) is None
    assert first_nan(lambda x: x * jnp.nan, X) is None
    assert first_nan(lambda x: x + UNKNOWN[0], X) is None
    assert first_nan(lambda x: jax.lax.scan(lambda carry, y: (carry + y, jnp.nan), jnp.nan, x), X) is None
    assert first_nan(lambda x: jax.lax.cond(x[0] > 0, lambda: jnp.nan, lambda: 0.0), X) is None

    def both(unknown: Array, x: Array) -> tuple:
        carried = jax.lax.scan(lambda carry, y: (carry + 1, carry), unknown, x)
        return carried, unknown + 1, jnp.full(3, jnp.nan), jnp.sqrt(x)

    assert found(both, UNKNOWN, X).primitive == "sqrt"


def test_keys_and_whole_numbers() -> None:
    def sample(state: dict) -> tuple:
        key, other = jax.random.split(state["key"])
        keys, rows = jax.lax.scan(lambda key, _: (jax.random.split(key)[0], key), other, length=3)
        return key, keys, rows, state["count"] + 1, jnp.sqrt(-1 - jax.random.uniform(key, (2, 3)))

    origin = found(sample, {"key": jax.random.key(0), "count": jnp.int32(3)})
    assert origin.primitive == "sqrt"
    assert origin.inputs.startswith("f32[2,3] in [-")


@dataclasses.dataclass(frozen=True)
class Broken:
    """A rule with a mistake of its own: the advantages are taken times a logarithm of -1."""

    right: TRPO = dataclasses.field(default_factory=TRPO)

    def init(self, policy: Any) -> Any:
        return self.right.init(policy)

    def step(self, key: Array, policy: Any, state: Any, batch: Any) -> Any:
        wrong = jnp.log(-1 * jnp.ones_like(batch.advantage))
        return self.right.step(key, policy, state, eqx.tree_at(lambda b: b.advantage, batch, batch.advantage * wrong))


def one_seed(env: str, rule: Any) -> tuple[Any, Any]:
    options = TrainOptions(env_steps=64, num_envs=4, num_steps=8, hidden=(8,), critic_num_minibatches=2)
    program = Program(RunConfig(env, rule, options), make(env))
    return program.iteration, jax.tree.map(lambda x: x[0], program.initial_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "rule"),
    [
        ("CartPole-v1", TRPO()),
        ("Pendulum-v1", TRPO()),
        ("CartPole-v1", NaturalGradient()),
        ("Pendulum-v1", PPO(num_minibatches=2, epochs=1)),
    ],
)
def test_a_healthy_iteration(env: str, rule: Any) -> None:
    iteration, state = one_seed(env, rule)
    assert first_nan(iteration, state) is None


@pytest.mark.slow
def test_an_iteration_with_a_mistake() -> None:
    iteration, state = one_seed("CartPole-v1", TRPO())
    origin = found(dataclasses.replace(iteration, rule=Broken()), state)
    assert origin.primitive == "log"
    assert origin.where.startswith(line_of(Broken.step, "jnp.log"))
