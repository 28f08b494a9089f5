"""Linear-Gaussian controllers by KL-constrained LQR: the C-step of mirror-descent guided policy search."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from klimb.guided.planning.small_matrices import cholesky, cholesky_solve, inverse_root, solve_upper

TOLERANCE = 0.1
"""Largest accepted |KL − ε|, relative to ε."""

LOG_ETA_RANGE = math.log(1e9)
"""Half-width of the interval around the first guess in which log η is searched."""

POWER_LAW_ITERATIONS, MAX_ITERATIONS = 8, 40
"""Iterations that may use the power law (three are usual), and all iterations; the others bisect."""

MAX_ROW = 20.0
"""KL of a single step that counts in the mean, relative to ε. Along a few paths the linear model may explode, where the
dynamics are unstable or stiff; these would else use up the whole of the constraint."""


class DualStatus(enum.IntEnum):
    """How the search for η ended. Arrays hold the number; `message` is for people."""

    CONVERGED = 0
    SLACK = 1
    NOT_POSITIVE_DEFINITE = 2
    NOT_CONVERGED = 3

    @property
    def message(self) -> str:
        """Cause and remedy, in one line."""
        return _MESSAGES[self]


_MESSAGES = {
    DualStatus.CONVERGED: "the controllers' KL from the policy is epsilon",
    DualStatus.SLACK: "the controllers' KL from the policy is below epsilon even for the smallest multiplier: the "
    "actions hardly change the cost; check that the reward depends on them",
    DualStatus.NOT_POSITIVE_DEFINITE: "at failed_step the cost to go falls with the square of the actions, even for "
    "the largest multiplier: the fitted dynamics are unstable or the fit is not finite; collect more or shorter "
    "episodes",
    DualStatus.NOT_CONVERGED: "the search ended at controllers whose KL from the policy is below epsilon, or found "
    "none: scale the rewards to the order of 1, or use double precision",
}


class TimeVaryingModel(eqx.Module):
    """ξ' = F (ξ, υ) and cost ½ ζᵀC ζ + cᵀζ + constant in each step, with ζ = (ξ, υ): differences from N paths.

    Axes: N paths, T time steps, D state dimensions, A action dimensions, Z = D + A. dynamics: F. cost_zz: C, which may
    be indefinite, cost_z: c, cost: the constant. Every path starts at ξ = 0. Steps that are not `occupied` are left out
    of all means; their cost should be 0.
    """

    dynamics: Float[Array, "N T D Z"]
    cost_zz: Float[Array, "N T Z Z"]
    cost_z: Float[Array, "N T Z"]
    cost: Float[Array, "N T"]
    occupied: Bool[Array, "N T"]


class LinearPolicy(eqx.Module):
    """π̄(υ|ξ) = N(K ξ, Σ), also in differences from the paths. gains: K. covariance: Σ."""

    gains: Float[Array, "N T A D"]
    covariance: Float[Array, "N T A A"]


class KLConstrainedControllers(eqx.Module):
    """Controllers p(υ|ξ) = N(û + K ξ, L Lᵀ) along N paths, that share one η.

    actions: û, gains: K, cholesky: L; those of π̄ where none were found. slope, curvature: derivatives in the actions,
    at ξ = 0 and υ = 0, of the cost to go plus η KL under p. eta: η. kl: the mean of KL(p‖π̄) over paths and occupied
    steps, in nats. predicted_cost, previous_cost: the mean cost per step under p (of its noise to second order) and
    under π̄. iterations: values of η tried. status: a `DualStatus`. failed_step: the time step of
    NOT_POSITIVE_DEFINITE, else −1.
    """

    actions: Float[Array, "N T A"]
    gains: Float[Array, "N T A D"]
    cholesky: Float[Array, "N T A A"]
    slope: Float[Array, "N T A"]
    curvature: Float[Array, "N T A A"]
    occupied: Bool[Array, "N T"]
    eta: Float[Array, ""]
    kl: Float[Array, ""]
    status: Int[Array, ""]
    iterations: Int[Array, ""]
    predicted_cost: Float[Array, ""]
    previous_cost: Float[Array, ""]
    failed_step: Int[Array, ""]

    def cost_of(self, shift: Float[Array, "N T A"], covariance_change: Float[Array, "N T A A"]) -> Float[Array, ""]:
        """The predicted mean cost per step of a policy near π̄: N(shift, Σ + covariance_change) in the paths' states.

        By the performance difference lemma, to first order in the change of the states.

        shift: of the mean action. covariance_change: of the actions' covariance.
        """
        moments = covariance_change + shift[..., None] * shift[..., None, :]
        change = jnp.sum(self.slope * shift, axis=-1) + 0.5 * jnp.sum(self.curvature * moments, axis=(-2, -1))
        return self.previous_cost + jnp.sum(jnp.where(self.occupied, change, 0)) / _steps(self.occupied)


def solve_constrained(
    model: TimeVaryingModel, policy: LinearPolicy, epsilon: float | Float[Array, ""]
) -> KLConstrainedControllers:
    """argmin_p E_p[cost] subject to mean KL(p‖π̄) ≤ ε (Montgomery and Levine 2016, eq. 3), for the noise that occurred.

    In the mean, a step's KL counts up to `MAX_ROW` ε.

    For a given multiplier η the minimiser of cost + η KL is that of a linear-quadratic regulator, with covariance
    η Q_uu⁻¹. The KL falls as η rises, mostly like η⁻²; the first iterations use this power law. An η for which some
    Q_uu is not positive definite is too small.

    The noise of a path, its actions' included, is taken as it occurred, and is the same under p. States are then those
    of the mean actions, ξ = 0 under π̄, and the KL is measured there. Expectations over new noise would instead follow
    the linear model far from all data: on Reacher-v5 they predicted a hundred times the possible gain, and training
    ended at a return of −8.7 instead of −4.6.

    model: dynamics and cost around the paths. policy: π̄ around the same paths. epsilon: ε, positive, in nats per step.
    """
    whitened = _whiten(model, policy)
    epsilon = jnp.asarray(epsilon, model.cost.dtype)
    _, previous = _solve(whitened, jnp.full_like(epsilon, jnp.inf), epsilon)
    search = _search(lambda log_eta: _outcome(*_solve(whitened, log_eta, epsilon)), previous.power, epsilon)
    return _controllers(whitened, policy, search, previous, epsilon)


def solve_penalised(
    model: TimeVaryingModel, policy: LinearPolicy, eta: float | Float[Array, ""], epsilon: float | Float[Array, ""]
) -> KLConstrainedControllers:
    """argmin_p E_p[cost] + η mean KL(p‖π̄) for a given η, for the noise that occurred as in `solve_constrained`.

    Where η is so small that the cost is not convex in the actions, the controllers are those of π̄, and the status is
    NOT_POSITIVE_DEFINITE.

    model: dynamics and cost around the paths. policy: π̄ around the same paths. eta: η, positive, in cost per nat.
    epsilon: ε, by which the KL of a step is limited in the mean that is told.
    """
    whitened = _whiten(model, policy)
    log_eta, epsilon = jnp.log(jnp.asarray(eta, model.cost.dtype)), jnp.asarray(epsilon, model.cost.dtype)
    _, previous = _solve(whitened, jnp.full_like(log_eta, jnp.inf), epsilon)
    kl, failed = _outcome(*_solve(whitened, log_eta, epsilon))
    status = jnp.where(failed < 0, DualStatus.CONVERGED, DualStatus.NOT_POSITIVE_DEFINITE).astype(jnp.int32)
    high = jnp.where(failed < 0, log_eta, jnp.inf)
    search = _Search(log_eta, log_eta, high, kl, failed, jnp.int32(1), status)
    return _controllers(whitened, policy, search, previous, epsilon)


def _solve(whitened: _Whitened, log_eta: Array, epsilon: Array) -> tuple[_Solution, _Expected]:
    """The minimiser for one η along every path, and its expectations per step."""
    steps = _steps(whitened.occupied)
    solution = jax.vmap(_backward, (0, None))(whitened, jnp.exp(-log_eta))
    expected = jax.vmap(_forward, (0, 0, None))(whitened, solution, MAX_ROW * epsilon)
    return solution, jax.tree.map(lambda x: jnp.sum(x) / steps, expected)


def _controllers(
    whitened: _Whitened, policy: LinearPolicy, search: _Search, previous: _Expected, epsilon: Array
) -> KLConstrainedControllers:
    """The controllers for the η that a search ended at; those of π̄ where it found none."""
    # η = ∞ gives π̄.
    log_eta = jnp.where(jnp.isfinite(search.high), search.log_eta, jnp.inf)
    solution, expected = _solve(whitened, log_eta, epsilon)
    return KLConstrainedControllers(
        actions=(whitened.lower @ solution.offset[..., None])[..., 0],
        gains=policy.gains + whitened.lower @ solution.gain,
        cholesky=whitened.lower @ solution.root,
        slope=solve_upper(jnp.swapaxes(whitened.lower, -1, -2), solution.q_v[..., None])[..., 0],
        curvature=_unwhitened(solution.q_vv, whitened.lower),
        occupied=whitened.occupied,
        eta=jnp.exp(search.log_eta),
        kl=expected.kl,
        status=search.status,
        iterations=search.iterations,
        predicted_cost=expected.cost,
        previous_cost=previous.cost,
        failed_step=search.failed_step,
    )


class _Whitened(NamedTuple):
    """The problem in υ = K ξ + L v, with L Lᵀ the covariance of π̄, which makes π̄ v ∼ N(0, I).

    This avoids cancellation where p is near π̄. ξ' = M y at a cost of ½ yᵀH y + hᵀy + constant, with y = (ξ, v).
    dynamics: M. cost_yy: H. cost_y: h. lower: L. proper: whether the covariance of π̄ is positive definite.
    """

    dynamics: Float[Array, "N T D Z"]
    cost_yy: Float[Array, "N T Z Z"]
    cost_y: Float[Array, "N T Z"]
    cost: Float[Array, "N T"]
    occupied: Bool[Array, "N T"]
    lower: Float[Array, "N T A A"]
    proper: Bool[Array, "N T"]


class _Solution(NamedTuple):
    """v ∼ N(G ξ + g, R Rᵀ) along one path.

    gain: G. offset: g. root: R. q_v, q_vv: slope and curvature of the cost to go, at ξ = 0 and v = 0.
    power: ‖Q_v‖²/2 + ‖Q_vv‖²/4, which for large η is about η² KL.
    """

    gain: Float[Array, "T A D"]
    offset: Float[Array, "T A"]
    root: Float[Array, "T A A"]
    q_v: Float[Array, "T A"]
    q_vv: Float[Array, "T A A"]
    power: Float[Array, " T"]
    failed_step: Int[Array, ""]


class _Expected(NamedTuple):
    """Sums over the occupied steps of a path."""

    cost: Array
    kl: Array
    power: Array


def _whiten(model: TimeVaryingModel, policy: LinearPolicy) -> _Whitened:
    lower, proper = cholesky(policy.covariance)
    num_states, num_coordinates = model.dynamics.shape[-2:]
    # (ξ, υ) = J (ξ, v), with J = [[I, 0], [K, L]].
    top = jnp.broadcast_to(jnp.eye(num_states, num_coordinates, dtype=lower.dtype), model.dynamics.shape)
    jacobian = jnp.concatenate([top, jnp.concatenate([policy.gains, lower], axis=-1)], axis=-2)
    transposed = jnp.swapaxes(jacobian, -1, -2)
    return _Whitened(
        dynamics=model.dynamics @ jacobian,
        cost_yy=transposed @ model.cost_zz @ jacobian,
        cost_y=(transposed @ model.cost_z[..., None])[..., 0],
        cost=model.cost,
        occupied=model.occupied,
        lower=lower,
        proper=proper,
    )


def _backward(problem: _Whitened, beta: Float[Array, ""]) -> _Solution:
    """The minimiser of cost + KL/β along one path, from the last step to the first; β = 1/η, and β = 0 gives π̄."""
    size = problem.dynamics.shape[1]

    def step_back(carry: tuple, row: tuple) -> tuple[tuple, tuple]:
        """carry: derivatives of the cost to go, failed step. row: time step, dynamics, cost, whether π̄ is proper."""
        value_x, value_xx, failed = carry
        t, dynamics, cost_yy, cost_y, proper = row
        q = cost_y + dynamics.T @ value_x
        q_yy = cost_yy + dynamics.T @ value_xx @ dynamics
        q_yy = 0.5 * (q_yy + q_yy.T)
        q_v, q_vx, q_vv = q[size:], q_yy[size:, :size], q_yy[size:, size:]
        identity = jnp.eye(len(q_v), dtype=q.dtype)
        lower, positive = cholesky(identity + beta * q_vv)
        root, root_positive = inverse_root(identity + beta * q_vv)
        usable = positive & root_positive & proper
        solution = cholesky_solve(lower, -beta * jnp.concatenate([q_vx, q_v[:, None]], axis=1))
        gain, offset = jnp.where(usable, solution[:, :size], 0), jnp.where(usable, solution[:, size], 0)
        root = jnp.where(usable, root, identity)
        value_x, value_xx = q[:size] + offset @ q_vx, q_yy[:size, :size] + q_vx.T @ gain
        failed = jnp.where((failed < 0) & ~usable, t, failed)
        power = 0.5 * jnp.sum(jnp.square(q_v)) + 0.25 * jnp.sum(jnp.square(q_vv))
        return (value_x, 0.5 * (value_xx + value_xx.T), failed), (gain, offset, root, q_v, q_vv, power)

    zeros = jnp.zeros((size, size), problem.cost.dtype)
    start = (zeros[0], zeros, jnp.int32(-1))
    times = jnp.arange(len(problem.cost), dtype=jnp.int32)
    rows = (times, problem.dynamics, problem.cost_yy, problem.cost_y, problem.proper)
    (_, _, failed), (gain, offset, root, q_v, q_vv, power) = jax.lax.scan(step_back, start, rows, reverse=True)
    return _Solution(gain, offset, root, q_v, q_vv, power, failed)


def _forward(problem: _Whitened, solution: _Solution, most: Float[Array, ""]) -> _Expected:
    """The controller's cost, and its KL from π̄, of at most so much in a step, along one path."""

    def advance(state: Array, row: tuple) -> tuple[Array, tuple]:
        """state: ξ. row: dynamics, cost and controller."""
        dynamics, cost_yy, cost_y, gain, offset = row
        action = gain @ state + offset
        y = jnp.concatenate([state, action])
        return dynamics @ y, (action, cost_y @ y + 0.5 * y @ cost_yy @ y)

    rows = (problem.dynamics, problem.cost_yy, problem.cost_y, solution.gain, solution.offset)
    _, (action, cost) = jax.lax.scan(advance, jnp.zeros_like(problem.dynamics[0, :, 0]), rows)
    identity = jnp.eye(action.shape[-1], dtype=action.dtype)
    covariance = solution.root @ jnp.swapaxes(solution.root, -1, -2)
    noise_cost = 0.5 * jnp.sum(solution.q_vv * (covariance - identity), axis=(-2, -1))
    diagonal = jnp.diagonal(solution.root, axis1=-2, axis2=-1)
    covariance_kl = jnp.trace(covariance, axis1=-2, axis2=-1) - jnp.sum(1 + 2 * jnp.log(diagonal), axis=-1)
    kl = 0.5 * (jnp.sum(jnp.square(action), axis=-1) + covariance_kl)
    # Not `minimum`, which would take a KL that is not a number for a finite one.
    kl = jnp.where(kl > most, most, kl)
    per_step = (problem.cost + cost + noise_cost, kl, solution.power)
    return _Expected(*(jnp.sum(jnp.where(problem.occupied, values, 0)) for values in per_step))


def _steps(occupied: Bool[Array, "N T"]) -> Int[Array, ""]:
    """The number of occupied steps, at least 1."""
    return jnp.maximum(jnp.sum(occupied), 1)


def _unwhitened(matrix: Float[Array, "*batch A A"], lower: Float[Array, "*batch A A"]) -> Float[Array, "*batch A A"]:
    """L⁻ᵀ M L⁻¹ of a symmetric M."""
    upper = jnp.swapaxes(lower, -1, -2)
    return solve_upper(upper, jnp.swapaxes(solve_upper(upper, matrix), -1, -2))


class _Search(NamedTuple):
    """The carry of the search: log η between low (too small) and high (large enough; ∞ until one is known)."""

    log_eta: Array
    low: Array
    high: Array
    kl: Array
    failed_step: Array
    iterations: Array
    status: Array


def _outcome(solution: _Solution, expected: _Expected) -> tuple[Array, Array]:
    """The KL, and the latest time step at which Q_uu is not positive definite, or −1."""
    return expected.kl, jnp.max(solution.failed_step)


def _search(evaluate: Callable[[Array], tuple[Array, Array]], power: Array, epsilon: Array) -> _Search:
    """log η for which the KL is within the tolerance of ε.

    evaluate: log η ↦ (KL, failed step or −1). power: KL ≈ power/η² for large η. epsilon: ε.
    """
    guess = 0.5 * jnp.log(power / epsilon)
    guess = jnp.where(jnp.isfinite(guess), guess, 0)
    smallest, largest = guess - LOG_ETA_RANGE, guess + LOG_ETA_RANGE

    def try_eta(search: _Search) -> _Search:
        log_eta = search.log_eta
        kl, failed = evaluate(log_eta)
        feasible = (failed < 0) & (kl <= (1 + TOLERANCE) * epsilon)
        low, high = jnp.where(feasible, search.low, log_eta), jnp.where(feasible, log_eta, search.high)
        upper = jnp.minimum(high, largest)
        power_law = log_eta + 0.5 * jnp.log(kl / epsilon)
        use_power_law = (failed < 0) & (search.iterations < POWER_LAW_ITERATIONS)
        use_power_law &= (power_law > low) & (power_law < upper)
        next_log_eta = jnp.where(use_power_law, power_law, 0.5 * (low + upper))
        converged = feasible & (kl >= (1 - TOLERANCE) * epsilon)
        status = jnp.where(converged, DualStatus.CONVERGED, search.status)
        next_log_eta = jnp.where(converged, log_eta, next_log_eta)
        return _Search(next_log_eta, low, high, kl, failed, search.iterations + 1, status)

    def unfinished(search: _Search) -> Array:
        return (search.status != DualStatus.CONVERGED) & (search.iterations < MAX_ITERATIONS)

    pending = jnp.int32(DualStatus.NOT_CONVERGED)
    start = _Search(
        guess, smallest, jnp.full_like(guess, jnp.inf), jnp.zeros_like(guess), jnp.int32(-1), jnp.int32(0), pending
    )
    end = jax.lax.while_loop(unfinished, try_eta, start)
    converged, feasible = end.status == DualStatus.CONVERGED, jnp.isfinite(end.high)
    failed = jnp.where(feasible, -1, end.failed_step)
    status = jnp.where(feasible & (end.low == smallest), DualStatus.SLACK, end.status)
    status = jnp.where(~feasible & (failed >= 0), DualStatus.NOT_POSITIVE_DEFINITE, status)
    status = jnp.where(converged, DualStatus.CONVERGED, status).astype(jnp.int32)
    log_eta = jnp.where(converged, end.log_eta, jnp.where(feasible, end.high, largest))
    return end._replace(log_eta=log_eta, status=status, failed_step=failed)
