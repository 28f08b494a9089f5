"""PPO: several epochs of minibatch ascent on the clipped surrogate, or on the surrogate with an adaptive KL penalty."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import model_validator

from klimb.fields import Count, Fraction, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.dual import adapt
from klimb.improve.minibatches import require_minibatches
from klimb.improve.objectives import divergence_of, has_signal, log_ratio, penalised_gain, with_entropy
from klimb.improve.optimizer import Optimizer, fit_epochs
from klimb.improve.rule import AT_START, KLDirection, KLLimit, Traits
from klimb.improve.schedules import LearningRateSchedule, Schedule, anneals, current, schedule_metrics
from klimb.improve.target_kl import EPOCHS_DONE, TargetKL, require_target_kl
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo

DEFAULT_TARGET_KL = 0.01
"""The mean KL in nats that the adaptive penalty aims at if `target_kl` is None."""


class PPOState(NamedTuple):
    """What is kept from one iteration to the next: λ of the KL penalty (unused with clipping) and Adam's moments."""

    multiplier: Float[Array, ""]
    moments: optax.OptState


@checked
class PPO:
    """Proximal policy optimisation (Schulman et al. 2017), by clipping or by an adaptive KL penalty.

    - penalty = clip: maximise mean min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) + ent_coef · entropy, ρ = π_θ(a|s)/π_old(a|s).
    - penalty = kl: maximise mean ρ Â − λ mean KL(π_old‖π_θ) + ent_coef · entropy. After each batch λ doubles if the
    KL is above 1.5 target_kl and halves if it is below target_kl / 1.5.

    Neither enforces a limit on the KL. With learning_rate_schedule = kl all epochs are run, and the learning rate is
    divided by 1.5 after a batch whose KL is above 2 target_kl and multiplied by 1.5 after one below target_kl / 2: if
    the target ended the epochs too, the KL would rarely reach twice the target, and the rate would rarely fall.

    With kl_direction = new_old, KL(π_θ‖π_old) takes the place of KL(π_old‖π_θ).
    """

    learning_rate: Positive = 3e-4
    """Adam's step size."""
    penalty: Literal["clip", "kl"] = "clip"
    """clip: clipped probability ratio; kl: adaptive KL penalty."""
    clip_eps: Fraction = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    epochs: Count = 10
    """Passes over the batch."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    recompute_advantages: bool = False
    """Estimate advantages before each pass with the critic fitted so far; epochs has to divide critic_epochs."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    target_kl: Positive | None = None
    """Mean KL in nats. clip: stop the epochs above it (none: never); kl: λ is adapted to reach it (none: 0.01)."""
    kl_direction: KLDirection = "old_new"
    """The KL that is penalised or compared with target_kl. old_new: KL(π_old‖π_new); new_old: KL(π_new‖π_old)."""
    kl_coef: Positive = 1.0
    """λ of the KL penalty on the first batch."""
    kl_coef_range: tuple[Positive, Positive] = (1e-3, 1e3)
    """Minimum and maximum λ."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run; kl: it is raised or lowered to reach target_kl."""
    clip_schedule: Schedule = "constant"
    """constant; linear or cosine: clip_eps decreases to 0 over the run."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _consistent(self) -> PPO:
        smallest, largest = self.kl_coef_range
        if smallest > largest:
            raise ValueError(f"kl_coef_range = {smallest:g} {largest:g} is not a range: give the smaller number first")
        if self.learning_rate_schedule == "kl" and self.penalty == "kl":
            raise ValueError(
                "learning_rate_schedule = kl and penalty = kl would both be adapted to one KL: choose penalty = clip, "
                "or another schedule"
            )
        require_target_kl(self)
        return self

    @property
    def traits(self) -> Traits:
        return Traits(
            title="PPO",
            kl=KLLimit(self._target_kl, direction=self.kl_direction),
            num_minibatches=self.num_minibatches,
            advantage_epochs=self.epochs if self.recompute_advantages else 0,
            metrics={
                "clip_fraction": Metric(
                    "Clip fraction", "fraction of samples whose ratio ended outside the clip range"
                ),
                "epochs_done": EPOCHS_DONE,
                "multiplier": Metric("Multiplier", "λ, the adapted penalty coefficient of the KL (penalty = kl)"),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            }
            | schedule_metrics(self),
            anneals=anneals(self),
            fixed={"kl_coef": AT_START},
        )

    @property
    def _target_kl(self) -> float | None:
        """The mean KL aimed at, in nats; None if the clipped surrogate runs all its epochs."""
        return DEFAULT_TARGET_KL if self.target_kl is None and self.penalty == "kl" else self.target_kl

    def init(self, policy: PyTree) -> PPOState:
        """λ = kl_coef, clipped to `kl_coef_range`, and Adam's moments before the first step.

        policy: the one that the first step will get.
        """
        theta = flatten(policy).theta
        smallest, largest = self.kl_coef_range
        first = jnp.clip(jnp.asarray(self.kl_coef, theta.dtype), smallest, largest)
        return PPOState(first, self._optimizer.init(theta))

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: PPOState, batch: Batch
    ) -> tuple[PyTree, PPOState, UpdateInfo]:
        """All epochs on one batch: (policy, state, info).

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: clip_fraction, epochs_done, grad_norm of the last minibatch, before clipping; with penalty = kl
        also multiplier, the λ that was used; and what has a schedule. Raises ValueError if `num_minibatches` does not
        divide the number of rows.
        """
        require_minibatches(batch.obs, self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)
        by_penalty = self.penalty == "kl"
        now, scheduled = current(self, batch, state.moments)
        target = TargetKL.of(self, policy, batch, self.kl_direction)
        fitted = fit_epochs(
            self._optimizer,
            lambda vector, minibatch: now._objective(policy, rebuild(vector), state.multiplier, minibatch),
            key,
            theta,
            state.moments,
            batch,
            learning_rate=now.learning_rate,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            keep_going=None if by_penalty else target.keep_going,
        )
        new_theta, multiplier = fitted.theta, state.multiplier
        used: dict[str, Any] = {}
        if by_penalty:
            if self.ent_coef == 0:
                new_theta = jnp.where(has_signal(batch), new_theta, theta)
            used["multiplier"] = multiplier
            assert self._target_kl is not None
            multiplier = adapt(multiplier, target.kl(new_theta), self._target_kl, self.kl_coef_range)

        def clip_fraction(new: Distribution) -> Array:
            outside = jnp.abs(jnp.expm1(log_ratio(new, batch))) > now.clip_eps
            return batch.mean(outside.astype(theta.dtype))

        return accept_or_reject(
            policy,
            state,
            rebuild(new_theta),
            PPOState(multiplier, target.adapted(fitted.moments, new_theta)),
            batch,
            kl_direction=self.kl_direction,
            clip_fraction=clip_fraction,
            epochs_done=fitted.epochs,
            grad_norm=fitted.grad_norm,
            **used,
            **scheduled,
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", self.max_grad_norm, rate_factor=self.learning_rate_schedule == "kl")

    def _objective(self, policy: PyTree, new_policy: PyTree, multiplier: Array, batch: Batch) -> Float[Array, ""]:
        """The clipped or penalised surrogate of a policy on the rows of a minibatch, with the entropy bonus."""
        new = action_distribution(new_policy, batch.obs)
        if self.penalty == "kl":
            old = action_distribution(policy, batch.obs)
            gain = penalised_gain(divergence_of(self.kl_direction), multiplier, old, new, batch)
        else:
            gain = self._clipped(new, batch)
        return with_entropy(gain, self.ent_coef, new, batch)

    def _clipped(self, new: Distribution, batch: Batch) -> Float[Array, ""]:
        ratio = jnp.exp(log_ratio(new, batch))
        clipped = jnp.clip(ratio, 1 - self.clip_eps, 1 + self.clip_eps)
        return batch.mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
