"""A planning problem (dynamics, cost, horizon, limits), and the path of given actions through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from klimb.errors import ConfigError
from klimb.guided.planning.small_matrices import LARGEST

Time = Int[Array, ""] | int


class Path(NamedTuple):
    """States, actions and the cost of each step; the last entry of `costs` is the final cost.

    Axes here and in all of `klimb.guided`: T time steps, S = T + 1 states, D state dimensions, A action dimensions,
    R restarts, N samples, Z = D + A.
    """

    states: Float[Array, "S D"]
    actions: Float[Array, "T A"]
    costs: Float[Array, " S"]

    @property
    def cost(self) -> Float[Array, ""]:
        """The cost of the whole path."""
        return jnp.sum(self.costs)


class Problem(eqx.Module):
    """Minimise Σ_t cost(x_t, u_t) + final_cost(x_T) subject to x_{t+1} = dynamics(x_t, u_t) and low ≤ u_t ≤ high.

    dynamics: (state [D], action [A]) ↦ state [D]. cost: (state [D], action [A]) ↦ scalar. Both twice differentiable
    JAX functions, or equinox modules whose parameters may then change without compiling again. Neither should clip
    actions to `limits`: at the limit, where good plans often are, a clipped function has no derivative.
    horizon: T, at least 1. action_size: A, 1 to 8. final_cost: state [D] ↦ scalar; None for zero.
    limits: (low [A], high [A]), infinite where an action has none. time_varying: dynamics and cost are called as
    (t, state, action), with the time step t from 0 to T − 1.
    """

    dynamics: Callable
    cost: Callable
    horizon: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    final_cost: Callable | None = None
    limits: tuple[Float[Array, " A"], Float[Array, " A"]] | None = None
    time_varying: bool = eqx.field(static=True, default=False)

    def step(self, t: Time, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, " D"]:
        """The successor of a state. t: time step, 0 to T − 1. state: x_t. action: u_t."""
        return self.dynamics(t, state, action) if self.time_varying else self.dynamics(state, action)

    def step_cost(self, t: Time, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        """The cost of one step. t: time step, 0 to T − 1. state: x_t. action: u_t."""
        return self.cost(t, state, action) if self.time_varying else self.cost(state, action)

    def end_cost(self, state: Float[Array, " D"]) -> Float[Array, ""]:
        """The final cost. state: x_T."""
        return jnp.zeros((), state.dtype) if self.final_cost is None else self.final_cost(state)

    def bounds(self, dtype: jnp.dtype) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """(low, high) as arrays of a dtype, infinite without limits."""
        if self.limits is None:
            infinite = jnp.full(self.action_size, jnp.inf, dtype)
            return -infinite, infinite
        low, high = self.limits
        return low.astype(dtype), high.astype(dtype)

    def random_actions(self, key: PRNGKeyArray, restarts: int, *, hold: int = 10) -> Float[Array, "R T A"]:
        """Random actions that plans can start from, uniform between the limits and constant for several steps.

        Actions that are independent at every step cancel out and hardly move the system.

        key: of the random numbers. restarts: R. hold: steps that an action is held for, at least 1.

        Raises ConfigError without limits.
        """
        if self.limits is None:
            raise ConfigError("random starting actions are drawn between the limits, and the problem has none")
        shape = (restarts, -(-self.horizon // hold), self.action_size)
        low, high = self.limits
        actions = jax.random.uniform(key, shape, low.dtype, low, high)
        return jnp.repeat(actions, hold, axis=1)[:, : self.horizon]

    def follow(
        self,
        initial_state: Float[Array, " D"],
        controller: Callable[[Time, Float[Array, " D"]], Float[Array, " A"]],
    ) -> Path:
        """The path of the actions u_t = controller(t, x_t), clipped to the limits.

        initial_state: x_0. controller: (t, x_t) ↦ u_t.
        """
        low, high = self.bounds(initial_state.dtype)

        def advance(state: Array, t: Array) -> tuple[Array, tuple]:
            """state: x_t. t: time step."""
            action = jnp.clip(controller(t, state), low, high)
            return self.step(t, state, action), (state, action, self.step_cost(t, state, action))

        last, (states, actions, costs) = jax.lax.scan(advance, initial_state, jnp.arange(self.horizon))
        return Path(jnp.concatenate([states, last[None]]), actions, jnp.append(costs, self.end_cost(last)))

    def check(self, initial_state: Float[Array, " D"]) -> None:
        """Raises ConfigError for functions whose results do not have the expected shapes and the dtype of the state.

        initial_state: x_0.
        """
        if self.horizon < 1:
            raise ConfigError(f"a plan needs at least one time step, and the horizon is {self.horizon}")
        if not 1 <= self.action_size <= LARGEST:
            raise ConfigError(
                f"plans are for 1 to {LARGEST} action dimensions, and this problem has {self.action_size}"
            )
        action = jax.ShapeDtypeStruct((self.action_size,), initial_state.dtype)
        time = [jax.ShapeDtypeStruct((), jnp.int32)] if self.time_varying else []
        results = {
            "dynamics": jax.eval_shape(self.dynamics, *time, initial_state, action),
            "cost": jax.eval_shape(self.cost, *time, initial_state, action),
        }
        if self.final_cost is not None:
            results["final_cost"] = jax.eval_shape(self.final_cost, initial_state)
        for name, result in results.items():
            shape = initial_state.shape if name == "dynamics" else ()
            if (result.shape, result.dtype) != (shape, initial_state.dtype):
                raise ConfigError(
                    f"{name} has to return {initial_state.dtype}{list(shape)}, and returns "
                    f"{result.dtype}{list(result.shape)}"
                )
