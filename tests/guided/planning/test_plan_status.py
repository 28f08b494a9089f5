"""How a search for a plan ends where it fails, and what is said about it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.errors import ConfigError
from klimb.guided.planning.ilqr import Settings, plan
from klimb.guided.planning.problem import Problem
from klimb.guided.planning.trajectory import PlanStatus


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_cost_that_is_not_positive_definite_names_its_time_step(start: float) -> None:
    """At time step 7 the second action, which moves nothing, is paid for with its square."""

    def cost(t: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.sum(x**2) + 0.5 * u[0] ** 2 + 0.5 * jnp.where(t == 7, -0.3, 1.0) * u[1] ** 2

    problem = Problem(lambda t, x, u: x + u[:1], cost, 12, 2, time_varying=True)
    found = plan(problem, jnp.ones(1), jnp.full((12, 2), start), settings=Settings(20))
    assert found.status == PlanStatus.NOT_POSITIVE_DEFINITE
    assert found.failed_step == 7
    with pytest.raises(ConfigError, match=r"in the actions at time step 7 \(smallest eigenvalue -0\.3 "):
        found.require_usable()


@pytest.mark.slow
def test_regularisation_that_may_not_grow_enough_names_the_time_step() -> None:
    problem = Problem(lambda x, u: x, lambda x, u: -jnp.sum(u**2), 4, 1)
    found = plan(problem, jnp.ones(1), settings=Settings(max_regularisation=1.0))
    assert found.status == PlanStatus.NOT_POSITIVE_DEFINITE
    assert found.failed_step == 3


@pytest.mark.slow
def test_a_concave_cost_within_limits_ends_in_a_corner() -> None:
    limits = (jnp.asarray([-1.0]), jnp.asarray([2.0]))
    problem = Problem(lambda x, u: x, lambda x, u: -jnp.sum(u**2), 4, 1, limits=limits)
    found = plan(problem, jnp.ones(1), jnp.full((4, 1), 0.1))
    assert bool(found.converged)
    np.testing.assert_array_equal(found.actions, 2.0)
    assert found.regularisation > 2
    assert np.all(found.q_uu > 0)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["dynamics", "cost", "derivative"])
def test_what_is_not_finite_returns_the_path_it_was_given(where: str) -> None:
    def dynamics(t: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
        return x + jnp.where((t == 2) & (where == "dynamics"), jnp.nan, u)

    def cost(t: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
        bad = {"cost": jnp.where(t == 2, jnp.nan, u[0]), "derivative": jnp.sqrt(jnp.abs(t - 2) + 0 * u[0] ** 2)}
        return jnp.sum(x**2) + jnp.sum(u**2) + bad.get(where, 0.0)

    problem, start = Problem(dynamics, cost, 5, 1, time_varying=True), jnp.arange(5.0)[:, None]
    found = plan(problem, jnp.ones(1), start)
    assert found.status == PlanStatus.NONFINITE
    assert found.failed_step == 2
    np.testing.assert_array_equal(found.actions, start)
    np.testing.assert_array_equal(found.gains, 0)
    with pytest.raises(ConfigError, match="not finite at time step"):
        found.require_usable()


def test_a_promise_that_no_step_keeps_is_no_progress() -> None:
    problem = Problem(lambda x, u: x, lambda x, u: jnp.sum(0.5 * u**2 - 10 * u + jax.lax.stop_gradient(20 * u)), 3, 1)
    found = plan(problem, jnp.ones(1))
    assert found.status == PlanStatus.NO_PROGRESS
    np.testing.assert_array_equal(found.actions, 0)
    assert found.require_usable() is found


@pytest.mark.slow
def test_too_few_iterations_say_so() -> None:
    problem = Problem(lambda x, u: x + jnp.sin(u), lambda x, u: jnp.sum(jnp.cosh(x)) + 0.1 * jnp.sum(u**2), 30, 1)
    found = plan(problem, jnp.asarray([2.0]), jnp.ones((30, 1)), settings=Settings(2))
    assert found.status == PlanStatus.ITERATION_LIMIT
    assert found.iterations == 2


def test_every_status_has_a_message() -> None:
    assert all(status.message for status in PlanStatus)


def test_mistakes_are_named() -> None:
    def fails(problem: Problem, start: jax.Array | None, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            plan(problem, jnp.ones(2), start)

    def cost(x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.sum(x**2) + jnp.sum(u**2)

    fails(Problem(lambda x, u: x, cost, 5, 1), jnp.ones((4, 1)), r"\(4, 1\).*\(5, 1\)")
    fails(Problem(lambda x, u: x[:1], cost, 5, 1), None, r"dynamics has to return float32\[2\]")
    fails(Problem(lambda x, u: x, lambda x, u: x, 5, 1), None, r"cost has to return float32\[\]")
    fails(Problem(lambda x, u: x, cost, 0, 1), None, "horizon is 0")
    fails(Problem(lambda x, u: x, cost, 5, 9), None, "this problem has 9")
    with pytest.raises(ConfigError, match="between the limits"):
        Problem(lambda x, u: x, cost, 5, 1).random_actions(jax.random.key(0), 2)
