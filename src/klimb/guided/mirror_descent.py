"""Mirror-descent guided policy search: controllers improve on the policy within a KL, and are projected onto it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from klimb.errors import ConfigError
from klimb.guided.fitting import Paths, QuadraticModel, expand_along, linearise_policy
from klimb.guided.kl_constrained_lqr import KLConstrainedControllers, solve_constrained
from klimb.guided.planning.small_matrices import LARGEST
from klimb.guided.projection import OPTIMIZER, Targets, project, require_gaussian
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.rule import Traits
from klimb.policies.distributions import DiagGaussian
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.precision import full_precision
from klimb.types import Batch, Metric, Rollout, UpdateInfo

EPSILON_RANGE = 1.0, 10.0
"""Smallest and largest ε, relative to the first. With a smaller one a linear-quadratic task made no progress."""

FACTOR_RANGE = 0.5, 2.0
"""Smallest and largest factor on ε in one iteration. (0.1, 5) was published, for returns with less noise."""

MAX_COORDINATES = 44
"""Largest D + A, whose products, about a thousand, are fitted."""


MIRROR_TRAITS = Traits(
    title="Guided policy search",
    uses_critic=False,
    binds=True,
    metrics={
        "epsilon": Metric("ε", "limit on KL(new‖old) of the controllers, nats per step"),
        "local_kl": Metric("KL of the controllers", "mean KL(p‖π_θ), nats per step"),
        "eta": Metric("η", "multiplier of the controllers' KL"),
        "dual_status": Metric(
            "Status of the search for η", "0 within 10 % of ε, 1 slack, 2 not positive definite, 3 not converged"
        ),
        "local_improvement": Metric("Predicted gain of the controllers", "by the fitted model, in reward per step"),
        "promised_improvement": Metric("Predicted gain of the policy", "by the fitted model, in reward per step"),
        "projection_kl": Metric("KL after the projection", "mean KL(π_θ‖p), nats per step"),
        "model_r2": Metric("R² of the dynamics", "share of the variance of the changes of state that is explained"),
        "reward_r2": Metric("R² of the reward", "share of the variance of the reward that is explained"),
    },
)


class Promise(NamedTuple):
    """What a step predicted. epsilon: its ε. improvement: in reward per step. made: whether there was such a step."""

    epsilon: Float[Array, ""]
    improvement: Float[Array, ""]
    made: Bool[Array, ""]


class MirrorState(NamedTuple):
    """The state between two iterations. Rewards are means per step.

    epsilon: of the last step. moments: Adam's. reward, reward_se: of the last batch, with its standard error.
    promised: the predicted improvement of its step. begun: whether there has been a step.
    earlier: the promise of the step before the last one, where batches are one policy old; else ().
    """

    epsilon: Float[Array, ""]
    moments: optax.OptState
    reward: Float[Array, ""]
    reward_se: Float[Array, ""]
    promised: Float[Array, ""]
    begun: Bool[Array, ""]
    earlier: Promise | tuple[()] = ()


@dataclass(frozen=True)
class MirrorDescent:
    """Guided policy search via approximate mirror descent (Montgomery and Levine 2016), for unknown dynamics.

    fit      a quadratic model of dynamics and reward to all rows, expanded along every column of the rollout
    C-step   p ← argmin E_p[cost] subject to mean KL(p‖π_θ) ≤ ε, linear-Gaussian controllers along the columns
    S-step   θ ← argmin mean KL(π_θ‖p) over the states of the rollout
    ε        grows after steps whose realised improvement was near the predicted one; shrinks, down to the first
             ε, after others

    Advantages and the critic are not used, and nothing is discounted. The value of what follows the rollout or an
    episode's end is taken to be 0, and the time of an episode's end to be independent of the policy.

    initial_epsilon: ε at first, positive, in nats per step. epochs: of the projection, at least 1. minibatch_size: rows
    per step of the projection. learning_rate: Adam's. overlap: whether every batch after the first was collected by the
    policy before the given one. The newest batch then tells of the step before the last one, whose ε is adapted.
    """

    initial_epsilon: float | Array = 0.1
    epochs: int = 20
    minibatch_size: int = 256
    learning_rate: float | Array = 1e-3
    overlap: bool = False

    @property
    def traits(self) -> Traits:
        return replace(MIRROR_TRAITS, binds=False)

    def init(self, policy: PyTree) -> MirrorState:
        """The state before the first step. policy: Gaussian."""
        theta = flatten(policy).theta
        epsilon, zero, no = jnp.asarray(self.initial_epsilon, theta.dtype), jnp.zeros((), theta.dtype), jnp.bool_(False)
        earlier = Promise(epsilon, zero, no) if self.overlap else ()
        return MirrorState(epsilon, OPTIMIZER.init(theta), zero, zero, zero, no, earlier)

    @full_precision
    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: MirrorState, batch: Batch
    ) -> tuple[PyTree, MirrorState, UpdateInfo]:
        """One C-step and one S-step. `info.extra`: the metrics of `MIRROR_TRAITS`.

        key: for the order of the rows. policy: Gaussian. state: of the last step. batch: with a trajectory.

        Raises ConfigError for a batch without a trajectory, policies that are not Gaussian, and too many coordinates.
        """
        rollout = _require_usable(policy, batch)
        paths = Paths.of(rollout)
        reward, reward_se = _mean_reward(paths)
        epsilon = self._adapted(state, reward, reward_se)
        model = QuadraticModel.fit(paths)
        controllers = solve_constrained(expand_along(paths, model), linearise_policy(policy, paths), epsilon)
        targets = _targets(policy, controllers, paths)
        projected = project(
            key,
            policy,
            targets,
            state.moments,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatch_size=self.minibatch_size,
        )
        predicted = controllers.previous_cost - controllers.cost_of(*_action_change(policy, projected.policy, paths))
        earlier = Promise(state.epsilon, state.promised, state.begun) if self.overlap else ()
        new_state = MirrorState(epsilon, projected.moments, reward, reward_se, predicted, jnp.bool_(True), earlier)
        return accept_or_reject(
            policy,
            state,
            projected.policy,
            new_state,
            batch,
            epsilon=epsilon,
            local_kl=controllers.kl,
            eta=controllers.eta,
            dual_status=controllers.status,
            local_improvement=controllers.previous_cost - controllers.predicted_cost,
            promised_improvement=predicted,
            projection_kl=projected.kl,
            model_r2=model.dynamics_r2,
            reward_r2=model.r2[-1],
        )

    def _adapted(self, state: MirrorState, reward: Array, reward_se: Array) -> Float[Array, ""]:
        """ε · predicted / (2 (predicted − realised)), within limits: optimal if the prediction error grows like ε².

        All three are of the step that lies between the policies of the last two batches.
        The error is taken to be at least its own standard error. So ε also shrinks when the gains are smaller than the
        noise of the batches, which smaller steps average out.
        """
        promise = state.earlier or Promise(state.epsilon, state.promised, state.begun)
        error = promise.improvement - (reward - state.reward)
        error = jnp.maximum(error, jnp.hypot(reward_se, state.reward_se))
        factor = jnp.where(error > 0, 0.5 * promise.improvement / jnp.where(error > 0, error, 1), jnp.inf)
        smallest, largest = (bound * self.initial_epsilon for bound in EPSILON_RANGE)
        adapted = jnp.clip(promise.epsilon * jnp.clip(factor, *FACTOR_RANGE), smallest, largest)
        return jnp.where(promise.made, adapted, state.epsilon).astype(state.epsilon.dtype)


def _mean_reward(paths: Paths) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean reward per step, and its standard error, 0 for one column: columns of the rollout are independent."""
    steps = jnp.sum(paths.valid, axis=1)
    total = jnp.maximum(jnp.sum(steps), 1)
    mean = jnp.sum(paths.reward) / total
    deviation = jnp.sum(paths.reward, axis=1) - mean * steps
    columns = len(steps)
    return mean, jnp.sqrt(jnp.sum(jnp.square(deviation)) * columns / max(columns - 1, 1)) / total


def _targets(policy: PyTree, controllers: KLConstrainedControllers, paths: Paths) -> Targets:
    """p at the states of the paths: the policy's mean action there plus the controllers' change of it.

    With the linearised policy's mean instead, the S-step would flatten the policy even where there is nothing to gain.
    """
    columns = (paths.state, controllers.actions, controllers.cholesky, paths.valid)
    obs, change, lower, valid = [x.reshape(-1, *x.shape[2:]) for x in columns]
    before = action_distribution(policy, obs)
    assert isinstance(before, DiagGaussian)
    return Targets.of(obs, before.mean + change, lower, valid.astype(obs.dtype))


def _action_change(old: PyTree, new: PyTree, paths: Paths) -> tuple[Float[Array, "N T A"], Float[Array, "N T A A"]]:
    """The changes of the mean actions and of the covariances in the states of the paths."""
    flat = paths.state.reshape(-1, paths.state.shape[-1])
    before, after = action_distribution(old, flat), action_distribution(new, flat)
    assert isinstance(before, DiagGaussian)
    assert isinstance(after, DiagGaussian)
    variance = jnp.exp(2 * after.log_std) - jnp.exp(2 * before.log_std)
    shape = paths.action.shape
    return (after.mean - before.mean).reshape(shape), jax.vmap(jnp.diag)(variance).reshape(*shape, shape[-1])


def _require_usable(policy: PyTree, batch: Batch) -> Rollout:
    if batch.trajectory is None:
        raise ConfigError("guided policy search fits a model to rollouts, and this batch has none (trajectory=None)")
    require_gaussian(policy, batch.obs[0])
    states, actions = batch.obs.shape[1:], batch.action.shape[-1]
    if len(states) != 1 or actions > LARGEST or states[0] + actions > MAX_COORDINATES:
        raise ConfigError(
            f"guided policy search fits products of at most {MAX_COORDINATES} coordinates, {LARGEST} of them actions, "
            f"and here observations are {list(states)} and actions [{actions}]"
        )
    return batch.trajectory.rollout
