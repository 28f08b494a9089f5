"""KL penalty: ascent on the surrogate minus a fixed multiple of the mean KL from the old policy."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.minibatches import require_divisible
from klimb.improve.objectives import divergence_of, has_signal, penalised_gain
from klimb.improve.optimizer import Optimizer, annealed, fit_epochs
from klimb.improve.rule import KLDirection, KLLimit, Traits
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


@checked
class KLPenalty:
    """The constrained surrogate with its multiplier λ fixed in advance.

    Maximises Ā(θ') − λ mean KL by a few epochs of minibatch ascent, Ā = mean (π_θ'/π_θ − 1) Â. The KL that results
    depends on λ and on the batch and is not limited; `DualDescent` adapts λ to keep a limit.
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
    """The KL that is penalised. old_new: KL(π_old‖π_new); new_old: KL(π_new‖π_old)."""
    anneal_learning_rate: bool = False
    """Decrease the learning rate linearly to 0 over the run."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="KL penalty",
            kl=KLLimit(direction=self.kl_direction),
            num_minibatches=self.num_minibatches,
            metrics={
                "multiplier": Metric("Multiplier", "λ, the penalty coefficient of the KL"),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            },
            anneals=self.anneal_learning_rate,
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

        `info.extra`: multiplier (λ), grad_norm of the last minibatch, before clipping. Raises ValueError if
        `num_minibatches` does not divide the number of rows.
        """
        require_divisible(batch.log_prob.shape[0], self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)

        def objective(vector: Array, minibatch: Batch) -> Array:
            """The penalised gain at θ' = vector on the rows of a minibatch."""
            old, new = (action_distribution(p, minibatch.obs) for p in (policy, rebuild(vector)))
            return penalised_gain(divergence_of(self.kl_direction), self.kl_coef, old, new, minibatch)

        fitted = fit_epochs(
            self._optimizer,
            objective,
            key,
            theta,
            state,
            batch,
            learning_rate=annealed(self.learning_rate, batch.fraction_done, self.anneal_learning_rate),
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
        )
        return accept_or_reject(
            policy,
            state,
            rebuild(jnp.where(has_signal(batch), fitted.theta, theta)),
            fitted.moments,
            batch,
            kl_direction=self.kl_direction,
            multiplier=self.kl_coef,
            grad_norm=fitted.grad_norm,
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", self.max_grad_norm)
