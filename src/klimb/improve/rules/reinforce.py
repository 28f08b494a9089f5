"""REINFORCE: one gradient step on the log-likelihood of the actions, weighted by their advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.fields import NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.objectives import log_ratio, with_entropy
from klimb.improve.optimizer import Optimizer, OptimizerKind
from klimb.improve.rule import Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


@checked
class Reinforce:
    """The plain policy gradient (Williams 1992): θ ← θ + α mean ρ ∇log π_θ(a|s) Â, one step per batch.

    ρ = π_θ(a|s)/π_β(a|s) is 1 on the policy's own data; where rollouts are collected during the update (`overlap`),
    π_β is the policy before it.

    The option `advantage` of `klimb.train` chooses Â: total return, reward-to-go, with a baseline, GAE or n-step. The
    factor γᵗ of the exact gradient is dropped unless the option `discount_states` is set.
    """

    learning_rate: Positive = 1e-2
    """α: step size of the optimiser."""
    optimizer: OptimizerKind = "adam"
    """adam, or sgd for the plain gradient step."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus."""
    max_grad_norm: Positive | None = None
    """Maximum global norm of the gradient; none does not clip."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="REINFORCE",
            metrics={"grad_norm": Metric("Gradient norm", "norm of the gradient, before it is clipped")}
            | schedule_metrics(self),
            anneals=anneals(self),
        )

    def init(self, policy: PyTree) -> optax.OptState:
        """The optimiser's moments before the first step.

        policy: the one that the first step will get.
        """
        return self._optimizer.init(flatten(policy).theta)

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: optax.OptState, batch: Batch
    ) -> tuple[PyTree, optax.OptState, UpdateInfo]:
        """One gradient step: (policy, state, info).

        key: not used. policy, state, batch: as in `Rule.step`.

        `info.extra`: grad_norm, before clipping; and what has a schedule.
        """
        theta, rebuild = flatten(policy)
        now, scheduled = current(self, batch)
        gradient = jax.grad(lambda vector: now._objective(rebuild(vector), batch))(theta)
        new_theta, new_state = self._optimizer.apply_gradient(theta, gradient, state, now.learning_rate)
        return accept_or_reject(
            policy, state, rebuild(new_theta), new_state, batch, grad_norm=jnp.linalg.norm(gradient), **scheduled
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make(self.optimizer, self.max_grad_norm)

    def _objective(self, policy: PyTree, batch: Batch) -> Float[Array, ""]:
        distribution = action_distribution(policy, batch.obs)
        ratio = jax.lax.stop_gradient(jnp.exp(log_ratio(distribution, batch)))
        objective = batch.mean(ratio * distribution.log_prob(batch.action) * batch.advantage)
        return with_entropy(objective, self.ent_coef, distribution, batch)
