"""Planning over a horizon that grows: how to find a swing-up where planning all of it at once ends in poor optima."""

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
    """A problem whose costs end after `counted` steps, at the same shapes, so that all stages are one program."""

    problem: Problem
    counted: Int[Array, ""]

    def cost(self, t: Time, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        # The steps that do not count yet keep their actions at zero.
        idle = 0.5 * jnp.sum(jnp.square(action))
        after = idle + jnp.where(t == self.counted, self.problem.end_cost(state), 0)
        return jnp.where(t < self.counted, self.problem.step_cost(t, state, action), after)

    def end_cost(self, state: Float[Array, " D"]) -> Float[Array, ""]:
        return jnp.where(self.counted == self.problem.horizon, self.problem.end_cost(state), 0)

    def as_problem(self) -> Problem:
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

    Around an unstable equilibrium the end of a path depends on its first actions by many powers of ten, and a search
    over the whole horizon from random actions ends in one of very many local optima. A short plan finds the
    equilibrium; each longer one starts there and learns to stay. `first` should be about the time that the task
    takes, `growth` a few of the instability's time constants. Of `initial_actions` only the first `first` steps
    are used. The last stage is the problem itself; `iterations` counts those of all stages. Errors: as `plan`.
    """
    if first < 1 or growth < 1:
        raise ConfigError(f"a horizon grows from first={first} steps by growth={growth}: both have to be at least 1")
    if initial_actions.ndim != 3:
        raise ConfigError(f"initial_actions have the shape {initial_actions.shape}, and should have [R, T, A]")
    stages = np.append(np.arange(first, problem.horizon, growth), problem.horizon)
    start = jnp.where(jnp.arange(problem.horizon)[:, None] < first, initial_actions, 0)

    def stage(actions: Array, counted: Array) -> tuple[Array, Plan]:
        shorter = _FirstSteps(problem, counted).as_problem()
        planned = plan(shorter, initial_state, actions, second_order=second_order, settings=settings)
        return planned.actions, planned

    def grow(actions: Array) -> Plan:
        _, plans = jax.lax.scan(stage, actions.astype(initial_state.dtype), jnp.asarray(stages, jnp.int32))
        last = jax.tree.map(lambda leaf: leaf[-1], plans)
        return eqx.tree_at(lambda one: one.iterations, last, jnp.sum(plans.iterations))

    return best_of(jax.vmap(grow)(start))
