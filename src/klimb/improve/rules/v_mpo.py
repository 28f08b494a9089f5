"""V-MPO: weighted likelihood of the actions with the largest advantages; an adapted multiplier limits the KL."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import Field

from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.dual import dual_ascent
from klimb.improve.rule import AT_START, KLLimit, Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.improve.soft_improvement import WeightedFit, best_rows, soft_weights, solve_temperature, under_policy
from klimb.improve.target_kl import epochs_done, target_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


class VMPOState(NamedTuple):
    """What is kept from one iteration to the next: the multiplier α and Adam's moments."""

    multiplier: Float[Array, ""]
    moments: optax.OptState


@checked
class VMPO:
    """V-MPO (Song et al. 2020): maximise Σ ψ log π_θ(a|s) subject to mean KL(π‖π_θ) ≤ epsilon.

    ψ ∝ e^{Â/η} on the samples with the largest advantages and 0 on the others; η minimises the dual of a limit on the
    KL between ψ and equal weights. The limit on the policy has the multiplier α, which is updated after every batch.
    """

    epsilon_temperature: Positive = 0.1
    """ε_η: limit on the KL between the weights ψ and equal weights, in nats; it determines η."""
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the samples that is used: those with the largest advantages."""
    epsilon: Positive = 0.01
    """Limit on the mean KL(π_old‖π_new), in nats; α is adapted to keep it."""
    initial_multiplier: Positive = 1.0
    """α before the first update."""
    multiplier_learning_rate: Positive = 20.0
    """Step size of log α per nat of the violation KL − epsilon."""
    max_multiplier: Positive = 1e4
    """Maximum α."""
    learning_rate: Positive = 1e-3
    """Adam's step size."""
    epochs: Count = 10
    """Passes over the batch."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    target_kl: Positive | None = None
    """Mean KL(π_old‖π_new) in nats above which the passes stop (none: never)."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run."""
    epsilon_schedule: Schedule = "constant"
    """constant; linear or cosine: epsilon decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in nats of weighted log-likelihood per nat of entropy."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @property
    def traits(self) -> Traits:
        metrics = {
            "temperature": Metric("Temperature", "η, the minimiser of the dual, in units of the advantage per nat"),
            "weight_kl": Metric(
                "KL of the weights", "KL between the weights and equal weights on the samples used, in nats"
            ),
            "multiplier": Metric("Multiplier", "α, the penalty coefficient of KL(π_old‖π_new) in the fit"),
            "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
        }
        metrics |= target_metrics(self) | schedule_metrics(self)
        return Traits(
            "V-MPO",
            KLLimit(self.epsilon),
            metrics,
            num_minibatches=self.num_minibatches,
            anneals=anneals(self),
            fixed={"initial_multiplier": AT_START},
        )

    def init(self, policy: PyTree) -> VMPOState:
        """α = initial_multiplier, and Adam's moments before the first step.

        policy: the one that the first step will get.
        """
        first = jnp.minimum(self.initial_multiplier, self.max_multiplier)
        return VMPOState(first.astype(flatten(policy).theta.dtype), self._fit.init(policy))

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: VMPOState, batch: Batch
    ) -> tuple[PyTree, VMPOState, UpdateInfo]:
        """All epochs on one batch, and one update of α: (policy, state, info).

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: temperature η, weight_kl, multiplier (the α of the fit), grad_norm of the last minibatch, before
        clipping. Raises ValueError if `num_minibatches` does not divide the number of rows.
        """
        old = action_distribution(policy, batch.obs)
        rows = under_policy(old, batch)
        now, scheduled = current(self, batch)
        used = jnp.where(best_rows(rows.advantage, rows.weight, self.top_fraction), rows.weight, 0)
        temperature = solve_temperature(rows.advantage, used, self.epsilon_temperature)
        soft = soft_weights(rows.advantage, used, temperature)
        # ψ sums to 1 over the rows that are used: as a mean over all rows, its weights have mean 1.
        weight = soft.weight * jnp.sum(rows.weight) / jnp.sum(used)
        fitted = now._fit(key, policy, state.moments, rows, weight, kl_coef=state.multiplier)
        new = flatten(policy).rebuild(fitted.theta)
        multiplier = dual_ascent(
            state.multiplier,
            batch.mean(old.kl_to(action_distribution(new, batch.obs))) - now.epsilon,
            learning_rate=self.multiplier_learning_rate,
            log_space=True,
            largest=self.max_multiplier,
        )
        return accept_or_reject(
            policy,
            state,
            new,
            VMPOState(multiplier, fitted.moments),
            batch,
            old=old,
            temperature=temperature,
            weight_kl=soft.kl,
            multiplier=state.multiplier,
            grad_norm=fitted.grad_norm,
            **epochs_done(self, fitted.epochs),
            **scheduled,
        )

    @property
    def _fit(self) -> WeightedFit:
        return WeightedFit.of(self, "old_new")
