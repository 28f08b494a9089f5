"""Constrained guided policy search: dual gradient descent on a Lagrangian over trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.guided.along_paths import Following, path_traits
from klimb.guided.kl_constrained_lqr import (
    DualStatus,
    KLConstrainedControllers,
    solve_constrained,
    solve_penalised,
)
from klimb.guided.local_models import LocalModels, LocalProblem
from klimb.guided.projection import OPTIMIZER
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.dual import dual_ascent
from klimb.improve.rule import Traits
from klimb.policies.parameters import flatten
from klimb.precision import full_precision
from klimb.types import Batch, UpdateInfo

MIN_KL = 1e-12
"""Smallest KL, in nats, that the multiplier follows."""

MAX_MULTIPLIER = 1e9
"""Largest η, in reward per nat."""


class ConstrainedState(NamedTuple):
    """multiplier: η of the next step; 0 before the first one. moments: Adam's."""

    multiplier: Float[Array, ""]
    moments: optax.OptState


@dataclass(frozen=True)
class ConstrainedSearch:
    """Guided policy search by dual gradient descent: the Lagrangian of the lectures, over trajectories.

    L(p, η) = E_p[cost] + η (mean KL(p‖π_θ) − ε)

    p        ← argmin_p L, linear-Gaussian controllers along the columns of the rollout, in closed form
    θ        ← argmin mean KL(π_θ‖p) over the states of the rollout
    η        ← η (mean KL(p‖π_θ)/ε)^α, one step of ascent on the dual function, in the logarithms of η and of the KL

    The first η, and one for which L has no minimum, is the one that satisfies the constraint on the batch, as in every
    iteration of mirror descent.

    models: of dynamics and costs. epsilon: ε, positive, in nats per step. dual_learning_rate: α. epochs,
    minibatch_size, learning_rate: of the projection.
    """

    models: LocalModels = field(default_factory=LocalModels)
    epsilon: float | Array = 0.1
    dual_learning_rate: float | Array = 0.5
    epochs: int = 20
    minibatch_size: int = 256
    learning_rate: float | Array = 1e-3

    @property
    def traits(self) -> Traits:
        return path_traits(self.models)

    def init(self, policy: PyTree) -> ConstrainedState:
        """The state before the first step. policy: Gaussian."""
        theta = flatten(policy).theta
        return ConstrainedState(jnp.zeros((), theta.dtype), OPTIMIZER.init(theta))

    @full_precision
    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: ConstrainedState, batch: Batch
    ) -> tuple[PyTree, ConstrainedState, UpdateInfo]:
        """One step in p, θ and η. `info.extra`: the metrics of `path_traits`; `eta` is the one of this step.

        key: for the order of the rows. policy: Gaussian. state: of the last step. batch: with a trajectory.

        Raises ConfigError as `LocalModels.problem`.
        """
        problem = self.models.problem(policy, batch)
        controllers = self._controllers(problem, state.multiplier)
        followed = Following(self.epochs, self.minibatch_size, self.learning_rate).step(
            key, policy, problem, controllers, state.moments
        )
        multiplier = dual_ascent(
            controllers.eta,
            # Costs change by orders of magnitude in a training, and η with them; log KL − log ε has the dual's sign.
            jnp.log(jnp.maximum(controllers.kl, MIN_KL) / self.epsilon),
            learning_rate=self.dual_learning_rate,
            log_space=True,
            largest=MAX_MULTIPLIER,
        )
        improved, new_state, info = accept_or_reject(
            policy,
            state,
            followed.policy,
            ConstrainedState(multiplier.astype(state.multiplier.dtype), followed.moments),
            batch,
            epsilon=jnp.asarray(self.epsilon, state.multiplier.dtype),
        )
        return improved, new_state, info.with_metrics(**followed.metrics)

    def _controllers(self, problem: LocalProblem, multiplier: Array) -> KLConstrainedControllers:
        """The minimiser of L for this η; where there is none, or no η yet, that of the constrained problem."""
        known = jnp.where(multiplier > 0, multiplier, 1)
        penalised = solve_penalised(problem.model, problem.policy, known, self.epsilon)
        usable = (multiplier > 0) & (penalised.status == DualStatus.CONVERGED)
        return jax.lax.cond(
            usable, lambda: penalised, lambda: solve_constrained(problem.model, problem.policy, self.epsilon)
        )
