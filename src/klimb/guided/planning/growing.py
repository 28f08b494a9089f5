"""Planning over a growing horizon, for swing-ups, where planning all steps at once ends in poor local optima."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.errors import ConfigError
from klimb.guided.planning.ilqr import Settings, plan
from klimb.guided.planning.problem import Problem, Time
from klimb.guided.planning.trajectory import Plan, best_of


class _FirstSteps(eqx.Module):
    """A problem whose costs end after `length` steps, with unchanged shapes, so that all stages share one program."""

    problem: Problem
    length: Int[Array, ""]

    def cost(self, t: Time, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        """The cost of one step, and that of ending after the last one. t: time step. state: x_t. action: u_t."""
        # This keeps the actions of the later steps at zero.
        action_cost = 0.5 * jnp.sum(jnp.square(action))
        after = action_cost + jnp.where(t == self.length, self.problem.end_cost(state), 0)
        return jnp.where(t < self.length, self.problem.step_cost(t, state, action), after)

    def end_cost(self, state: Float[Array, " D"]) -> Float[Array, ""]:
        """The final cost, if `length` is the whole horizon. state: x_T."""
        return jnp.where(self.length == self.problem.horizon, self.problem.end_cost(state), 0)

    def as_problem(self) -> Problem:
        """For `plan`."""
        whole = self.problem
        sizes = (whole.horizon, whole.action_size)
        return Problem(whole.step, self.cost, *sizes, self.end_cost, whole.limits, time_varying=True)


def plan_growing(
    problem: Problem,
    initial_state: Float[Array, " D"],
    initial_actions: Float[Array, "R T A"],
    *,
    first: int,
    growth: int,
    second_order: bool = False,
    settings: Settings | None = None,
) -> Plan:
    """The cheapest of R plans, each made for the first `first` steps, then for `growth` more at a time, up to T.

    Around an unstable equilibrium a small change of the first actions grows by many powers of ten, and a search over
    the whole horizon from random actions ends in one of very many local optima. A short plan finds the equilibrium;
    each longer one starts from it and adds the actions that stay there.

    problem: what is planned. initial_state: x_0. initial_actions: R starting points, of which the first `first` steps
    are used. first: steps of the first stage, at least 1; about the time that the task takes. growth: steps that each
    stage adds, at least 1; a few time constants of the instability. second_order, settings: as for `plan`.

    Returns the plan of the last stage, which is the problem itself; `iterations` is summed over all stages.
    Raises as `plan`, and ConfigError for `first` or `growth` below 1.
    """
    if first < 1 or growth < 1:
        raise ConfigError(f"a horizon grows from first={first} steps by growth={growth}: both have to be at least 1")
    if initial_actions.ndim != 3:
        raise ConfigError(f"initial_actions have the shape {initial_actions.shape}, and should have [R, T, A]")
    stages = np.append(np.arange(first, problem.horizon, growth), problem.horizon)
    start = jnp.where(jnp.arange(problem.horizon)[:, None] < first, initial_actions, 0)

    def stage(actions: Array, length: Array) -> tuple[Array, Plan]:
        """actions: of the stage before. length: steps of this stage."""
        shorter = _FirstSteps(problem, length).as_problem()
        planned = plan(shorter, initial_state, actions, second_order=second_order, settings=settings)
        return planned.actions, planned

    def grow(actions: Array) -> Plan:
        _, plans = jax.lax.scan(stage, actions.astype(initial_state.dtype), jnp.asarray(stages, jnp.int32))
        last = jax.tree.map(lambda leaf: leaf[-1], plans)
        return eqx.tree_at(lambda plan: plan.iterations, last, jnp.sum(plans.iterations))

    return best_of(jax.vmap(grow)(start))
