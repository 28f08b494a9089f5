"""Dual descent: the surrogate with a divergence penalty whose multiplier is adapted to keep the divergence at ε."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import Field

from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.dual import dual_ascent
from klimb.improve.minibatches import require_minibatches
from klimb.improve.objectives import Divergence, divergence, has_signal, penalised_gain, with_entropy
from klimb.improve.optimizer import FitResult, Optimizer, fit_epochs
from klimb.improve.rule import AT_START, KLDirection, KLLimit, Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.improve.target_kl import TargetKL, epochs_done, target_metrics
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


class DualState(NamedTuple):
    """What is kept from one iteration to the next: λ and Adam's moments."""

    multiplier: Float[Array, ""]
    moments: optax.OptState


@checked
class DualDescent:
    """Maximises the surrogate Ā(θ') subject to D(θ', θ) ≤ ε, through the Lagrangian.

    Alternates θ' ← a few epochs of ascent on Ā(θ') − λ (D(θ', θ) − ε), which need not reach the maximum, with
    λ ← max(0, λ + α (D − ε)). λ is kept from one iteration to the next, so D is above ε in some iterations and
    below it in others; on average it settles at ε if the constraint is active. With an entropy bonus the objective is
    Ā + ent_coef · entropy. The learning rate has no schedule by KL: λ is adapted to the divergence already.
    """

    epsilon: Positive = 0.01
    """ε: the limit on the mean divergence (nats for KL; 0 to 1 for total variation)."""
    divergence: Divergence = "kl_old_new"
    """D: kl_old_new is KL(π_old‖π_new), kl_new_old is KL(π_new‖π_old), tv is the total variation."""
    initial_multiplier: NonNegative = 1.0
    """λ before the first update."""
    multiplier_learning_rate: Positive = 20.0
    """α: step size of λ per unit of the constraint violation D − ε."""
    log_multiplier: bool = False
    """Update log λ instead of λ: multiplicative steps; λ never reaches 0."""
    max_multiplier: Positive = 1e4
    """Maximum λ."""
    rounds: Count = 1
    """Alternations per batch; each inner ascent starts where the last one ended."""
    learning_rate: Positive = 1e-3
    """Adam's step size for the inner ascent."""
    epochs: Count = 10
    """Maximum number of passes over the batch per inner ascent."""
    max_overshoot: Annotated[float, Field(ge=1)] = 2.0
    """Stop the inner ascent once D > max_overshoot · ε; protects against a single bad batch."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient; none does not clip."""
    target_kl: Positive | None = None
    """Mean KL in nats above which an inner ascent stops too (none: never); KL(π_old‖π_new) if D is tv."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run."""
    epsilon_schedule: Schedule = "constant"
    """constant; linear or cosine: epsilon decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in units of the advantage per nat."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="Dual descent",
            kl=KLLimit(None if self.divergence == "tv" else self.epsilon, direction=self._direction),
            num_minibatches=self.num_minibatches,
            metrics={
                "multiplier": Metric("Multiplier", "λ, the penalty coefficient, found by dual ascent"),
                "constraint_violation": Metric("Constraint violation", "D − ε of the policy returned"),
                "complementary_slackness": Metric(
                    "Complementary slackness", "λ (D − ε) of the policy returned; 0 at a solution"
                ),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            }
            | target_metrics(self)
            | schedule_metrics(self),
            anneals=anneals(self),
            fixed={
                "initial_multiplier": AT_START,
                "divergence": "the multiplier λ has been found for this one",
                "log_multiplier": "λ may be 0, and steps of log λ never leave 0",
            },
        )

    def init(self, policy: PyTree) -> DualState:
        """λ = initial_multiplier, and Adam's moments before the first step.

        policy: the one that the first step will get.
        """
        theta = flatten(policy).theta
        first = jnp.minimum(self.initial_multiplier, self.max_multiplier)
        return DualState(first.astype(theta.dtype), self._optimizer.init(theta))

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: DualState, batch: Batch
    ) -> tuple[PyTree, DualState, UpdateInfo]:
        """All rounds on one batch: (policy, state, info).

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: multiplier (the λ of the last inner ascent), constraint_violation D − ε and
        complementary_slackness λ (D − ε) of the policy returned (0 at a solution), grad_norm of the last minibatch,
        before clipping; with a target_kl epochs_done of the last inner ascent; and what has a schedule. Raises
        ValueError if `num_minibatches` does not divide the number of rows.
        """
        require_minibatches(batch.obs, self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)
        old = action_distribution(policy, batch.obs)
        now, scheduled = current(self, batch)
        target = TargetKL.of(self, policy, batch, self._direction)

        def distribution_at(vector: Array) -> Distribution:
            return action_distribution(rebuild(vector), batch.obs)

        def violation(new: Distribution) -> Array:
            return batch.mean(divergence(self.divergence, old, new, batch)) - now.epsilon

        def keep_going(vector: Array) -> Array:
            near = violation(distribution_at(vector)) <= (self.max_overshoot - 1) * now.epsilon
            return near if target.keep_going is None else near & target.keep_going(vector)

        def alternate(carry: tuple[Array, DualState], key: PRNGKeyArray) -> tuple[tuple[Array, DualState], Array]:
            """One inner ascent and one update of λ. carry: (θ', state). key: for the order of the rows."""
            vector, before = carry
            fitted = now._ascend(key, policy, vector, before, batch, keep_going)
            multiplier = dual_ascent(
                before.multiplier,
                violation(distribution_at(fitted.theta)),
                learning_rate=self.multiplier_learning_rate,
                log_space=self.log_multiplier,
                largest=self.max_multiplier,
            )
            used = jnp.stack([before.multiplier, fitted.grad_norm, fitted.epochs.astype(multiplier.dtype)])
            return (fitted.theta, DualState(multiplier, fitted.moments)), used

        (new_theta, new_state), rounds = jax.lax.scan(alternate, (theta, state), jax.random.split(key, self.rounds))
        multiplier, grad_norm, epochs = rounds[-1]
        if self.ent_coef == 0:
            new_theta = jnp.where(has_signal(batch), new_theta, theta)
        return accept_or_reject(
            policy,
            state,
            rebuild(new_theta),
            new_state,
            batch,
            kl_direction=self._direction,
            multiplier=multiplier,
            constraint_violation=violation,
            complementary_slackness=lambda new: multiplier * violation(new),
            grad_norm=grad_norm,
            **epochs_done(self, epochs),
            **scheduled,
        )

    def _ascend(
        self,
        key: PRNGKeyArray,
        policy: PyTree,
        theta: Array,
        state: DualState,
        batch: Batch,
        keep_going: Callable[[Array], Array],
    ) -> FitResult:
        """One inner ascent on the Lagrangian from θ' = theta. key: for the order of the rows. policy: the old one."""
        rebuild = flatten(policy).rebuild

        def lagrangian(vector: Array, minibatch: Batch) -> Array:
            """The penalised gain at θ' = vector on the rows of a minibatch."""
            before, after = (action_distribution(p, minibatch.obs) for p in (policy, rebuild(vector)))
            gain = penalised_gain(self.divergence, state.multiplier, before, after, minibatch)
            return with_entropy(gain, self.ent_coef, after, minibatch)

        return fit_epochs(
            self._optimizer,
            lagrangian,
            key,
            theta,
            state.moments,
            batch,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            keep_going=keep_going,
        )

    @property
    def _direction(self) -> KLDirection:
        return "new_old" if self.divergence == "kl_new_old" else "old_new"

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", self.max_grad_norm)
