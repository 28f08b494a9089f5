"""Mirror-descent guided policy search: controllers that improve on the policy nearby, and the policy after them."""

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
from klimb.types import Batch, Metric, Rollout, UpdateInfo

EPSILON_RANGE = 1.0, 10.0
"""Smallest and largest ε, relative to the first. A smaller one stood still on a linear-quadratic task."""

FACTOR_RANGE = 0.5, 2.0
"""What ε is multiplied by, at least and at most. Published is (0.1, 5), for returns with less noise."""

MOST_COORDINATES = 44
"""D + A up to which their products, about a thousand, are fitted."""


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


class MirrorState(NamedTuple):
    """What survives from one iteration to the next. Rewards are means of a step.

    epsilon: of the last step. moments: Adam's. reward: of the last batch, with its standard error. promised: by how
    much its step was to raise it. begun: whether there has been a step.
    """

    epsilon: Float[Array, ""]
    moments: optax.OptState
    reward: Float[Array, ""]
    reward_se: Float[Array, ""]
    promised: Float[Array, ""]
    begun: Bool[Array, ""]


@dataclass(frozen=True)
class MirrorDescent:
    """Guided policy search via approximate mirror descent (Montgomery and Levine 2016), for unknown dynamics.

    fit      a quadratic model of dynamics and reward to all rows, expanded along every column of the rollout
    C-step   p ← argmin E_p[cost] subject to mean KL(p‖π_θ) ≤ ε, linear-Gaussian controllers along the columns
    S-step   θ ← argmin mean KL(π_θ‖p) over the states of the rollout
    ε        grows after steps that have kept their promise, shrinks to the first one after others

    Advantages and the critic play no part; nothing is discounted. What comes after the rollout or an episode's end
    is taken to be worth nothing, and where an episode ends to be beyond the policy's control.
    """

    initial_epsilon: float | Array = 0.1
    epochs: int = 20
    minibatch_size: int = 256
    learning_rate: float | Array = 1e-3

    @property
    def traits(self) -> Traits:
        return replace(MIRROR_TRAITS, binds=False)

    def init(self, policy: PyTree) -> MirrorState:
        """Nothing predicted yet."""
        theta = flatten(policy).theta
        zero = jnp.zeros((), theta.dtype)
        return MirrorState(
            jnp.asarray(self.initial_epsilon, theta.dtype), OPTIMIZER.init(theta), zero, zero, zero, jnp.bool_(False)
        )

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: MirrorState, batch: Batch
    ) -> tuple[PyTree, MirrorState, UpdateInfo]:
        """One C-step and one S-step.

        `info.extra`: epsilon; local_kl, the mean KL(p‖π_θ); eta; dual_status, a `DualStatus`; what the
        model promises in reward a step, local_improvement of the controllers and promised_improvement of the policy;
        projection_kl, the mean KL(π_θ‖p) after the S-step; model_r2 and reward_r2, the explained share of the
        variance of the changes of state and of the reward.
        """
        rollout = _require_usable(policy, batch)
        paths = Paths.of(rollout)
        reward, reward_se = _mean_reward(paths)
        epsilon = self._adapted(state, reward, reward_se)
        model = QuadraticModel.fit(paths)
        found = solve_constrained(expand_along(paths, model), linearise_policy(policy, paths), epsilon)
        targets = _targets(policy, found, paths)
        projected = project(
            key,
            policy,
            targets,
            state.moments,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatch_size=self.minibatch_size,
        )
        promised = found.previous_cost - found.cost_of(*_moved(policy, projected.policy, paths))
        new_state = MirrorState(epsilon, projected.moments, reward, reward_se, promised, jnp.bool_(True))
        return accept_or_reject(
            policy,
            state,
            projected.policy,
            new_state,
            batch,
            epsilon=epsilon,
            local_kl=found.kl,
            eta=found.eta,
            dual_status=found.status,
            local_improvement=found.previous_cost - found.predicted_cost,
            promised_improvement=promised,
            projection_kl=projected.kl,
            model_r2=model.dynamics_r2,
            reward_r2=model.r2[-1],
        )

    def _adapted(self, state: MirrorState, reward: Array, reward_se: Array) -> Float[Array, ""]:
        """ε · promised / (2 (promised − realised)), within limits: right where a promise errs in proportion to ε².

        An error below its own standard error counts as that much. So ε shrinks, too, once the steps' gains are lost
        in the noise of the batches, where taking the smaller ones averages it out.
        """
        error = state.promised - (reward - state.reward)
        error = jnp.maximum(error, jnp.hypot(reward_se, state.reward_se))
        factor = jnp.where(error > 0, 0.5 * state.promised / jnp.where(error > 0, error, 1), jnp.inf)
        smallest, largest = (bound * self.initial_epsilon for bound in EPSILON_RANGE)
        adapted = jnp.clip(state.epsilon * jnp.clip(factor, *FACTOR_RANGE), smallest, largest)
        return jnp.where(state.begun, adapted, state.epsilon).astype(state.epsilon.dtype)


def _mean_reward(paths: Paths) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of a step, with the standard error from the columns of the rollout; 0 for one column."""
    steps = jnp.sum(paths.valid, axis=1)
    total = jnp.maximum(jnp.sum(steps), 1)
    mean = jnp.sum(paths.reward) / total
    away = jnp.sum(paths.reward, axis=1) - mean * steps
    columns = len(steps)
    return mean, jnp.sqrt(jnp.sum(jnp.square(away)) * columns / max(columns - 1, 1)) / total


def _targets(policy: PyTree, found: KLConstrainedControllers, paths: Paths) -> Targets:
    """p at the states of the paths: the policy's own action there, and the controllers' change of it.

    Not what the linearised policy did there: the S-step would flatten the policy even where nothing is to be gained.
    """
    rows = [x.reshape(-1, *x.shape[2:]) for x in (paths.state, found.actions, found.cholesky, paths.valid)]
    obs, change, lower, valid = rows
    before = action_distribution(policy, obs)
    assert isinstance(before, DiagGaussian)
    return Targets.of(obs, before.mean + change, lower, valid.astype(obs.dtype))


def _moved(old: PyTree, new: PyTree, paths: Paths) -> tuple[Float[Array, "N T A"], Float[Array, "N T A A"]]:
    """By how much the mean actions and the covariances have changed in the states of the paths."""
    flat = paths.state.reshape(-1, paths.state.shape[-1])
    before, after = action_distribution(old, flat), action_distribution(new, flat)
    assert isinstance(before, DiagGaussian)
    assert isinstance(after, DiagGaussian)
    variance = jnp.exp(2 * after.log_std) - jnp.exp(2 * before.log_std)
    shape = paths.action.shape
    return (after.mean - before.mean).reshape(shape), jax.vmap(jnp.diag)(variance).reshape(*shape, shape[-1])


def _require_usable(policy: PyTree, batch: Batch) -> Rollout:
    if batch.trajectory is None:
        raise ConfigError("guided policy search fits a model to rollouts, and this batch has none")
    require_gaussian(policy, batch.obs[0])
    states, actions = batch.obs.shape[1:], batch.action.shape[-1]
    if len(states) != 1 or actions > LARGEST or states[0] + actions > MOST_COORDINATES:
        raise ConfigError(
            f"guided policy search fits products of at most {MOST_COORDINATES} coordinates, {LARGEST} of them actions, "
            f"and here observations are {list(states)} and actions [{actions}]"
        )
    return batch.trajectory.rollout
