"""AWR: maximum likelihood of the actions with weights e^{A/β}, with a fixed temperature β."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree
from pydantic import model_validator

from klimb.estimate.importance import effective_sample_size
from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.rule import KLLimit, Traits
from klimb.improve.schedules import LearningRateSchedule, Schedule, anneals, current, schedule_metrics
from klimb.improve.soft_improvement import WeightedFit, under_policy
from klimb.improve.target_kl import epochs_done, require_target_kl, target_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


@checked
class AWR:
    """Advantage-weighted regression (Peng et al. 2019): maximise mean min(e^{Â/β}, w_max) log π_θ(a|s).

    Without the clip its optimum is π e^{A/β}/Z, the maximum of E_{π'}[A] − β KL(π'‖π): the multiplier is fixed,
    as in `KLPenalty`, but here the penalised problem is solved in closed form and the policy is fitted to the solution.
    """

    temperature: Positive = 1.0
    """β: penalty coefficient of KL(π'‖π), per nat; the smaller it is, the more the largest advantages count."""
    max_weight: Positive = 20.0
    """w_max: maximum weight; larger ones are clipped."""
    learning_rate: Positive = 1e-3
    """Adam's step size."""
    epochs: Count = 10
    """Passes over the batch."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    target_kl: Positive | None = None
    """Mean KL(π_new‖π_old) in nats above which the passes stop (none: never)."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run; kl: it is raised or lowered to reach target_kl."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in nats of weighted log-likelihood per nat of entropy."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _has_target(self) -> AWR:
        require_target_kl(self)
        return self

    @property
    def traits(self) -> Traits:
        return Traits(
            title="AWR",
            kl=KLLimit(self.target_kl, direction="new_old"),
            num_minibatches=self.num_minibatches,
            metrics={
                "weight_ess": Metric("Effective sample size", "effective sample size of the weights, as a fraction"),
                "clipped_weights": Metric("Clipped weights", "fraction of samples whose weight was clipped"),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            }
            | target_metrics(self)
            | schedule_metrics(self),
            anneals=anneals(self),
        )

    def init(self, policy: PyTree) -> optax.OptState:
        """Adam's moments before the first step.

        policy: the one that the first step will get.
        """
        return self._fit.init(policy)

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: optax.OptState, batch: Batch
    ) -> tuple[PyTree, optax.OptState, UpdateInfo]:
        """All epochs on one batch: (policy, state, info).

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: weight_ess, clipped_weights, grad_norm of the last minibatch, before clipping. Raises ValueError
        if `num_minibatches` does not divide the number of rows.
        """
        old = action_distribution(policy, batch.obs)
        rows = under_policy(old, batch)
        now, scheduled = current(self, batch, state)
        unclipped = jnp.exp(batch.advantage / self.temperature)
        weight = jnp.minimum(unclipped, self.max_weight)
        fitted = now._fit(key, policy, state, rows, weight)
        return accept_or_reject(
            policy,
            state,
            flatten(policy).rebuild(fitted.theta),
            fitted.moments,
            batch,
            kl_direction=self.traits.kl.direction,
            old=old,
            weight_ess=effective_sample_size(weight, rows.weight),
            clipped_weights=rows.mean((unclipped > self.max_weight).astype(weight.dtype)),
            grad_norm=fitted.grad_norm,
            **epochs_done(self, fitted.epochs),
            **scheduled,
        )

    @property
    def _fit(self) -> WeightedFit:
        return WeightedFit.of(self, "new_old")
