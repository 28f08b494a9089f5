"""The result of planning: a locally optimal path, the feedback around it, and how the search ended."""

from __future__ import annotations

import enum

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from klimb.errors import ConfigError


class PlanStatus(enum.IntEnum):
    """How a search for a plan ended. Arrays hold the number; `message` is for people."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    NO_PROGRESS = 2
    NOT_POSITIVE_DEFINITE = 3
    NONFINITE = 4

    @property
    def message(self) -> str:
        """Cause and remedy, in one line."""
        return _MESSAGES[self]


_MESSAGES = {
    PlanStatus.CONVERGED: "no small change of the actions lowers the cost",
    PlanStatus.ITERATION_LIMIT: "the cost was still falling: raise max_iterations",
    PlanStatus.NO_PROGRESS: "no step lowers the cost, however short, although the derivatives predict it: look for "
    "kinks in the dynamics or the cost (clips, absolute values), or use double precision",
    PlanStatus.NOT_POSITIVE_DEFINITE: "at failed_step the cost to go does not grow with the square of the actions: "
    "add a cost of every action, start from other actions, or raise max_iterations or max_regularisation",
    PlanStatus.NONFINITE: "the dynamics, the cost or their derivatives are not finite at failed_step of the "
    "returned path: start from other actions, or correct the functions there (square roots, divisions)",
}


class Plan(eqx.Module):
    """A path, the feedback around it, and how it was found; batches of plans have leading axes.

    Axes: T time steps, D state dimensions, A action dimensions.
    actions, states: the path, x̂_0 to x̂_T; the actions are within the limits.
    gains, feedforward: the next step of the search, u = û + k + K (x − x̂) before limits: k is zero where the search
        has converged, and K there is the best feedback around the path. Rows of actions at a limit are zero.
    q_uu: curvature of the cost to go in the actions plus `regularisation` (mostly zero) on the diagonal, in cost per
        action². Positive definite, unless the status is NONFINITE or max_regularisation was not enough.
    cost: of the whole path. iterations: steps tried. status: a `PlanStatus`.
    failed_step: the time step of NOT_POSITIVE_DEFINITE or NONFINITE (T for the final cost), else −1.
    """

    actions: Float[Array, "T A"]
    states: Float[Array, "T+1 D"]
    gains: Float[Array, "T A D"]
    feedforward: Float[Array, "T A"]
    q_uu: Float[Array, "T A A"]
    cost: Float[Array, ""]
    regularisation: Float[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]
    failed_step: Int[Array, ""]

    @property
    def converged(self) -> Array:
        """Whether the search ended at a local optimum."""
        return self.status == PlanStatus.CONVERGED

    def require_usable(self) -> Plan:
        """This plan (a single one, outside of jit); ConfigError, with the time step, where it has no controller."""
        step = int(self.failed_step)
        if self.status == PlanStatus.NOT_POSITIVE_DEFINITE:
            curvature = np.asarray(self.q_uu[step] - self.regularisation * jnp.eye(self.q_uu.shape[-1]))
            raise ConfigError(
                f"the cost is not positive definite in the actions at time step {step} (smallest eigenvalue "
                f"{np.linalg.eigvalsh(curvature)[0]:.3g} of the cost to go): add a cost that grows with the square of "
                "every action, or start from other actions"
            )
        if self.status == PlanStatus.NONFINITE:
            raise ConfigError(
                f"the dynamics, the cost or their derivatives are not finite at time step {step}: start from other "
                "actions, or correct the functions there"
            )
        return self


def best_of(plans: Plan) -> Plan:
    """The cheapest of the plans along the leading axis; one with a non-finite cost only if all have one."""
    ranked = jnp.where(jnp.isfinite(plans.cost), plans.cost, jnp.inf)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(ranked)], plans)
