"""Conservative policy iteration: a mixture of the policy and a better one, whose share a lower bound can choose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.estimate.bounds import conservative_step, mixture_bound
from klimb.fields import Count, Fraction, NonNegative, Positive, checked
from klimb.improve.acceptance import accept_or_reject, finite_move, update_info
from klimb.improve.fisher import linearise
from klimb.improve.line_search import backtrack
from klimb.improve.natural_direction import conjugate_gradient
from klimb.improve.optimizer import FitResult
from klimb.improve.rule import Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.improve.soft_improvement import WeightedFit, relative_entropy_terms, soft_weights, under_policy
from klimb.improve.target_kl import epochs_done, target_metrics
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.types import Batch, Metric, Status, UpdateInfo

MAX_BACKTRACKS = 10
"""Halvings of a step of the projection before it is left out."""


@checked
class ConservativePolicyIteration:
    """Conservative policy iteration (Kakade and Langford 2002): π ← (1 − α) π + α π'.

    π' is the penalised optimum π e^{Â/λ}/Z, fitted by weighted likelihood; for λ → 0 it is greedy. α is fixed, or
    maximises the lower bound on the improvement of J (`mixture = None`). A mixture of two networks is not a network
    of the same form: the new policy is the π_θ that minimises KL((1 − α) π + α π' ‖ π_θ) over the states of the batch.
    Softmax tables represent the mixture exactly.
    """

    mixture: Fraction | None = 0.5
    """α: weight of the better policy; none maximises the lower bound, which gives at most 0.41 (1 − γ)/γ."""
    temperature: Positive = 1.0
    """λ of the better policy, in units of the advantage; for λ → 0 that policy is greedy."""
    learning_rate: Positive = 1e-3
    """Adam's step size in the fit of the better policy."""
    epochs: Count = 10
    """Passes over the batch in the fit of the better policy."""
    num_minibatches: Count = 4
    """Minibatches per pass; has to divide num_steps × num_envs."""
    max_grad_norm: Positive | None = 0.5
    """Maximum global norm of the gradient in the fit of the better policy; none does not clip."""
    projection_steps: Count = 3
    """Number of natural gradient steps towards the mixture."""
    damping: NonNegative = 1e-2
    """η added to the diagonal of the Fisher matrix in the projection."""
    cg_iterations: Count = 10
    """Maximum number of Fisher-vector products per solve."""
    target_kl: Positive | None = None
    """Mean KL(π‖π') in nats above which the fit of the better policy stops (none: never)."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: it decreases to 0 over the run."""
    ent_coef: NonNegative = 0.0
    """Coefficient of the entropy bonus, in nats of weighted log-likelihood per nat of entropy."""
    ent_schedule: Schedule = "constant"
    """constant; linear or cosine: ent_coef decreases to 0 over the run."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="Conservative policy iteration",
            num_minibatches=self.num_minibatches,
            metrics={
                "mixture": Metric("Share of the better policy", "α of the mixture (1 − α) π + α π'; 0 if rejected"),
                "greedy_gain": Metric(
                    "Gain of the better policy", "mean advantage of π' over the states of π, in reward per step"
                ),
                "mixture_bound": Metric(
                    "Bound of the mixture",
                    "Kakade and Langford's lower bound on its improvement, in reward per step, with the largest "
                    "advantage of the batch",
                ),
                "projection_kl": Metric("KL after the projection", "mean KL(mixture‖π_θ), sampled, in nats"),
            }
            | target_metrics(self)
            | schedule_metrics(self),
            anneals=anneals(self),
        )

    def init(self, policy: PyTree) -> tuple[()]:
        """(): there is no state.

        policy: not used.
        """
        return ()

    @full_precision
    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: tuple[()], batch: Batch
    ) -> tuple[PyTree, tuple[()], UpdateInfo]:
        """One mixture and its projection: (policy, state, info). Rejected where the better policy is not better.

        key: for the order of the rows. policy, state, batch: as in `Rule.step`.

        `info.extra`: mixture α, greedy_gain 𝔸, mixture_bound, projection_kl. Raises ValueError if `num_minibatches`
        does not divide the number of rows, or if the batch does not know its γ.
        """
        if batch.gamma is None:
            raise ValueError("conservative policy iteration needs the discount: give the batch its gamma")
        old = action_distribution(policy, batch.obs)
        rows = under_policy(old, batch)
        now, scheduled = current(self, batch)
        fitted = now._fit_better(key, policy, rows)
        better = action_distribution(flatten(policy).rebuild(fitted.theta), batch.obs)
        measured = update_info(old, better, batch, Status.ACCEPTED)
        largest = jnp.max(jnp.where(batch.weight > 0, jnp.abs(batch.advantage), 0))
        # |E_{a∼π'} A| = |Σ_a (π' − π) A| in every state.
        worst = largest * jnp.minimum(1, 2 * measured.tv_max)
        gain = measured.surrogate_gain
        share = conservative_step(gain, worst, batch.gamma) if self.mixture is None else jnp.asarray(self.mixture)
        share = jnp.where(gain > 0, share, 0).astype(gain.dtype)
        status = jnp.where(share > 0, Status.ACCEPTED, Status.NO_IMPROVEMENT)
        # mixture/π − 1 of every row's action.
        log_better = better.log_prob(batch.action) - old.log_prob(batch.action)
        excess = share * jnp.expm1(jnp.where(batch.weight > 0, log_better, 0))
        theta, rebuild = flatten(policy)
        projected = self._project(policy, rows, share, excess)
        return accept_or_reject(
            policy,
            state,
            rebuild(jnp.where(share > 0, projected, theta)),
            state,
            batch,
            status=jnp.where(finite_move(old, better, batch), status, Status.NONFINITE),
            old=old,
            mixture=share,
            greedy_gain=gain * batch.advantage_scale,
            mixture_bound=_per_step_bound(gain, worst, share, batch.gamma) * batch.advantage_scale,
            projection_kl=lambda new: _kl_from_mixture(old, new, excess, rows),
            **epochs_done(self, fitted.epochs),
            **scheduled,
        )

    def _fit_better(self, key: PRNGKeyArray, policy: PyTree, rows: Batch) -> FitResult:
        """The fit of π'. key: for the order of the rows. policy: π, whose expectations the rows' means are."""
        fit = WeightedFit.of(self, "old_new")
        weight = soft_weights(rows.advantage, rows.weight, self.temperature).weight
        return fit(key, policy, fit.init(policy), rows, weight)

    def _project(
        self, policy: PyTree, rows: Batch, share: Float[Array, ""], excess: Float[Array, " B"]
    ) -> Float[Array, " P"]:
        """θ that minimises mean KL(mixture‖π_θ) by Gauss-Newton steps, from θ of π. A step that does not is shortened.

        Up to a constant it is KL(π‖π_θ) − E_π[(mixture/π − 1) log π_θ]. The first term, of which nothing is sampled but
        states, keeps the noise of the actions out of what a small share changes.

        policy: π. rows: their means are expectations under π. share: α. excess: mixture/π − 1 of every row.
        """
        theta, rebuild = flatten(policy)
        old = action_distribution(policy, rows.obs)

        def at(theta: Array) -> Distribution:
            return action_distribution(rebuild(theta), rows.obs)

        def newton(theta: Array, _: None) -> tuple[Array, None]:
            """theta: of the step before."""
            linear = linearise(at, theta, rows.weight)
            current = linear.distribution

            def gain_and_kl(new: Distribution) -> tuple[Array, Array]:
                """What KL(mixture‖π_θ) falls by from the step before, and KL(π‖π_θ)."""
                kl = rows.mean(old.kl_to(new))
                gain = rows.mean(excess * (new.log_prob(rows.action) - current.log_prob(rows.action)))
                return gain - (kl - rows.mean(old.kl_to(current))), kl

            gradient = linear.pull_back(jax.grad(lambda new: gain_and_kl(new)[0])(current))
            solve = conjugate_gradient(
                lambda v: linear.product(v) + self.damping * v, gradient, iterations=self.cg_iterations, tolerance=1e-10
            )
            result = backtrack(
                lambda vector: gain_and_kl(at(vector)),
                theta,
                solve.x,
                # KL(π‖mixture) is at most this in every state.
                max_kl=-jnp.log1p(-share),
                factor=0.5,
                max_backtracks=MAX_BACKTRACKS,
            )
            return jnp.where(result.status == Status.ACCEPTED, result.theta, theta), None

        return jax.lax.scan(newton, theta, None, length=self.projection_steps)[0]


def _per_step_bound(gain: Array, worst: Array, share: Array, gamma: Array | float) -> Float[Array, ""]:
    """(1 − γ) times `mixture_bound`, a mean over steps; −∞ for γ = 1, where there is no bound, and 0 without a step."""
    discounted = jnp.asarray(gamma) < 1
    below = jnp.where(discounted, gamma, 0.5)
    bound = (1 - below) * mixture_bound(gain, worst, share, below)
    return jnp.where(share > 0, jnp.where(discounted, bound, -jnp.inf), 0).astype(gain.dtype)


def _kl_from_mixture(old: Distribution, new: Distribution, excess: Array, rows: Batch) -> Float[Array, ""]:
    """mean KL(mixture‖π_θ) from the rows: the mean of u log(u/q) − u + q with u = mixture/π and q = π_θ/π."""
    log_q = new.log_prob(rows.action) - old.log_prob(rows.action)
    log_u = jnp.log1p(excess)
    return rows.mean(jnp.exp(log_q) * relative_entropy_terms(log_u - log_q))
