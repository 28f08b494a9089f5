"""REPS: maximum likelihood of the actions with weights e^{A/η}, η chosen so that the weights keep a KL limit."""

from __future__ import annotations

import optax
from jaxtyping import PRNGKeyArray, PyTree
from pydantic import model_validator

from klimb.estimate.importance import effective_sample_size
from klimb.fields import Count, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.rule import KLLimit, Traits
from klimb.improve.schedules import LearningRateSchedule, Schedule, anneals, current, schedule_metrics
from klimb.improve.soft_improvement import WeightedFit, soft_weights, solve_temperature, under_policy
from klimb.improve.target_kl import epochs_done, require_target_kl, target_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, UpdateInfo


@checked
class REPS:
    """Relative entropy policy search (Peters, Mülling and Altün 2010), on advantages.

    The maximum over p' of E_{p'}[Â] subject to KL(p'‖p) ≤ ε, p the distribution of states and actions in the batch, is
    reached at p' ∝ p e^{Â/η}, where η minimises the dual g(η) = ηε + η log E_p[e^{Â/η}]. The dual is solved on every
    batch; the policy is then fitted by maximising mean e^{Â/η} log π_θ(a|s).

    The paper's dual has a second variable, the parameters of a value function that makes p' a stationary distribution
    on average. That constraint is left out here; the critic's value is already subtracted in Â.
    """

    epsilon: Positive = 0.5
    """ε: limit on the KL between the weighted samples and the batch, in nats; it bounds the mean KL(π'‖π) over them."""
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
    epsilon_schedule: Schedule = "constant"
    """constant; linear or cosine: epsilon decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in nats of weighted log-likelihood per nat of entropy."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @model_validator(mode="after")
    def _has_target(self) -> REPS:
        require_target_kl(self)
        return self

    @property
    def traits(self) -> Traits:
        return Traits(
            title="REPS",
            kl=KLLimit(self.target_kl, direction="new_old"),
            num_minibatches=self.num_minibatches,
            metrics={
                "weight_ess": Metric("Effective sample size", "effective sample size of the weights, as a fraction"),
                "temperature": Metric("Temperature", "η, the minimiser of the dual, in units of the advantage per nat"),
                "dual": Metric("Dual", "g(η), the largest gain that the limit allows, in units of the advantage"),
                "weight_kl": Metric("KL of the weights", "KL between the weighted samples and the batch, in nats"),
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

        `info.extra`: temperature η, dual g(η), weight_kl (ε, unless greedy weights keep it), weight_ess, grad_norm of
        the last minibatch, before clipping. Raises ValueError if `num_minibatches` does not divide the number of rows.
        """
        old = action_distribution(policy, batch.obs)
        rows = under_policy(old, batch)
        now, scheduled = current(self, batch, state)
        temperature = solve_temperature(rows.advantage, rows.weight, now.epsilon)
        soft = soft_weights(rows.advantage, rows.weight, temperature)
        fitted = now._fit(key, policy, state, rows, soft.weight)
        return accept_or_reject(
            policy,
            state,
            flatten(policy).rebuild(fitted.theta),
            fitted.moments,
            batch,
            kl_direction=self.traits.kl.direction,
            old=old,
            temperature=temperature,
            dual=temperature * (now.epsilon + soft.log_partition),
            weight_kl=soft.kl,
            weight_ess=effective_sample_size(soft.weight, rows.weight),
            grad_norm=fitted.grad_norm,
            **epochs_done(self, fitted.epochs),
            **scheduled,
        )

    @property
    def _fit(self) -> WeightedFit:
        return WeightedFit.of(self, "new_old")
