"""Fitting the critic: regression of V(s) on the value targets, after the policy's step has used the old values."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.fields import Count, Positive, checked
from klimb.improve.acceptance import all_finite, choose
from klimb.improve.minibatches import require_divisible, shuffled
from klimb.improve.optimizer import Optimizer
from klimb.improve.schedules import Schedule, scheduled
from klimb.policies.networks import Critic
from klimb.policies.parameters import flatten
from klimb.types import Batch, take_rows, weighted_mean


class CriticInfo(NamedTuple):
    """value_loss: mean squared error of the last epoch, in units of the targets' variance."""

    value_loss: Float[Array, ""]


@checked
class CriticFit:
    """Minibatch Adam on mean (V(s) − target)², without clipping of the value."""

    critic_learning_rate: Positive = 1e-3
    """Adam's step size for the critic."""
    critic_epochs: Count = 10
    """Passes over the batch per fit of the critic."""
    critic_num_minibatches: Count = 8
    """Minibatches per pass; has to divide num_steps × num_envs."""
    critic_learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: critic_learning_rate decreases to 0 over the run."""

    def start(self, critic: Critic) -> optax.OptState:
        """Adam's moments before the first fit.

        critic: the one that will be fitted.
        """
        return self._optimizer.init(flatten(critic).theta)

    def fit(
        self, key: PRNGKeyArray, critic: Critic, state: optax.OptState, batch: Batch
    ) -> tuple[Critic, optax.OptState, CriticInfo]:
        """All epochs on one batch: (critic, moments, info). A fit that ends non-finite is discarded as a whole.

        key: for the order of the rows. critic: before the fit. state: Adam's moments. batch: rows with value targets.

        Raises ValueError if `critic_num_minibatches` does not divide the number of rows.
        """
        num_rows = batch.value_target.shape[0]
        learning_rate = scheduled(self.critic_learning_rate, self.critic_learning_rate_schedule, batch.fraction_done)
        require_divisible(num_rows, self.critic_num_minibatches, what="critic_num_minibatches")
        rescaled = rescale(critic, batch)
        theta, rebuild = flatten(rescaled)
        target = (batch.value_target - rescaled.target.mean) / rescaled.target_scale
        # Rows of weight 0 are zeroed: a NaN in one would reach the gradient as 0·NaN.
        counted = batch.weight > 0
        # The part of the encoding that does not depend on θ is computed once.
        inputs = jax.vmap(rescaled.encoder.inputs)(batch.obs)
        inputs = jnp.where(jnp.reshape(counted, counted.shape + (1,) * (inputs.ndim - 1)), inputs, 0)
        rows = (inputs, jnp.where(counted, target, 0), batch.weight)

        def loss(vector: Array, minibatch: tuple[Array, Array, Array]) -> Array:
            """vector: the critic's parameters. minibatch: encoder inputs, scaled targets and weights of its rows."""
            x, y, weight = minibatch
            return weighted_mean(jnp.square(jax.vmap(rebuild(vector).scaled)(x) - y), weight)

        def descend(carry: tuple, order: Array) -> tuple[tuple, Array]:
            """carry: parameters and moments. order: the row numbers of one minibatch."""
            vector, moments = carry
            value, gradient = jax.value_and_grad(loss)(vector, take_rows(rows, order))
            vector, moments = self._optimizer.apply_gradient(vector, -gradient, moments, learning_rate)
            return (vector, moments), value

        def epoch(carry: tuple, key_shuffle: PRNGKeyArray) -> tuple[tuple, Array]:
            """carry: parameters and moments. key_shuffle: for the order of the rows in this pass."""
            carry, losses = jax.lax.scan(descend, carry, shuffled(key_shuffle, num_rows, self.critic_num_minibatches))
            return carry, jnp.mean(losses)

        (theta, moments), losses = jax.lax.scan(epoch, (theta, state), jax.random.split(key, self.critic_epochs))
        # Adam's second moments can overflow while all parameters are finite; those parameters would never move again.
        finite = all_finite((theta, moments))
        return (
            choose(finite, rebuild(theta), critic),
            choose(finite, moments, state),
            CriticInfo(value_loss=losses[-1]),
        )

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", None)


def rescale(critic: Critic, batch: Batch) -> Critic:
    """Update the running scale of the targets with a batch, and change the last layer so that V(s) stays the same.

    A critic that has seen no target keeps its last layer instead: its values then start at the mean of the targets,
    with their scale. Keeping V(s) would multiply the last layer by 1000 for targets of size 10⁻³.

    critic: before the update. batch: rows with value targets; rows of weight 0 are left out.
    """
    old, new = critic.target, critic.target.update(batch.value_target, batch.weight)
    network, fresh = critic.network, critic.target.count == 0
    after = eqx.tree_at(lambda c: c.target, critic, new)
    weight = network.weights[-1] * jnp.where(fresh, 1, critic.target_scale / after.target_scale)
    kept = (network.biases[-1] * critic.target_scale + old.mean - new.mean) / after.target_scale
    bias = jnp.where(fresh, network.biases[-1], kept)
    return eqx.tree_at(lambda c: (c.network.weights[-1], c.network.biases[-1]), after, (weight, bias))
