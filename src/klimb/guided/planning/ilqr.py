"""Trajectory optimisation: iterative LQR and differential dynamic programming, with limits on the actions."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.errors import ConfigError
from klimb.guided.planning.backward import Backward, backward_pass
from klimb.guided.planning.expansion import Expansion, expand
from klimb.guided.planning.problem import Path, Problem, Time
from klimb.guided.planning.trajectory import Plan, PlanStatus, best_of

RUNNING = -1
STEP_LENGTHS = 1.1 ** -np.square(np.arange(11.0))  # 1 to 7e-5 (Tassa et al. 2012)
FACTOR = 1.6  # by which the factor of the regularisation itself grows and shrinks
PATIENCE = 3
"""Accepted steps in a row without a gain worth having: one alone may be a step that regularisation kept short."""


class Settings(NamedTuple):
    """How long to search, and when to be content. None of these compiles again when changed.

    max_iterations: steps tried. gradient_tolerance: converged where no action's gradient, projected on the limits,
    is larger (cost per action). cost_tolerance: converged where less than this fraction of Σ_t |cost_t| is to be
    gained; never less than rounding makes of it. sufficient_decrease: the fraction of the promised reduction that
    a step must keep. Regularisation is in cost per action²: where the search starts, the least other than zero,
    and the most before it gives up.
    """

    max_iterations: int | Int[Array, ""] = 200
    gradient_tolerance: float | Float[Array, ""] = 1e-6
    cost_tolerance: float | Float[Array, ""] = 1e-9
    sufficient_decrease: float | Float[Array, ""] = 1e-4
    initial_regularisation: float | Float[Array, ""] = 0.0
    min_regularisation: float | Float[Array, ""] = 1e-6
    max_regularisation: float | Float[Array, ""] = 1e10


class Regularisation(NamedTuple):
    """μ and the factor it last changed by: the schedule of Tassa et al. 2012, section II-F, ever faster either way."""

    mu: Float[Array, ""]
    factor: Float[Array, ""]

    def raised(self, least: float | Array) -> Regularisation:
        factor = jnp.maximum(FACTOR, self.factor * FACTOR)
        return Regularisation(jnp.maximum(least, self.mu * factor), factor)

    def lowered(self, least: float | Array) -> Regularisation:
        factor = jnp.minimum(1 / FACTOR, self.factor / FACTOR)
        mu = self.mu * factor
        return Regularisation(jnp.where(mu < least, 0, mu), factor)


class Search(NamedTuple):
    """What one iteration hands to the next. stalled: accepted steps in a row that gained next to nothing."""

    path: Path
    regularisation: Regularisation
    iterations: Int[Array, ""]
    stalled: Int[Array, ""]
    status: Int[Array, ""]


def plan(
    problem: Problem,
    initial_state: Float[Array, " D"],
    initial_actions: Float[Array, "T A"] | Float[Array, "R T A"] | None = None,
    *,
    second_order: bool = False,
    settings: Settings | None = None,
) -> Plan:
    """A locally optimal path from `initial_state`, and the feedback around it (Tassa, Erez & Todorov 2012; 2014).

    The search starts from `initial_actions` (zeros if None), clipped to the limits. With a leading axis of R
    restarts every one is searched from and the cheapest plan returned: the way out of stationary points (a pendulum
    at rest) and poor local optima. second_order: differential dynamic programming, with the dynamics' second
    derivatives; else iterative LQR (Gauss-Newton), cheaper an iteration and with less regularisation to need.

    The path is never worse than the initial actions', whatever the status. Precision is that of `initial_state`.
    Compiled once for each problem structure and shape; vmap over states for many at once. Raises `ConfigError` for
    shapes that do not fit; how the search ended is in the plan (`Plan.require_usable` raises).
    """
    dtype = initial_state.dtype
    expected = (problem.horizon, problem.action_size)
    actions = jnp.zeros(expected, dtype) if initial_actions is None else initial_actions.astype(dtype)
    if actions.shape[-2:] != expected:
        raise ConfigError(f"initial_actions have the shape {actions.shape}; [T, A] is {expected} for this problem")
    chosen = Settings() if settings is None else settings
    scalars = [jnp.asarray(value, dtype) for value in chosen[1:]]
    traced = Settings(jnp.asarray(chosen.max_iterations, jnp.int32), *scalars)
    return _plan(problem, initial_state, actions, traced, second_order)


@eqx.filter_jit
def _plan(problem: Problem, initial_state: Array, actions: Array, settings: Settings, second_order: bool) -> Plan:
    problem.check(initial_state)

    def from_actions(start: Array) -> Plan:
        path = problem.follow(initial_state, lambda t, _: start[t])
        return _finish(problem, _search(problem, path, settings, second_order), settings, second_order)

    return from_actions(actions) if actions.ndim == 2 else best_of(jax.vmap(from_actions)(actions))


def _search(problem: Problem, path: Path, settings: Settings, second_order: bool) -> Search:
    """Iterations until one of them sets a status, or there have been enough of them."""
    limits = problem.bounds(path.states.dtype)

    def unfinished(search: Search) -> Array:
        return (search.status == RUNNING) & (search.iterations < settings.max_iterations)

    def iterate(search: Search) -> Search:
        path, regularisation = search.path, search.regularisation
        expansion = expand(problem, path, second_order=second_order)
        backward = backward_pass(expansion, path.actions, limits, regularisation.mu)
        finite = _first_nonfinite(path, expansion) < 0
        positive = backward.failed_step < 0
        stationary = positive & (regularisation.mu == 0) & _promises_little(path, backward, settings)
        stationary = stationary | (_gradient_is_small(path, backward, limits, settings) & jnp.all(backward.curved))
        candidate, better = _line_search(problem, path, backward, settings)
        better = better & positive
        gain = path.cost - candidate.cost
        small = better & (gain <= _negligible(path, settings))
        stalled = jnp.where(small, search.stalled + 1, jnp.where(better, 0, search.stalled))
        least = settings.min_regularisation
        lowered, raised = regularisation.lowered(least), regularisation.raised(least)
        exhausted = ~better & (raised.mu > settings.max_regularisation)
        given_up = jnp.where(positive, PlanStatus.NO_PROGRESS, PlanStatus.NOT_POSITIVE_DEFINITE)
        status = jnp.where(exhausted, given_up, jnp.where(stalled >= PATIENCE, PlanStatus.CONVERGED, RUNNING))
        iterations = search.iterations + 1
        moved = Search(candidate, lowered, iterations, stalled, status)
        tried = _where(better, moved, Search(path, raised, iterations, stalled, status))
        ended = jnp.where(finite, PlanStatus.CONVERGED, PlanStatus.NONFINITE)
        return _where(stationary | ~finite, search._replace(status=ended.astype(jnp.int32)), tried)

    one = jnp.ones((), path.states.dtype)
    first = Regularisation(settings.initial_regularisation * one, one)
    start = Search(path, first, jnp.int32(0), jnp.int32(0), jnp.int32(RUNNING))
    return jax.lax.while_loop(unfinished, iterate, start)


def _line_search(problem: Problem, path: Path, backward: Backward, settings: Settings) -> tuple[Path, Array]:
    """The cheapest of the paths of all step lengths, and whether it is better than the present one by enough."""
    alphas = jnp.asarray(STEP_LENGTHS, path.states.dtype)

    def attempt(alpha: Array) -> Path:
        def controller(t: Time, state: Array) -> Array:
            feedback = backward.gains[t] @ (state - path.states[t])
            return path.actions[t] + alpha * backward.feedforward[t] + feedback

        return problem.follow(path.states[0], controller)

    tries = jax.vmap(attempt)(alphas)
    costs = jnp.sum(tries.costs, axis=-1)
    reductions = path.cost - costs
    finite = jnp.all(jnp.isfinite(tries.states), axis=(1, 2)) & jnp.isfinite(costs)
    kept = reductions >= settings.sufficient_decrease * backward.promise(alphas)
    acceptable = finite & kept & (reductions > 0)
    best = jnp.argmin(jnp.where(acceptable, costs, jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], tries), acceptable[best]


def _finish(problem: Problem, search: Search, settings: Settings, second_order: bool) -> Plan:
    """The gains around the path that the search ended with, and what it turns out to be.

    Without regularisation, or where Q_uu is not positive definite without, with the least that makes it so.
    """
    path = search.path
    limits = problem.bounds(path.states.dtype)
    expansion = expand(problem, path, second_order=second_order)
    nonfinite = _first_nonfinite(path, expansion)

    def unusable(carry: tuple[Regularisation, Backward]) -> Array:
        regularisation, backward = carry
        return (nonfinite < 0) & (backward.failed_step >= 0) & (regularisation.mu <= settings.max_regularisation)

    def again(carry: tuple[Regularisation, Backward]) -> tuple[Regularisation, Backward]:
        regularisation = carry[0].raised(settings.min_regularisation)
        return regularisation, backward_pass(expansion, path.actions, limits, regularisation.mu)

    zero = jnp.zeros((), path.states.dtype)
    first = (Regularisation(zero, zero + 1), backward_pass(expansion, path.actions, limits, zero))
    (mu, _), backward = jax.lax.while_loop(unusable, again, first)
    flat = jnp.argmax(jnp.where(backward.curved, -1, jnp.arange(problem.horizon))).astype(jnp.int32)
    flat = jnp.where(jnp.all(backward.curved), -1, flat)
    little = (mu == 0) & _promises_little(path, backward, settings)
    converged = (search.status == PlanStatus.CONVERGED) | little | _gradient_is_small(path, backward, limits, settings)
    status = jnp.where(search.status == RUNNING, PlanStatus.ITERATION_LIMIT, search.status)
    status = jnp.where(converged, PlanStatus.CONVERGED, status)
    status = jnp.where(flat >= 0, PlanStatus.NOT_POSITIVE_DEFINITE, status)
    status = jnp.where(nonfinite >= 0, PlanStatus.NONFINITE, status).astype(jnp.int32)
    failed = jnp.where(nonfinite >= 0, nonfinite, flat)
    known = nonfinite < 0
    gains, feedforward = (jnp.where(known, part, 0) for part in (backward.gains, backward.feedforward))
    q_uu = backward.q_uu + mu * jnp.eye(problem.action_size, dtype=mu.dtype)
    return Plan(path.actions, path.states, gains, feedforward, q_uu, path.cost, mu, search.iterations, status, failed)


def _first_nonfinite(path: Path, expansion: Expansion) -> Int[Array, ""]:
    """The first time step with a successor, cost or derivative that is not finite, or −1."""
    states = jnp.all(jnp.isfinite(path.states), axis=-1)
    # A bad state is the doing of the step before it.
    successors = jnp.append(states[1:], True)
    bad = ~(successors & jnp.isfinite(path.costs) & expansion.finite_steps())
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def _negligible(path: Path, settings: Settings) -> Float[Array, ""]:
    """A change of the cost not worth a step, or lost in the rounding of its sum."""
    rounding = 4 * jnp.finfo(path.costs.dtype).eps
    return jnp.maximum(settings.cost_tolerance, rounding) * jnp.sum(jnp.abs(path.costs))


def _promises_little(path: Path, backward: Backward, settings: Settings) -> Array:
    """Whether the whole step promises a negligible reduction; says something without regularisation only."""
    return backward.promise(jnp.ones((), path.costs.dtype)) <= _negligible(path, settings)


def _gradient_is_small(path: Path, backward: Backward, limits: tuple, settings: Settings) -> Array:
    moved = jnp.clip(path.actions - backward.gradient, *limits) - path.actions
    return jnp.max(jnp.abs(moved)) <= settings.gradient_tolerance


def _where(condition: Array, yes: Search, no: Search) -> Search:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
