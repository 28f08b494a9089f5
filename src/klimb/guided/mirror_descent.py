"""Mirror-descent guided policy search: controllers improve on the policy within a KL, and are projected onto it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from klimb.guided.along_paths import Following, path_traits
from klimb.guided.kl_constrained_lqr import solve_constrained
from klimb.guided.local_models import LocalModels
from klimb.guided.paths import Paths
from klimb.guided.projection import OPTIMIZER
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.rule import Traits
from klimb.policies.parameters import flatten
from klimb.precision import full_precision
from klimb.types import Batch, UpdateInfo

EPSILON_RANGE = 1.0, 10.0
"""Smallest and largest ε, relative to the first. With a smaller one a linear-quadratic task made no progress."""

FACTOR_RANGE = 0.5, 2.0
"""Smallest and largest factor on ε in one iteration. (0.1, 5) was published, for returns with less noise."""


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
    """Guided policy search via approximate mirror descent (Montgomery and Levine 2016).

    model    dynamics and costs along every column of the rollout
    C-step   p ← argmin E_p[cost] subject to mean KL(p‖π_θ) ≤ ε, linear-Gaussian controllers along the columns
    S-step   θ ← argmin mean KL(π_θ‖p) over the states of the rollout
    ε        grows after steps whose realised improvement was near the predicted one; shrinks, down to the first
             ε, after others

    Rewards within the look-ahead are not discounted. The time of an episode's end is taken to be independent of the
    policy, but for what the value says of it.

    models: of dynamics and costs. initial_epsilon: ε at first, positive, in nats per step. epochs: of the projection,
    at least 1. minibatch_size: rows per step of the projection. learning_rate: Adam's. overlap: whether every batch
    after the first was collected by the policy before the given one. The newest batch then tells of the step before
    the last one, whose ε is adapted.
    """

    models: LocalModels = field(default_factory=LocalModels)
    initial_epsilon: float | Array = 0.1
    epochs: int = 20
    minibatch_size: int = 256
    learning_rate: float | Array = 1e-3
    overlap: bool = False

    @property
    def traits(self) -> Traits:
        return path_traits(self.models)

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
        """One C-step and one S-step. `info.extra`: the metrics of `path_traits`.

        key: for the order of the rows. policy: Gaussian. state: of the last step. batch: with a trajectory.

        Raises ConfigError as `LocalModels.problem`.
        """
        problem = self.models.problem(policy, batch)
        reward, reward_se = _mean_reward(problem.paths)
        epsilon = self._adapted(state, reward, reward_se)
        controllers = solve_constrained(problem.model, problem.policy, epsilon)
        followed = Following(self.epochs, self.minibatch_size, self.learning_rate).step(
            key, policy, problem, controllers, state.moments
        )
        earlier = Promise(state.epsilon, state.promised, state.begun) if self.overlap else ()
        new_state = MirrorState(
            epsilon, followed.moments, reward, reward_se, followed.promised, jnp.bool_(True), earlier
        )
        improved, new_state, info = accept_or_reject(policy, state, followed.policy, new_state, batch, epsilon=epsilon)
        return improved, new_state, info.with_metrics(**followed.metrics)

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
