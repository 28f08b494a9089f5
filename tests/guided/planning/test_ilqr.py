"""Trajectory optimisation: linear-quadratic problems against Riccati, limits, statuses, finite differences."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from riccati import condensed, random_lq, riccati

from klimb.environments.control.pendulum import Pendulum
from klimb.guided.planning.backward import backward_pass
from klimb.guided.planning.box_qp import solve_box_qp
from klimb.guided.planning.expansion import Expansion, expand
from klimb.guided.planning.ilqr import Settings, plan
from klimb.guided.planning.problem import Problem

PENDULUM = Pendulum(max_torque=4.0)  # twice the limits, so that it never clips within them
LIMIT = 2.0


def pendulum_cost(state: jax.Array, action: jax.Array) -> jax.Array:
    return -PENDULUM.reward(state, action, state)


def pendulum(horizon: int) -> Problem:
    limits = (jnp.asarray([-LIMIT]), jnp.asarray([LIMIT]))
    return Problem(PENDULUM.dynamics, pendulum_cost, horizon, 1, limits=limits)


def curved_problem(horizon: int) -> Problem:
    """Smooth, coupled and far from linear."""

    def dynamics(x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.stack([x[0] + 0.3 * x[1] * u[1], x[1] + 0.3 * jnp.sin(x[0]) + 0.2 * u[0] + 0.1 * u[0] * u[1]])

    def cost(x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.sum(x**2) + 0.1 * jnp.sum(u**2) + 0.05 * jnp.sum(u**4) + 0.1 * x[0] * u[1] + jnp.cos(x[1])

    return Problem(dynamics, cost, horizon, 2, lambda x: jnp.sum(jnp.cosh(x)))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("states", "actions", "horizon"), [(1, 1, 5), pytest.param(4, 1, 30, marks=pytest.mark.slow), (2, 3, 12)]
)
@pytest.mark.parametrize("second_order", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_iteration_reaches_the_riccati_optimum(states: int, actions: int, horizon: int, second_order: bool) -> None:
    rng = np.random.default_rng(states)
    for _ in range(3):
        lq, state = random_lq(rng, states, actions), rng.normal(size=states)
        start = jnp.asarray(rng.normal(size=(horizon, actions)))
        found = plan(lq.problem(horizon), jnp.asarray(state), start, second_order=second_order)
        best = riccati(lq, horizon, state)
        assert int(found.iterations) == 1
        assert bool(found.converged)
        np.testing.assert_allclose(found.cost, best.cost, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.actions, best.actions, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found.gains, best.gains, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found.q_uu, best.q_uu, rtol=1e-8)
        np.testing.assert_allclose(found.feedforward, 0, atol=1e-8)
        assert found.regularisation == 0
        assert found.failed_step == -1


@pytest.mark.slow
def test_single_precision_solves_the_same_problem() -> None:
    rng = np.random.default_rng(0)
    lq, state = random_lq(rng, 3, 2, "float32"), rng.normal(size=3).astype(np.float32)
    found = plan(lq.problem(20), jnp.asarray(state))
    best = riccati(lq, 20, state)
    assert found.actions.dtype == jnp.float32
    assert bool(found.converged)
    np.testing.assert_allclose(found.cost, best.cost, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.gains, best.gains, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_derivatives_equal_finite_differences() -> None:
    problem, rng = curved_problem(6), np.random.default_rng(0)
    actions, state = jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(rng.normal(size=2))
    path = problem.follow(state, lambda t, _: actions[t])
    t, h = 3, 1e-5
    z = np.concatenate([path.states[t], actions[t]])

    def differences(function: Callable) -> np.ndarray:
        columns = [(function(z + h * e) - function(z - h * e)) / (2 * h) for e in np.eye(4)]
        return np.stack(columns, axis=-1)

    step = jax.jit(lambda z: problem.step(t, z[:2], z[2:]))
    cost = jax.jit(lambda z: problem.step_cost(t, z[:2], z[2:]))

    @jax.jit
    def at(z: np.ndarray) -> Expansion:
        moved = path._replace(states=path.states.at[t].set(z[:2]), actions=path.actions.at[t].set(z[2:]))
        return expand(problem, moved, second_order=True)

    found = at(z)
    np.testing.assert_allclose(found.dynamics_z[t], differences(step), atol=1e-8)
    np.testing.assert_allclose(found.cost_z[t], differences(cost), atol=1e-8)
    np.testing.assert_allclose(found.cost_zz[t], differences(lambda z: at(z).cost_z[t]), atol=1e-7)
    np.testing.assert_allclose(found.dynamics_zz[t], differences(lambda z: at(z).dynamics_z[t]), atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_the_gradient_is_that_of_the_cost_whatever_the_regularisation() -> None:
    problem, rng = curved_problem(6), np.random.default_rng(1)
    actions, state = jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(rng.normal(size=2))
    exact = jax.jit(jax.grad(lambda u: problem.follow(state, lambda t, _: u[t]).cost))(actions)

    @jax.jit
    def found(mu: jax.Array) -> jax.Array:
        expansion = expand(problem, problem.follow(state, lambda t, _: actions[t]), second_order=False)
        return backward_pass(expansion, actions, problem.bounds(actions.dtype), mu).gradient

    for mu in (0.0, 7.0):
        np.testing.assert_allclose(found(jnp.asarray(mu)), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_curvature_is_exact_with_second_derivatives_and_gauss_newton_without() -> None:
    problem, state = curved_problem(1), jnp.asarray([0.7, -0.4])
    action = jnp.asarray([0.3, 0.8])

    def total(u: jax.Array) -> jax.Array:
        return problem.cost(state, u) + problem.final_cost(problem.dynamics(state, u))

    settings = Settings(max_iterations=0)
    ddp = plan(problem, state, action[None], second_order=True, settings=settings)
    np.testing.assert_allclose(ddp.q_uu[0], jax.jit(jax.hessian(total))(action), rtol=1e-12)
    ilqr = plan(problem, state, action[None], settings=settings)

    @jax.jit
    def gauss_newton(u: jax.Array) -> jax.Array:
        by_u = jax.jacobian(problem.dynamics, 1)(state, u)
        curvature = jax.hessian(problem.final_cost)(problem.dynamics(state, u))
        return jax.hessian(problem.cost, 1)(state, u) + by_u.T @ curvature @ by_u

    np.testing.assert_allclose(ilqr.q_uu[0], gauss_newton(action), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("second_order", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_curved_problem_ends_where_a_general_optimiser_does(second_order: bool) -> None:
    problem, state = curved_problem(8), jnp.asarray([0.5, -0.3])
    found = plan(problem, state, second_order=second_order, settings=Settings(cost_tolerance=0.0))
    total = jax.jit(jax.value_and_grad(lambda u: problem.follow(state, lambda t, _: u.reshape(8, 2)[t]).cost))
    start = np.asarray(found.actions).ravel() + 0.01
    other = scipy.optimize.minimize(total, start, jac=True, options={"gtol": 1e-9})
    assert bool(found.converged)
    np.testing.assert_allclose(found.cost, other.fun, rtol=1e-10)
    np.testing.assert_allclose(found.actions.ravel(), other.x, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_box_programs_equal_bounded_least_squares(size: int) -> None:
    rng = np.random.default_rng(size)
    roots = rng.normal(size=(50, size, size)) + 0.5 * np.eye(size)
    targets, low = 2 * rng.normal(size=(50, size)), -rng.uniform(0, 1, (50, size))
    high = rng.uniform(0, 1, (50, size))
    hessians = np.einsum("nki,nkj->nij", roots, roots)
    gradients = -np.einsum("nki,nk->ni", roots, targets)
    arguments = map(jnp.asarray, (hessians, gradients, low, high, np.zeros_like(low)))
    found = jax.jit(jax.vmap(solve_box_qp))(*arguments)
    for i, (root, target) in enumerate(zip(roots, targets, strict=True)):
        best = scipy.optimize.lsq_linear(root, target, (low[i], high[i]), method="bvls", tol=1e-14).x
        np.testing.assert_allclose(found.x[i], best, atol=1e-8)
    assert np.all((found.x >= low) & (found.x <= high))
    assert np.max(found.iterations) < 12


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_limits_are_kept_exactly_and_the_limited_optimum_is_found() -> None:
    rng = np.random.default_rng(3)
    low, high = jnp.asarray([-0.2, -0.5]), jnp.asarray([0.3, 0.1])
    for _ in range(3):
        lq, state = random_lq(rng, 3, 2), rng.normal(size=3)
        found = plan(lq.problem(12, (low, high)), jnp.asarray(state), settings=Settings(cost_tolerance=0.0))
        hessian, gradient = condensed(lq, 12, state)
        root = np.linalg.cholesky(hessian).T
        bounds = (np.tile(low, 12), np.tile(high, 12))
        best = scipy.optimize.lsq_linear(root, -np.linalg.solve(root.T, gradient), bounds, method="bvls", tol=1e-14).x
        held = (found.actions == low) | (found.actions == high)
        assert np.all((found.actions >= low) & (found.actions <= high))
        assert 3 < np.sum(held) < 24
        assert bool(found.converged)
        np.testing.assert_allclose(found.actions.ravel(), best, atol=1e-6)
        assert np.all(found.gains[held] == 0)
        assert np.all(np.any(found.gains[~held] != 0, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize("second_order", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_step_is_ever_worse(second_order: bool) -> None:
    """Costs after 0, 1, 2 ... iterations, from random actions, with too little and far too much regularisation."""
    problem = pendulum(60)
    starts = problem.random_actions(jax.random.key(0), 3)
    states = jax.vmap(PENDULUM.initial)(jax.random.split(jax.random.key(1), 3))

    def cost_after(iterations: jax.Array, state: jax.Array, start: jax.Array, mu: jax.Array) -> jax.Array:
        settings = Settings(iterations, initial_regularisation=mu)
        return plan(problem, state, start, second_order=second_order, settings=settings).cost

    over_starts = jax.vmap(cost_after, (None, 0, 0, None))
    every = jax.jit(jax.vmap(jax.vmap(over_starts, (None, None, None, 0)), (0, None, None, None)))
    costs = np.asarray(every(jnp.arange(16), states, starts, jnp.asarray([0.0, 1.0, 1e8])))
    assert np.all(np.isfinite(costs))
    assert np.all(np.diff(costs, axis=0) <= 0)
    assert np.all(costs[-1, :2] < 0.99 * costs[0, :2])


@pytest.mark.slow
def test_many_at_once_equal_one_by_one() -> None:
    problem = pendulum(30)
    states = jnp.asarray([[0.3, 0.0], [2.0, 1.0], [-1.0, -0.5]])
    together = jax.vmap(lambda state: plan(problem, state))(states)
    for i, state in enumerate(states):
        alone = plan(problem, state)
        assert together.status[i] == alone.status
        np.testing.assert_allclose(together.cost[i], alone.cost, rtol=1e-5)
        np.testing.assert_allclose(together.actions[i], alone.actions, atol=1e-3)


@pytest.mark.slow
def test_the_cheapest_of_several_restarts_is_returned() -> None:
    problem, state = pendulum(30), jnp.asarray([np.pi, 0.0])
    starts = jnp.concatenate([jnp.zeros((1, 30, 1)), problem.random_actions(jax.random.key(0), 3)])
    alone = [float(plan(problem, state, start).cost) for start in starts]
    assert float(plan(problem, state, starts).cost) == pytest.approx(min(alone), rel=1e-5)
    # Nothing moves a pendulum that hangs at rest: zero torque is stationary there.
    assert min(alone) < alone[0]


@pytest.mark.slow
def test_a_second_plan_compiles_nothing() -> None:
    traces = []

    def dynamics(x: jax.Array, u: jax.Array) -> jax.Array:
        traces.append(1)
        return x + u

    problem = Problem(dynamics, lambda x, u: jnp.sum(x**2) + jnp.sum(u**2), 5, 1)
    plan(problem, jnp.ones(1))
    first = len(traces)
    plan(problem, 2 * jnp.ones(1), jnp.ones((5, 1)), settings=Settings(3, gradient_tolerance=1e-3))
    assert len(traces) == first > 0
