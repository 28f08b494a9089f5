"""The penalised optimum π e^{A/λ}/Z on a batch: weights of the rows, their temperature, weighted maximum likelihood.

max over π' of E_{a∼π'}[A] − λ KL(π'‖π) is reached at π'(a|s) = π(a|s) e^{A(s,a)/λ} / Z. A sampled row has one action,
so π' is known by the weight of the row alone, and a parametrised policy is fitted to it by weighted likelihood.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from klimb.improve.divergences import kl_divergence
from klimb.improve.minibatches import require_minibatches
from klimb.improve.objectives import has_signal, log_likelihood, log_ratio, with_entropy
from klimb.improve.optimizer import FitResult, Optimizer, fit_epochs
from klimb.improve.rule import KLDirection
from klimb.improve.schedules import LearningRateSchedule
from klimb.improve.target_kl import TargetKL
from klimb.policies.closed_forms import expm1_minus
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, weighted_mean

BISECTIONS = 50
"""Halvings of the interval of log λ: to rounding in single precision, to 1e-13 in double."""
SMALLEST, LARGEST = 1e-3, 1e6
"""Temperatures that are tried, in units of the spread of the advantages."""


class SoftWeights(NamedTuple):
    """What π e^{A/λ}/Z makes of the rows of a batch.

    weight: e^{A/λ}/Z, with mean 1. log_partition: log Z = log mean e^{A/λ}.
    kl: KL of the weighted rows from the rows as they are, mean of w log w, in nats.
    """

    weight: Float[Array, " B"]
    log_partition: Float[Array, ""]
    kl: Float[Array, ""]


def under_policy(old: Distribution, batch: Batch) -> Batch:
    """The batch with the weights w π/π_β: its means are expectations over the policy π, not over the behaviour π_β.

    On the policy's own data they are the batch's weights, to rounding.

    old: π(·|s) of every row. batch: the rows, with their weights w and the log-probs of π_β.
    """
    return eqx.tree_at(lambda b: b.weight, batch, batch.weight * jnp.exp(log_ratio(old, batch)))


def soft_weights(advantage: Float[Array, " B"], count: Float[Array, " B"], temperature: float | Array) -> SoftWeights:
    """e^{A/λ}/Z of every row. Z is one number for all rows: a sampled row does not tell that of its state.

    The KL is then that of the joint distribution of states and actions. By the chain rule it is the KL of the states
    plus the mean KL(π'‖π) over the weighted states, so that it bounds the policy's.

    advantage: A. count: c ≥ 0, how often each row counts: means are Σcx/Σc. temperature: λ > 0, in units of A.
    """
    counted = count > 0
    largest = jnp.max(advantage, where=counted, initial=-jnp.inf)
    # Relative to the largest: exponents are ≤ 0, and log Z of these is not lost beside a large A/λ.
    exponent = jnp.where(counted, advantage - largest, 0) / temperature
    log_partition = jnp.log(weighted_mean(jnp.exp(exponent), count))
    log_weight = jnp.where(counted, exponent - log_partition, 0)
    return SoftWeights(
        jnp.where(counted, jnp.exp(log_weight), 0),
        log_partition + largest / temperature,
        weighted_mean(relative_entropy_terms(log_weight), count),
    )


def solve_temperature(
    advantage: Float[Array, " B"], count: Float[Array, " B"], epsilon: float | Array
) -> Float[Array, ""]:
    """The λ that minimises the dual g(λ) = λε + λ log mean e^{A/λ} over λ > 0: there KL(λ) = ε.

    g is convex and its slope is ε − KL(λ). The KL falls from log(1/share of the best rows) at λ = 0 to 0 at λ = ∞, so
    the root is found by bisection of log λ. Where even the smallest temperature tried, a thousandth of the spread of
    the advantages, keeps the limit, it is returned: the weights are then those of the best rows.

    advantage: A. count: how often each row counts, ≥ 0. epsilon: ε > 0, in nats.
    """
    counted = count > 0
    spread = jnp.max(advantage, where=counted, initial=-jnp.inf) - jnp.min(advantage, where=counted, initial=jnp.inf)
    scale = jnp.where(spread > 0, spread, 1)
    ends = jnp.log(scale * SMALLEST), jnp.log(scale * LARGEST)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """ends: log λ where the KL is above ε, and where it is not."""
        middle = (ends[0] + ends[1]) / 2
        above = soft_weights(advantage, count, jnp.exp(middle)).kl > epsilon
        return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

    return jnp.exp(jax.lax.fori_loop(0, BISECTIONS, halve, ends)[1])


def best_rows(advantage: Float[Array, " B"], count: Float[Array, " B"], fraction: float | Array) -> Bool[Array, " B"]:
    """The rows of the largest advantages that make up a fraction of all counts; rows equal to the last are in.

    advantage: A. count: how often each row counts, ≥ 0. fraction: in (0, 1].
    """
    order = jnp.argsort(-advantage)
    before = jnp.cumsum(count[order]) - count[order]
    inside = (before < fraction * jnp.sum(count)) & (count[order] > 0)
    worst = jnp.min(advantage[order], where=inside, initial=jnp.inf)
    return (advantage >= worst) & (count > 0)


class WeightedFit(NamedTuple):
    """Ascent on mean w log π_θ(a|s) − kl_coef · mean KL(π‖π_θ) + ent_coef · mean entropy with Adam, from θ of π.

    learning_rate: Adam's step size. epochs: passes over the batch. num_minibatches: per pass.
    max_grad_norm: maximum global norm of the gradient; None does not clip.
    ent_coef: ≥ 0; None for no bonus. The likelihood is in nats, not in units of the advantage, and so is the bonus.
    target_kl, learning_rate_schedule: what a `TargetKL` does. kl_direction: of that KL.
    """

    learning_rate: float | Array
    epochs: int
    num_minibatches: int
    max_grad_norm: float | Array | None
    ent_coef: float | Array | None = None
    target_kl: float | Array | None = None
    kl_direction: KLDirection = "old_new"
    learning_rate_schedule: LearningRateSchedule = "constant"

    @classmethod
    def of(cls, rule: Any, kl_direction: KLDirection) -> WeightedFit:
        """The fit of a rule that has all other fields. rule: with its current values. kl_direction: of target_kl."""
        return cls(
            kl_direction=kl_direction, **{name: getattr(rule, name) for name in cls._fields if name != "kl_direction"}
        )

    @property
    def optimizer(self) -> Optimizer:
        """Adam."""
        return Optimizer.make("adam", self.max_grad_norm, rate_factor=self.learning_rate_schedule == "kl")

    def init(self, policy: PyTree) -> optax.OptState:
        """Adam's moments before the first step.

        policy: the one that the first step will get.
        """
        return self.optimizer.init(flatten(policy).theta)

    def __call__(
        self,
        key: PRNGKeyArray,
        policy: PyTree,
        moments: optax.OptState,
        batch: Batch,
        weight: Float[Array, " B"],
        *,
        kl_coef: float | Array | None = None,
    ) -> FitResult:
        """The fit to the rows of a batch.

        If all advantages are 0 all weights are equal, and the likelihood of the actions as they were sampled would
        still be climbed, which is noise: then θ stays where it is, with or without a bonus.

        key: for the order of the rows. policy: π. moments: Adam's. batch: the rows. weight: w of every row.
        kl_coef: ≥ 0; None for no penalty. Raises ValueError if `num_minibatches` does not divide the number of rows.
        """
        require_minibatches(batch.obs, self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)
        target = TargetKL.of(self, policy, batch, self.kl_direction)

        def objective(vector: Array, minibatch: Batch) -> Array:
            """The penalised likelihood at θ = vector. minibatch: rows with their weights in place of advantages."""
            likelihood = log_likelihood(rebuild(vector), minibatch)
            if self.ent_coef is not None:
                likelihood = with_entropy(
                    likelihood, self.ent_coef, action_distribution(rebuild(vector), minibatch.obs), minibatch
                )
            if kl_coef is None:
                return likelihood
            before, after = (action_distribution(p, minibatch.obs) for p in (policy, rebuild(vector)))
            return likelihood - kl_coef * minibatch.mean(kl_divergence(before, after))

        fitted = fit_epochs(
            self.optimizer,
            objective,
            key,
            theta,
            moments,
            eqx.tree_at(lambda b: b.advantage, batch, weight),
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            keep_going=target.keep_going,
        )
        theta = jnp.where(has_signal(batch), fitted.theta, theta)
        return fitted._replace(theta=theta, moments=target.adapted(fitted.moments, theta))


def relative_entropy_terms(log_weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """w log w − w + 1 ≥ 0, without cancellation near w = 1. Where w has mean 1, its mean is that of w log w.

    log_weight: log w; −∞ for w = 0.
    """
    log_weight = jnp.maximum(log_weight, jnp.finfo(log_weight.dtype).min)  # 0 · ∞ where w = 0
    near = jnp.abs(log_weight) < 0.1
    small, large = jnp.where(near, log_weight, 0), jnp.where(near, 0, log_weight)
    return jnp.where(near, jnp.exp(small) * expm1_minus(-small), jnp.exp(large) * (large - 1) + 1)
