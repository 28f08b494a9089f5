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
from klimb.precision import full_precision

RUNNING = -1
STEP_LENGTHS = 1.1 ** -np.square(np.arange(11.0))  # 1 to 7e-5 (Tassa et al. 2012)
FACTOR = 1.6
"""By which the regularisation's own factor grows and shrinks."""
PATIENCE = 3
"""Accepted steps in a row with a negligible gain before the search ends: regularisation can make one step short."""


class Settings(NamedTuple):
    """When the search ends. Changing any of these does not compile again.

    max_iterations: steps tried, at least 1. gradient_tolerance: converged where no action's gradient, projected on the
    limits, is larger (cost per action). cost_tolerance: converged where the gain is below this fraction of
    Σ_t |cost_t|, or below the rounding error of that sum. sufficient_decrease: the fraction of the predicted reduction
    that an accepted step must have, in [0, 1). Regularisation, in cost per action²: initial_regularisation at the
    start, min_regularisation the smallest above zero, max_regularisation the largest before the search gives up.
    """

    max_iterations: int | Int[Array, ""] = 200
    gradient_tolerance: float | Float[Array, ""] = 1e-6
    cost_tolerance: float | Float[Array, ""] = 1e-9
    sufficient_decrease: float | Float[Array, ""] = 1e-4
    initial_regularisation: float | Float[Array, ""] = 0.0
    min_regularisation: float | Float[Array, ""] = 1e-6
    max_regularisation: float | Float[Array, ""] = 1e10


class Regularisation(NamedTuple):
    """μ and the factor of its last change: the schedule of Tassa et al. 2012, section II-F, which accelerates."""

    mu: Float[Array, ""]
    factor: Float[Array, ""]

    def raised(self, minimum: float | Array) -> Regularisation:
        """After a failure. minimum: the smallest μ above zero."""
        factor = jnp.maximum(FACTOR, self.factor * FACTOR)
        return Regularisation(jnp.maximum(minimum, self.mu * factor), factor)

    def lowered(self, minimum: float | Array) -> Regularisation:
        """After a success. minimum: the smallest μ above zero; below it μ is 0."""
        factor = jnp.minimum(1 / FACTOR, self.factor / FACTOR)
        mu = self.mu * factor
        return Regularisation(jnp.where(mu < minimum, 0, mu), factor)


class Search(NamedTuple):
    """The state between two iterations. stalled: accepted steps in a row with a negligible gain."""

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

    The path's cost is never above that of the initial actions, whatever the status. Compiled once for each problem
    structure and shape; vmap over states for many at once.

    problem: dynamics, cost, horizon and limits. initial_state: x_0; its dtype is that of the search.
    initial_actions: where the search starts (zeros if None), clipped to the limits. With a leading axis of R restarts
    it starts from each of them, and the cheapest plan is returned: that avoids stationary points (a pendulum at rest)
    and poor local optima.
    second_order: differential dynamic programming, with second derivatives of the dynamics; else iterative LQR
    (Gauss-Newton), which is cheaper per iteration and needs less regularisation.
    settings: when the search ends; None for `Settings()`.

    Returns a plan whose `status` says how the search ended (`Plan.require_usable` raises).
    Raises ConfigError for shapes that do not fit.
    """
    dtype = initial_state.dtype
    expected = (problem.horizon, problem.action_size)
    actions = jnp.zeros(expected, dtype) if initial_actions is None else initial_actions.astype(dtype)
    if actions.shape[-2:] != expected:
        raise ConfigError(f"initial_actions have the shape {actions.shape}; [T, A] is {expected} for this problem")
    settings = Settings() if settings is None else settings
    scalars = [jnp.asarray(value, dtype) for value in settings[1:]]
    traced = Settings(jnp.asarray(settings.max_iterations, jnp.int32), *scalars)
    return _plan(problem, initial_state, actions, traced, second_order)


@eqx.filter_jit
@full_precision
def _plan(problem: Problem, initial_state: Array, actions: Array, settings: Settings, second_order: bool) -> Plan:
    problem.check(initial_state)

    def from_actions(start: Array) -> Plan:
        path = problem.follow(initial_state, lambda t, _: start[t])
        return _finish(problem, _search(problem, path, settings, second_order), settings, second_order)

    return from_actions(actions) if actions.ndim == 2 else best_of(jax.vmap(from_actions)(actions))


def _search(problem: Problem, path: Path, settings: Settings, second_order: bool) -> Search:
    """Iterations until one of them sets a status, or max_iterations."""
    limits = problem.bounds(path.states.dtype)

    def unfinished(search: Search) -> Array:
        return (search.status == RUNNING) & (search.iterations < settings.max_iterations)

    def iterate(search: Search) -> Search:
        path, regularisation = search.path, search.regularisation
        expansion = expand(problem, path, second_order=second_order)
        backward = backward_pass(expansion, path.actions, limits, regularisation.mu)
        finite = _first_nonfinite(path, expansion) < 0
        positive = backward.failed_step < 0
        stationary = positive & (regularisation.mu == 0) & _predicts_negligible(path, backward, settings)
        stationary = stationary | (_gradient_is_small(path, backward, limits, settings) & jnp.all(backward.curved))
        candidate, better = _line_search(problem, path, backward, settings)
        better = better & positive
        gain = path.cost - candidate.cost
        small = better & (gain <= _negligible(path, settings))
        stalled = jnp.where(small, search.stalled + 1, jnp.where(better, 0, search.stalled))
        minimum = settings.min_regularisation
        lowered, raised = regularisation.lowered(minimum), regularisation.raised(minimum)
        exhausted = ~better & (raised.mu > settings.max_regularisation)
        failure = jnp.where(positive, PlanStatus.NO_PROGRESS, PlanStatus.NOT_POSITIVE_DEFINITE)
        status = jnp.where(exhausted, failure, jnp.where(stalled >= PATIENCE, PlanStatus.CONVERGED, RUNNING))
        iterations = search.iterations + 1
        accepted = Search(candidate, lowered, iterations, stalled, status)
        stepped = _where(better, accepted, Search(path, raised, iterations, stalled, status))
        end_status = jnp.where(finite, PlanStatus.CONVERGED, PlanStatus.NONFINITE)
        return _where(stationary | ~finite, search._replace(status=end_status.astype(jnp.int32)), stepped)

    one = jnp.ones((), path.states.dtype)
    first = Regularisation(settings.initial_regularisation * one, one)
    start = Search(path, first, jnp.int32(0), jnp.int32(0), jnp.int32(RUNNING))
    return jax.lax.while_loop(unfinished, iterate, start)


def _line_search(problem: Problem, path: Path, backward: Backward, settings: Settings) -> tuple[Path, Array]:
    """The cheapest of the paths of all step lengths, and whether it lowers the cost by enough."""
    alphas = jnp.asarray(STEP_LENGTHS, path.states.dtype)

    def attempt(alpha: Array) -> Path:
        def controller(t: Time, state: Array) -> Array:
            """t: time step. state: x_t."""
            feedback = backward.gains[t] @ (state - path.states[t])
            return path.actions[t] + alpha * backward.feedforward[t] + feedback

        return problem.follow(path.states[0], controller)

    tries = jax.vmap(attempt)(alphas)
    costs = jnp.sum(tries.costs, axis=-1)
    reductions = path.cost - costs
    finite = jnp.all(jnp.isfinite(tries.states), axis=(1, 2)) & jnp.isfinite(costs)
    sufficient = reductions >= settings.sufficient_decrease * backward.predicted_reduction(alphas)
    acceptable = finite & sufficient & (reductions > 0)
    best = jnp.argmin(jnp.where(acceptable, costs, jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], tries), acceptable[best]


def _finish(problem: Problem, search: Search, settings: Settings, second_order: bool) -> Plan:
    """The gains around the last path of the search, and its status.

    Without regularisation, or where Q_uu is not positive definite with the smallest μ of the schedule for which it is.
    """
    path = search.path
    limits = problem.bounds(path.states.dtype)
    expansion = expand(problem, path, second_order=second_order)
    nonfinite = _first_nonfinite(path, expansion)

    def unusable(carry: tuple[Regularisation, Backward]) -> Array:
        regularisation, backward = carry
        return (nonfinite < 0) & (backward.failed_step >= 0) & (regularisation.mu <= settings.max_regularisation)

    def regularise_more(carry: tuple[Regularisation, Backward]) -> tuple[Regularisation, Backward]:
        regularisation, _ = carry
        regularisation = regularisation.raised(settings.min_regularisation)
        return regularisation, backward_pass(expansion, path.actions, limits, regularisation.mu)

    zero = jnp.zeros((), path.states.dtype)
    first = (Regularisation(zero, zero + 1), backward_pass(expansion, path.actions, limits, zero))
    (mu, _), backward = jax.lax.while_loop(unusable, regularise_more, first)
    not_curved = jnp.argmax(jnp.where(backward.curved, -1, jnp.arange(problem.horizon))).astype(jnp.int32)
    not_curved = jnp.where(jnp.all(backward.curved), -1, not_curved)
    negligible = (mu == 0) & _predicts_negligible(path, backward, settings)
    small_gradient = _gradient_is_small(path, backward, limits, settings)
    converged = (search.status == PlanStatus.CONVERGED) | negligible | small_gradient
    status = jnp.where(search.status == RUNNING, PlanStatus.ITERATION_LIMIT, search.status)
    status = jnp.where(converged, PlanStatus.CONVERGED, status)
    status = jnp.where(not_curved >= 0, PlanStatus.NOT_POSITIVE_DEFINITE, status)
    status = jnp.where(nonfinite >= 0, PlanStatus.NONFINITE, status).astype(jnp.int32)
    failed = jnp.where(nonfinite >= 0, nonfinite, not_curved)
    finite = nonfinite < 0
    gains, feedforward = (jnp.where(finite, part, 0) for part in (backward.gains, backward.feedforward))
    q_uu = backward.q_uu + mu * jnp.eye(problem.action_size, dtype=mu.dtype)
    return Plan(path.actions, path.states, gains, feedforward, q_uu, path.cost, mu, search.iterations, status, failed)


def _first_nonfinite(path: Path, expansion: Expansion) -> Int[Array, ""]:
    """The first time step with a successor, cost or derivative that is not finite, or −1."""
    states = jnp.all(jnp.isfinite(path.states), axis=-1)
    # A non-finite state is attributed to the step that led to it.
    successors = jnp.append(states[1:], True)
    nonfinite = ~(successors & jnp.isfinite(path.costs) & expansion.finite_steps())
    return jnp.where(jnp.any(nonfinite), jnp.argmax(nonfinite), -1).astype(jnp.int32)


def _negligible(path: Path, settings: Settings) -> Float[Array, ""]:
    """The change of the cost below which the search has converged: by the tolerance, or by rounding of the sum."""
    rounding = 4 * jnp.finfo(path.costs.dtype).eps
    return jnp.maximum(settings.cost_tolerance, rounding) * jnp.sum(jnp.abs(path.costs))


def _predicts_negligible(path: Path, backward: Backward, settings: Settings) -> Array:
    """Whether the full step is predicted to gain a negligible amount; meaningful without regularisation only."""
    return backward.predicted_reduction(jnp.ones((), path.costs.dtype)) <= _negligible(path, settings)


def _gradient_is_small(path: Path, backward: Backward, limits: tuple, settings: Settings) -> Array:
    projected = jnp.clip(path.actions - backward.gradient, *limits) - path.actions
    return jnp.max(jnp.abs(projected)) <= settings.gradient_tolerance


def _where(condition: Array, yes: Search, no: Search) -> Search:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
