"""Natural gradient: steepest ascent when distance is the KL between policies; also the plain normalised gradient."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field, model_validator

from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.fisher import FisherKind, Linearised, fisher_rows, linearise
from klimb.improve.kronecker import preconditioned
from klimb.improve.natural_direction import (
    Direction,
    Preconditioning,
    Solve,
    Solver,
    conjugate_gradient,
    dense,
    woodbury,
)
from klimb.improve.objectives import surrogate_gain, with_entropy
from klimb.improve.rule import KLLimit, Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.types import Batch, Metric, Status, UpdateInfo


@checked
class NaturalGradient:
    """One step θ' = θ + α F⁻¹ g on the linearised surrogate (Kakade 2001), without a line search.

    With α = √(2ε / gᵀF⁻¹g) the KL is ε to second order; a fixed `learning_rate` replaces this α. For comparison, the
    option `normalised` limits the distance between parameters instead, ‖θ' − θ‖² ≤ ε, which gives the plain gradient
    with α = √(ε / ‖g‖²). g is the gradient of the surrogate + ent_coef · entropy.
    """

    epsilon: Positive = 0.01
    """ε: the KL aimed at, in nats; with `normalised` the squared length of the step."""
    learning_rate: Positive | None = None
    """α, if it is fixed; none computes it from ε."""
    normalised: bool = False
    """Plain gradient, scaled to a fixed length, instead of the natural gradient."""
    solver: Solver = "cg"
    """cg: conjugate gradient; woodbury: a matrix of samples × samples; dense: of parameters × parameters."""
    fisher: FisherKind = "exact"
    """exact: expectation over all actions (Gauss-Newton); empirical: over the sampled actions."""
    damping: NonNegative = 0.1
    """η added to the diagonal of F in the solve; has to be positive for woodbury and dense."""
    cg_iterations: Count = 10
    """Maximum number of Fisher-vector products per solve by cg."""
    cg_tolerance: Annotated[float, Field(ge=0)] = 1e-5
    """cg stops when the residual falls below this fraction of the gradient's norm."""
    cg_min_progress: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """cg stops when a product has added less than this fraction to gᵀx: the direction has settled. 0: never."""
    preconditioner: Preconditioning = "kronecker"
    """kronecker: cg is preconditioned by K-FAC, for policies that consist of dense layers; none: it is not."""
    epsilon_schedule: Schedule = "constant"
    """constant; linear or cosine: epsilon decreases to 0 over the run."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: a fixed learning rate decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in units of the advantage per nat."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _consistent(self) -> NaturalGradient:
        if self.solver != "cg" and self.damping == 0:
            raise ValueError(
                f"solver = {self.solver} needs damping > 0: the Fisher matrix of a policy is often singular"
            )
        if self.learning_rate is None and self.learning_rate_schedule != "constant":
            raise ValueError(
                f"learning_rate_schedule = {self.learning_rate_schedule} has no learning_rate to change: give one, or "
                "use epsilon_schedule, since the step is computed from epsilon"
            )
        if self.learning_rate is not None and self.epsilon_schedule != "constant":
            raise ValueError(
                f"epsilon_schedule = {self.epsilon_schedule} changes nothing, because learning_rate fixes the step: "
                "use learning_rate_schedule"
            )
        return self

    @property
    def traits(self) -> Traits:
        aims = not self.normalised and self.learning_rate is None
        return Traits(
            title="Natural gradient",
            kl=KLLimit(self.epsilon if aims else None),
            metrics={
                "cg_iterations": Metric("Conjugate gradient steps", "Fisher-vector products in the solve"),
                "cg_residual": Metric("Conjugate gradient residual", "residual of the solve, relative to the gradient"),
                "step_size": Metric("Step size", "factor on the natural direction; 0 when the step is rejected"),
                "grad_norm": Metric("Gradient norm", "norm of the gradient"),
            }
            | schedule_metrics(self),
            anneals=anneals(self),
        )

    def init(self, policy: PyTree) -> tuple[()]:
        """(): there is no state.

        policy: not used.
        """
        return ()

    @full_precision
    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: tuple[()], batch: Batch
    ) -> tuple[PyTree, tuple[()], UpdateInfo]:
        """One step: (policy, state, info).

        key: not used. policy, state, batch: as in `Rule.step`.

        `info.extra`: step_size (α), grad_norm; of the solve cg_iterations and cg_residual (relative); and what
        has a schedule.
        """
        theta, rebuild = flatten(policy)
        now, scheduled = current(self, batch)
        linear = linearise(
            lambda vector: action_distribution(rebuild(vector), batch.obs),
            theta,
            batch.weight,
            action=batch.action if self.fisher == "empirical" else None,
        )
        old = linear.distribution
        objective = lambda new: with_entropy(surrogate_gain(new, batch), now.ent_coef, new, batch)  # noqa: E731
        gradient = linear.pull_back(jax.grad(objective)(old))
        if self.normalised:
            direction = Direction.plain(gradient)
            step_size = direction.step_size(now.epsilon / 2)
        else:
            solve = self._solve(linear, policy, gradient, batch)
            direction = Direction.of(gradient, solve, linear.product, damping=self.damping)
            step_size = direction.step_size(now.epsilon)
        if now.learning_rate is not None:
            step_size = jnp.asarray(now.learning_rate, theta.dtype)

        policy, state, info = accept_or_reject(
            policy,
            state,
            rebuild(theta + step_size * direction.x),
            state,
            batch,
            status=jnp.where(direction.breakdown, Status.CG_BREAKDOWN, Status.ACCEPTED),
            old=old,
            grad_norm=jnp.linalg.norm(gradient),
            cg_iterations=direction.iterations,
            cg_residual=direction.residual,
            **scheduled,
        )
        taken = jnp.where(info.status == Status.ACCEPTED, step_size, 0)
        return policy, state, info.with_metrics(step_size=taken)

    def _solve(self, linear: Linearised, policy: PyTree, gradient: Array, batch: Batch) -> Solve:
        if self.solver == "cg":
            return conjugate_gradient(
                lambda v: linear.product(v) + self.damping * v,
                gradient,
                iterations=self.cg_iterations,
                tolerance=self.cg_tolerance,
                min_progress=self.cg_min_progress,
                preconditioner=preconditioned(self.preconditioner, policy, batch, damping=self.damping),
            )
        solve = woodbury if self.solver == "woodbury" else dense
        return solve(fisher_rows(policy, batch, self.fisher), gradient, damping=self.damping)
