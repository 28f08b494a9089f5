"""TRPO: a natural gradient step with a line search on the surrogate that enforces a limit on the KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field

from klimb.fields import Count, Fraction, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.fisher import FisherKind, Linearised, linearise
from klimb.improve.kronecker import preconditioned
from klimb.improve.line_search import LineSearch, backtrack, grow
from klimb.improve.minibatches import random_rows
from klimb.improve.natural_direction import Direction, Preconditioning, conjugate_gradient
from klimb.improve.objectives import directed_kl, surrogate_gain, with_entropy
from klimb.improve.rule import KLDirection, KLLimit, Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.types import Batch, Metric, Status, UpdateInfo


@checked
class TRPO:
    """Trust region policy optimisation (Schulman et al. 2015).

    Maximises mean (π_θ'/π_θ) Â subject to mean KL ≤ max_kl, through
    x ≈ (F + damping·I)⁻¹ g by conjugate gradient, the full step √(2 max_kl / xᵀF x) · x (undamped F: damping
    regularises the solve, not the length), and a line search on the surrogate and the KL themselves, not on their
    models. If the search finds no step, the old policy is returned bit for bit. With ent_coef > 0, g and the gain that
    the search accepts are those of the surrogate + ent_coef · entropy.
    """

    max_kl: Positive = 0.01
    """Enforced limit on the mean KL between the old and the new policy, in nats."""
    damping: NonNegative = 0.1
    """η added to the diagonal of the Fisher matrix in the solve."""
    cg_iterations: Count = 10
    """Maximum number of Fisher-vector products per solve."""
    cg_tolerance: NonNegative = 1e-5
    """Conjugate gradient stops when the residual falls below this fraction of the gradient's norm."""
    cg_min_progress: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """It also stops when a product has added less than this fraction to gᵀx: the direction has settled. 0: never."""
    preconditioner: Preconditioning = "kronecker"
    """kronecker: the solve is preconditioned by K-FAC, for policies that consist of dense layers; none: it is not."""
    fisher: FisherKind = "exact"
    """exact: expectation over all actions (Gauss-Newton); empirical: over the sampled actions."""
    fisher_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the batch, drawn at random per step, for the Fisher matrix; the line search uses the whole batch."""
    line_search: LineSearch = "backtracking"
    """backtracking: shorten the full step until accepted; growing: also try longer steps, up to the limit."""
    backtrack_factor: Fraction = 0.8
    """Smallest factor by which the step shrinks after a rejected try."""
    max_backtracks: Annotated[int, Field(ge=0, le=2**20)] = 10
    """Maximum number of tries after the full step."""
    kl_direction: KLDirection = "old_new"
    """The KL that is limited. old_new: KL(π_old‖π_new); new_old: KL(π_new‖π_old)."""
    min_gain_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Minimum gain of an accepted try, as a share of gᵀ(θ' − θ), the gain that the linear model predicts for it."""
    max_kl_schedule: Schedule = "constant"
    """constant; linear or cosine: max_kl decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in units of the advantage per nat."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="TRPO",
            kl=KLLimit(self.max_kl, enforced=True, direction=self.kl_direction),
            metrics={
                "cg_iterations": Metric("Conjugate gradient steps", "Fisher-vector products in the solve"),
                "cg_residual": Metric("Conjugate gradient residual", "residual of the solve, relative to the gradient"),
                "step_size": Metric("Step size", "factor on the natural direction; 0 when the step is rejected"),
                "backtracks": Metric("Backtracks", "tries of the line search after the full step"),
                "tried_kl": Metric("KL tried", "KL of the step that was taken, or else of the last one tried, in nats"),
                "tried_gain": Metric(
                    "Gain tried", "surrogate gain of that step, with the entropy bonus if there is one"
                ),
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
        """One trust-region step: (policy, state, info).

        key: for the rows of `fisher_fraction`. policy, state, batch: as in `Rule.step`.

        `info.extra`: cg_iterations, cg_residual (relative), backtracks, tried_kl, tried_gain, step_size; and
        what has a schedule.
        """
        theta, rebuild = flatten(policy)
        now, scheduled = current(self, batch)

        def objective(new: Distribution) -> Array:
            return with_entropy(surrogate_gain(new, batch), now.ent_coef, new, batch)

        old, product, pull_back = self._linearise(rebuild, theta, batch)
        gradient = pull_back(jax.grad(objective)(old))
        if self.fisher_fraction < 1:
            some = batch.take(random_rows(key, batch.obs, self.fisher_fraction))
            product = self._linearise(rebuild, theta, some).product
        direction = self._direction(policy, batch, gradient, product)
        step_size = direction.step_size(now.max_kl)
        full_step = step_size * direction.x

        # 0 on data of the old policy without a bonus. On older data the surrogate gain is not 0 before the step.
        before = objective(old)

        def evaluate(vector: Array) -> tuple[Array, Array]:
            new = action_distribution(rebuild(vector), batch.obs)
            return objective(new) - before, batch.mean(directed_kl(old, new, self.kl_direction))

        search = backtrack if self.line_search == "backtracking" else grow
        result = search(
            evaluate,
            theta,
            full_step,
            max_kl=now.max_kl,
            factor=self.backtrack_factor,
            max_backtracks=self.max_backtracks,
            min_gain=None if self.min_gain_share == 0 else self.min_gain_share * jnp.vdot(gradient, full_step),
        )
        status = jnp.where(direction.breakdown, Status.CG_BREAKDOWN, result.status)
        status = jnp.where(jnp.all(jnp.isfinite(gradient)), status, Status.NONFINITE)
        policy, state, info = accept_or_reject(
            policy,
            state,
            # A rejected candidate may be non-finite.
            rebuild(jnp.where(status == Status.ACCEPTED, result.theta, theta)),
            state,
            batch,
            status=status,
            kl_direction=self.kl_direction,
            old=old,
            cg_iterations=direction.iterations,
            cg_residual=direction.residual,
            backtracks=result.backtracks,
            tried_kl=result.kl,
            tried_gain=result.gain,
            **scheduled,
        )
        taken = jnp.where(info.status == Status.ACCEPTED, step_size * result.scale, 0)
        return policy, state, info.with_metrics(step_size=taken)

    def _linearise(self, rebuild: Callable[[Array], PyTree], theta: Array, batch: Batch) -> Linearised:
        return linearise(
            lambda vector: action_distribution(rebuild(vector), batch.obs),
            theta,
            batch.weight,
            action=batch.action if self.fisher == "empirical" else None,
        )

    def _direction(
        self,
        policy: PyTree,
        batch: Batch,
        gradient: Array,
        product: Callable[[Array], Array],
    ) -> Direction:
        solve = conjugate_gradient(
            lambda v: product(v) + self.damping * v,
            gradient,
            iterations=self.cg_iterations,
            tolerance=self.cg_tolerance,
            min_progress=self.cg_min_progress,
            preconditioner=preconditioned(self.preconditioner, policy, batch, damping=self.damping),
        )
        return Direction.of(gradient, solve, product, damping=self.damping)
