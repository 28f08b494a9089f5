"""TRPO: the natural direction, scaled to the trust region, kept only if it really improves inside it."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from klimb.improve.fisher import conjugate_gradient, linearise
from klimb.improve.line_search import backtrack
from klimb.improve.objectives import (
    KLDirection,
    action_distribution,
    choose,
    directed_kl,
    finite_batch,
    flatten,
    surrogate_gain,
    update_info,
)
from klimb.improve.rule import RULE, Count, Fraction, NonNegative, Positive
from klimb.policies.distributions import Distribution
from klimb.types import Batch, Status, UpdateInfo


@dataclass(frozen=True, config=RULE)
class TRPO:
    """Trust region policy optimisation (Schulman et al. 2015).

    maximise mean (π_θ'/π_θ) Â subject to mean KL ≤ max_kl, through
    x ≈ (F + damping·I)⁻¹ g by conjugate gradient, the full step √(2 max_kl / xᵀF x) · x (undamped F: damping
    regularises the solve, not the length), and a backtracking line search on the real surrogate and the real KL.
    A rejected search returns the old policy bit for bit.
    """

    max_kl: Positive = 0.01
    """Enforced limit on the mean KL between the old and the new policy, in nats."""
    damping: NonNegative = 0.1
    """η added to the diagonal of the Fisher matrix in the solve."""
    cg_iterations: Count = 10
    """Most Fisher-vector products in one solve."""
    cg_tolerance: NonNegative = 1e-5
    """Conjugate gradient stops when the residual falls below this fraction of the gradient's norm."""
    backtrack_factor: Fraction = 0.8
    """The most that one rejected try is shortened by."""
    max_backtracks: Annotated[int, Field(ge=0)] = 10
    """Tries after the full step."""
    kl_direction: KLDirection = "old_new"
    """old_new: KL(π_old‖π_new), under the policy that collected the data; new_old: the lectures' direction."""

    def init(self, policy: PyTree) -> tuple[()]:
        """TRPO remembers nothing."""
        return ()

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: tuple[()], batch: Batch
    ) -> tuple[PyTree, tuple[()], UpdateInfo]:
        """One trust-region step. `info.extra`: cg_iterations, cg_residual (relative), backtracks, step_size."""
        batch = batch.blank_padding()
        theta, rebuild = flatten(policy)

        def distribution_at(vector: Array) -> Distribution:
            return action_distribution(rebuild(vector), batch.obs)

        old, product, pull_back = linearise(distribution_at, theta, batch.weight)
        gradient = pull_back(jax.grad(surrogate_gain)(old, batch))

        solve = conjugate_gradient(
            lambda v: product(v) + self.damping * v,
            gradient,
            iterations=self.cg_iterations,
            tolerance=self.cg_tolerance,
        )
        fisher_x = product(solve.x)
        curvature = jnp.vdot(solve.x, fisher_x)
        step_size = jnp.where(curvature > 0, jnp.sqrt(2 * self.max_kl / jnp.where(curvature > 0, curvature, 1)), 0)

        def evaluate(vector: Array) -> tuple[Array, Array]:
            new = distribution_at(vector)
            return surrogate_gain(new, batch), batch.mean(directed_kl(old, new, self.kl_direction))

        found = backtrack(
            evaluate,
            theta,
            step_size * solve.x,
            max_kl=self.max_kl,
            factor=self.backtrack_factor,
            max_backtracks=self.max_backtracks,
        )
        usable = finite_batch(batch) & jnp.all(jnp.isfinite(gradient))
        status = jnp.where(solve.breakdown, Status.CG_BREAKDOWN, found.status)
        status = jnp.where(usable, status, Status.NONFINITE)
        accepted = status == Status.ACCEPTED

        residual = jnp.linalg.norm(fisher_x + self.damping * solve.x - gradient)
        scale = jnp.linalg.norm(gradient)
        info = update_info(
            old,
            distribution_at(jnp.where(accepted, found.theta, theta)),
            batch,
            status,
            kl_direction=self.kl_direction,
            cg_iterations=solve.iterations,
            cg_residual=residual / jnp.where(scale > 0, scale, 1),
            backtracks=found.backtracks,
            step_size=jnp.where(accepted, step_size * found.scale, 0),
        )
        return choose(accepted, rebuild(found.theta), policy), state, info
