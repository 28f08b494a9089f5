"""KL penalty: ascent on the surrogate minus a fixed multiple of the mean KL from the old policy."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import model_validator

from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.minibatches import require_minibatches
from klimb.improve.objectives import divergence_of, has_signal, penalised_gain, with_entropy
from klimb.improve.optimizer import Optimizer, fit_epochs
from klimb.improve.rule import KLDirection, KLLimit, Traits
from klimb.improve.schedules import LearningRateSchedule, Schedule, anneals, current, schedule_metrics
from klimb.improve.target_kl import TargetKL, epochs_done, require_target_kl, target_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


@checked
class KLPenalty:
    """The constrained surrogate with its multiplier λ fixed in advance.

    Maximises Ā(θ') − λ mean KL + ent_coef · entropy by a few epochs of minibatch ascent, Ā = mean (π_θ'/π_θ − 1) Â. The
    KL that results depends on λ and on the batch and is not limited; `DualDescent` adapts λ to keep a limit.
    """

    kl_coef: NonNegative = 1.0
    """λ: penalty coefficient of the mean KL, in units of the advantage per nat; 0 for no penalty."""
    learning_rate: Positive = 1e-3
    """Adam's step size."""
    epochs: Count = 10
    """Passes over the batch."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    kl_direction: KLDirection = "old_new"
    """The KL that is penalised or compared with target_kl. old_new: KL(π_old‖π_new); new_old: KL(π_new‖π_old)."""
    target_kl: Positive | None = None
    """Mean KL in nats above which the passes stop (none: never)."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run; kl: it is raised or lowered to reach target_kl."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in units of the advantage per nat."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _has_target(self) -> KLPenalty:
        require_target_kl(self)
        return self

    @property
    def traits(self) -> Traits:
        return Traits(
            title="KL penalty",
            kl=KLLimit(self.target_kl, direction=self.kl_direction),
            num_minibatches=self.num_minibatches,
            metrics={
                "multiplier": Metric("Multiplier", "λ, the penalty coefficient of the KL"),
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
        return self._optimizer.init(flatten(policy).theta)

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: optax.OptState, batch: Batch
    ) -> tuple[PyTree, optax.OptState, UpdateInfo]:
        """All epochs on one batch: (policy, state, info).

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: multiplier (λ), grad_norm of the last minibatch, before clipping; with a target_kl epochs_done;
        and what has a schedule. Raises ValueError if `num_minibatches` does not divide the number of rows.
        """
        require_minibatches(batch.obs, self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)
        now, scheduled = current(self, batch, state)
        target = TargetKL.of(self, policy, batch, self.kl_direction)

        def objective(vector: Array, minibatch: Batch) -> Array:
            """The penalised gain at θ' = vector on the rows of a minibatch."""
            old, new = (action_distribution(p, minibatch.obs) for p in (policy, rebuild(vector)))
            gain = penalised_gain(divergence_of(self.kl_direction), self.kl_coef, old, new, minibatch)
            return with_entropy(gain, now.ent_coef, new, minibatch)

        fitted = fit_epochs(
            self._optimizer,
            objective,
            key,
            theta,
            state,
            batch,
            learning_rate=now.learning_rate,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            keep_going=target.keep_going,
        )
        new_theta = jnp.where(has_signal(batch), fitted.theta, theta) if self.ent_coef == 0 else fitted.theta
        return accept_or_reject(
            policy,
            state,
            rebuild(new_theta),
            target.adapted(fitted.moments, new_theta),
            batch,
            kl_direction=self.kl_direction,
            multiplier=self.kl_coef,
            grad_norm=fitted.grad_norm,
            **epochs_done(self, fitted.epochs),
            **scheduled,
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", self.max_grad_norm, rate_factor=self.learning_rate_schedule == "kl")
