"""Off-policy gradient: several steps on data of other policies, with importance weights for the current policy."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from pydantic import Field, model_validator

from klimb.estimate.importance import (
    Weighting,
    effective_sample_size,
    last_rows,
    log_weights,
    per_decision_advantages,
)
from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.objectives import with_entropy
from klimb.improve.optimizer import Optimizer, OptimizerKind, fit_epochs
from klimb.improve.rule import KLLimit, Traits
from klimb.improve.schedules import LearningRateSchedule, Schedule, anneals, current, schedule_metrics
from klimb.improve.target_kl import TargetKL, require_target_kl
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, Mixture, UpdateInfo


@checked
class OffPolicyGradient:
    """θ ← θ + α mean w_t ∇log π_θ(a_t|s_t) Â_t, w the importance weight of π_θ relative to the behaviour policy π_β.

    - trajectory: w = Π_t ρ_t over the whole trajectory. Unbiased, small effective sample size.
    - per_decision: w_t = Π_{t' ≤ t} ρ_t', and in Â_t every reward is weighted by the ratios up to its step. The causal
    form, also unbiased.
    - per_step: w_t = ρ_t, without the ratio of the state distributions. Biased, low variance; the common form.

    The ratios ρ_t = π_θ(a_t|s_t)/π_β(a_t|s_t) are computed again for every gradient step. The data is the last batch,
    or the last `history` batches, and demonstrations if the run has them. Trajectories are episodes, or the parts of
    episodes in a rollout. Without a trajectory (`Batch.trajectory` None) every row is a trajectory of one step.
    """

    weighting: Weighting = "per_step"
    """trajectory, per_decision or per_step."""
    behaviour: Literal["recorded", "mixture"] = "recorded"
    """π_β. recorded: the policy that collected the sample; mixture: of all policies in the data (balance heuristic)."""
    history: Annotated[int, Field(ge=1, le=2**10)] = 1
    """Number of batches to learn from: the last K."""
    gradient_steps: Count = 10
    """Maximum number of gradient steps per batch, each on the whole batch."""
    min_ess: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Stop the gradient steps once the effective sample size is below this fraction of the samples."""
    self_normalise: bool = False
    """Divide the weights by their mean: less variance, some bias."""
    max_weight: Positive | None = None
    """Maximum weight (and ratio inside per-decision advantages), larger ones are truncated; none does not truncate."""
    learning_rate: Positive = 1e-3
    """α: step size of the optimiser."""
    optimizer: OptimizerKind = "adam"
    """adam, or sgd for the plain gradient step."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    target_kl: Positive | None = None
    """Mean KL(π_old‖π_new) in nats above which the gradient steps stop (none: never)."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run; kl: it is raised or lowered to reach target_kl."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in units of the advantage per nat."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _has_target(self) -> OffPolicyGradient:
        require_target_kl(self)
        return self

    @property
    def traits(self) -> Traits:
        return Traits(
            title="Off-policy gradient",
            kl=KLLimit(self.target_kl),
            learns_from="both",
            history=self.history,
            keeps_policies=self.behaviour == "mixture",
            metrics={
                "weight_ess": Metric(
                    "Effective sample size", "effective sample size of the importance weights, as a fraction"
                ),
                "largest_weight": Metric("Largest weight", "largest importance weight, as a share of their sum"),
                "demonstration_ess": Metric(
                    "Effective sample size of demonstrations",
                    "effective sample size of the importance weights of the demonstrations alone, as a fraction",
                ),
                "gradient_steps": Metric(
                    "Gradient steps",
                    "steps taken, including the one that made the sample size too small or exceeded target_kl",
                ),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            }
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
        """All gradient steps on one batch: (policy, state, info).

        key: not used. policy, state, batch: as in `Rule.step`.

        `info.extra`: weight_ess and largest_weight (as a fraction of the sum of weights) of the policy returned, per
        trajectory if weighting = trajectory, else per row; with demonstrations demonstration_ess, the same as
        weight_ess over them alone; gradient_steps taken; grad_norm of the last, before clipping; and what has
        a schedule.
        """
        theta, rebuild = flatten(policy)
        now, scheduled = current(self, batch, state)
        target = TargetKL.of(self, policy, batch, "old_new")

        def distribution_at(vector: Array) -> Distribution:
            return action_distribution(rebuild(vector), batch.obs)

        def keep_going(vector: Array) -> Array:
            large = self._sample_size(distribution_at(vector), batch)[0] >= self.min_ess
            return large if target.keep_going is None else large & target.keep_going(vector)

        fitted = fit_epochs(
            self._optimizer,
            lambda vector, batch: now._objective(distribution_at(vector), batch),
            key,
            theta,
            state,
            batch,
            learning_rate=now.learning_rate,
            epochs=self.gradient_steps,
            num_minibatches=1,
            keep_going=keep_going,
        )
        return accept_or_reject(
            policy,
            state,
            rebuild(fitted.theta),
            target.adapted(fitted.moments, fitted.theta),
            batch,
            weight_ess=lambda new: self._sample_size(new, batch)[0],
            largest_weight=lambda new: self._sample_size(new, batch)[1],
            gradient_steps=fitted.epochs,
            grad_norm=fitted.grad_norm,
            **self._of_demonstrations(batch),
            **scheduled,
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make(self.optimizer, self.max_grad_norm, rate_factor=self.learning_rate_schedule == "kl")

    def _objective(self, distribution: Distribution, batch: Batch) -> Float[Array, ""]:
        """mean w_t Â_t log π(a_t|s_t), w_t and Â_t without gradient: its gradient is the policy gradient estimate.

        With the entropy bonus, over the states of the batch.
        """
        log_prob = distribution.log_prob(batch.action)
        log_weight = jax.lax.stop_gradient(self._log_weights(log_prob, batch))
        weight = self._limited(jnp.exp(log_weight), batch)
        objective = batch.mean(weight.reshape(-1) * self._advantage(log_weight, batch) * log_prob)
        return with_entropy(objective, self.ent_coef, distribution, batch)

    def _log_weights(self, log_prob: Float[Array, " B"], batch: Batch) -> Float[Array, "T N"]:
        valid, ended = _arrangement(batch)
        behaviour = Mixture(batch.log_prob.reshape(1, *valid.shape), jnp.zeros(1, log_prob.dtype))
        trajectory = batch.trajectory
        if self.behaviour == "mixture" and trajectory is not None and trajectory.mixture is not None:
            behaviour = trajectory.mixture
        # The ratio of padding is 1, so that it does not change any product.
        target = jnp.where(valid, log_prob.reshape(valid.shape), 0)
        behaviour = dataclasses.replace(behaviour, log_prob=jnp.where(valid, behaviour.log_prob, 0))
        return log_weights(self.weighting, target, behaviour, ended)

    def _limited(self, weight: Array, batch: Batch) -> Array:
        if self.max_weight is not None:
            weight = jnp.minimum(weight, self.max_weight)
        if self.self_normalise:
            mean = batch.mean(weight.reshape(-1))
            weight = weight / jnp.where(mean > 0, mean, 1)
        return weight

    def _advantage(self, log_weight: Float[Array, "T N"], batch: Batch) -> Float[Array, " B"]:
        residuals = None if batch.trajectory is None else batch.trajectory.residuals
        if self.weighting != "per_decision" or residuals is None:
            return batch.advantage
        _, ended = _arrangement(batch)
        advantage = per_decision_advantages(log_weight, residuals, ended, largest_ratio=self.max_weight)
        return jnp.where(batch.weight > 0, (advantage * residuals.discount).reshape(-1), 0)

    def _sample_size(self, distribution: Distribution, batch: Batch) -> tuple[Array, Array]:
        """(effective sample size as a fraction, largest weight as a fraction of their sum)."""
        weight, count = self._samples(distribution, batch)
        total = jnp.sum(count * weight)
        return effective_sample_size(weight, count), jnp.max(count * weight) / jnp.where(total > 0, total, 1)

    def _of_demonstrations(self, batch: Batch) -> dict[str, Any]:
        """What is measured of the demonstrations alone, as functions of the distributions; nothing without any."""
        demonstrated = None if batch.trajectory is None else batch.trajectory.demonstrated
        if demonstrated is None:
            return {}

        def sample_size(distribution: Distribution) -> Array:
            """As a fraction of the demonstrations."""
            weight, count = self._samples(distribution, batch)
            return effective_sample_size(weight, jnp.where(demonstrated, count, 0))

        return {"demonstration_ess": sample_size}

    def _samples(self, distribution: Distribution, batch: Batch) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
        """(weights, how often each counts): of trajectories on their last rows, else of every row."""
        log_weight = self._log_weights(distribution.log_prob(batch.action), batch)
        valid, ended = _arrangement(batch)
        count = jnp.where(valid, batch.weight.reshape(valid.shape), 0)
        if self.weighting == "trajectory":
            count = jnp.where(last_rows(valid, ended), count, 0)
        return jnp.where(count > 0, self._limited(jnp.exp(log_weight), batch), 0), count


def _arrangement(batch: Batch) -> tuple[Bool[Array, "T N"], Bool[Array, "T N"]]:
    """(rows of positive weight, rows that end a trajectory); without trajectories every row is one of its own."""
    if batch.trajectory is None:
        return (batch.weight > 0)[None], jnp.ones((1, len(batch.weight)), bool)
    rollout = batch.trajectory.rollout
    return (batch.weight > 0).reshape(rollout.valid.shape), rollout.terminated | rollout.truncated
