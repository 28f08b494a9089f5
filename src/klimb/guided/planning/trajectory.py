"""What planning returns: a locally optimal path, the feedback around it, and how the search ended."""

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
    PlanStatus.NO_PROGRESS: "no step lowers the cost, however short, though the derivatives promise it: look for "
    "kinks in the dynamics or the cost (clips, absolute values), or work in double precision",
    PlanStatus.NOT_POSITIVE_DEFINITE: "at failed_step the cost to go does not grow with the square of the actions: "
    "give every action a cost of its own, start elsewhere, or raise max_iterations or max_regularisation",
    PlanStatus.NONFINITE: "the dynamics, the cost or their derivatives are not finite at failed_step of the "
    "returned path: start from other actions, or mend the functions there (square roots, divisions)",
}


class Plan(eqx.Module):
    """A path, the feedback around it, and how it was found; whole batches of them carry leading axes.

    Axes: T time steps, D state dimensions, A action dimensions.
    actions, states: the path, x̂_0 to x̂_T; the actions are within the limits.
    gains, feedforward: the next step of the search, u = û + k + K (x − x̂) before limits: k is zero where the search
        has converged, and K there is the best feedback around the path. Rows of actions held by a limit are zero.
    q_uu: curvature of the cost to go in the actions, in cost per action²; positive definite, for which
        `regularisation` (mostly zero) was added to its diagonal, unless the status is NONFINITE or it could not be.
    cost: of the whole path. iterations: steps tried. status: a `PlanStatus`.
    failed_step: the time step that NOT_POSITIVE_DEFINITE or NONFINITE is about (T for the final cost), else −1.
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
        """This plan (a single one, outside of jit), or `ConfigError` naming the time step at which it is none."""
        step = int(self.failed_step)
        if self.status == PlanStatus.NOT_POSITIVE_DEFINITE:
            curvature = np.asarray(self.q_uu[step] - self.regularisation * jnp.eye(self.q_uu.shape[-1]))
            raise ConfigError(
                f"the cost is not positive definite in the actions at time step {step} (smallest eigenvalue "
                f"{np.linalg.eigvalsh(curvature)[0]:.3g} of the cost to go): give every action a cost that grows "
                "with its square, or start from other actions"
            )
        if self.status == PlanStatus.NONFINITE:
            raise ConfigError(
                f"the dynamics, the cost or their derivatives are not finite at time step {step}: start from other "
                "actions, or mend the functions there"
            )
        return self


def best_of(plans: Plan) -> Plan:
    """The cheapest of the plans along the leading axis; one whose cost is not finite only if all are like that."""
    ranked = jnp.where(jnp.isfinite(plans.cost), plans.cost, jnp.inf)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(ranked)], plans)
