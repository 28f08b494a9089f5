"""Fitting the critic: regression of V(s) on the value targets, after the policy has used the old values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.improve.acceptance import all_finite, choose
from klimb.improve.ascent import Ascent
from klimb.improve.objectives import flatten
from klimb.minibatches import require_divisible, shuffled, take_rows
from klimb.policies.networks import Critic
from klimb.types import Batch, Rollout, weighted_mean


class CriticInfo(NamedTuple):
    """value_loss: mean squared error on the last epoch, in the targets' standard deviations squared."""

    value_loss: Float[Array, ""]


@dataclass(frozen=True)
class CriticFit:
    """Minibatch Adam on mean (V(s) − target)², no clipping of the value."""

    learning_rate: float
    epochs: int
    num_minibatches: int

    def init(self, critic: Critic) -> optax.OptState:
        """Adam's moments."""
        return self._ascent.init(flatten(critic).theta)

    def step(
        self, key: PRNGKeyArray, critic: Critic, state: optax.OptState, batch: Batch
    ) -> tuple[Critic, optax.OptState, CriticInfo]:
        """All epochs on one batch; a fit that ends non-finite is thrown away whole."""
        num_rows = batch.value_target.shape[0]
        require_divisible(num_rows, self.num_minibatches, what="critic_num_minibatches")
        rescaled = rescale(critic, batch)
        theta, rebuild = flatten(rescaled)
        target = (batch.value_target - rescaled.target.mean) / rescaled.target.scale
        # Rows without weight are emptied: a NaN in one would reach the gradient as 0·NaN.
        counted = batch.weight > 0
        # The normaliser does not change during the fit, so its work is done once.
        obs = jnp.where(counted[:, None], rescaled.normalizer(batch.obs), 0)
        rows = (obs, jnp.where(counted, target, 0), batch.weight)

        def loss(vector: Array, minibatch: tuple[Array, Array, Array]) -> Array:
            x, y, weight = minibatch
            return weighted_mean(jnp.square(rebuild(vector).network(x)[..., 0] - y), weight)

        def descend(carry: tuple, order: Array) -> tuple[tuple, Array]:
            vector, moments = carry
            value, gradient = jax.value_and_grad(loss)(vector, take_rows(rows, order))
            vector, moments = self._ascent.climb(vector, -gradient, moments, self.learning_rate)
            return (vector, moments), value

        def epoch(carry: tuple, key_shuffle: PRNGKeyArray) -> tuple[tuple, Array]:
            carry, losses = jax.lax.scan(descend, carry, shuffled(key_shuffle, num_rows, self.num_minibatches))
            return carry, jnp.mean(losses)

        (theta, moments), losses = jax.lax.scan(epoch, (theta, state), jax.random.split(key, self.epochs))
        # Adam's squares can overflow where no parameter does, and would then hold it still for ever.
        finite = all_finite((theta, moments))
        return (
            choose(finite, rebuild(theta), critic),
            choose(finite, moments, state),
            CriticInfo(value_loss=losses[-1]),
        )

    @property
    def _ascent(self) -> Ascent:
        return Ascent.make("adam", None)


def rescale(critic: Critic, batch: Batch) -> Critic:
    """Take the batch's targets into the running scale, and change the last layer so that V(s) stays what it was.

    A critic that has seen no target has nothing to keep: it starts at their mean, with outputs of their size.
    Else targets of size 10⁻³ would blow its last layer up a thousandfold, for Adam to take down again.
    """
    old, new = critic.target, critic.target.update(batch.value_target, batch.weight)
    network, fresh = critic.network, critic.target.count == 0
    weight = network.weights[-1] * jnp.where(fresh, 1, old.scale / new.scale)
    kept = (network.biases[-1] * old.scale + old.mean - new.mean) / new.scale
    bias = jnp.where(fresh, network.biases[-1], kept)
    return eqx.tree_at(lambda c: (c.network.weights[-1], c.network.biases[-1], c.target), critic, (weight, bias, new))


def values(critic: Critic, rollout: Rollout) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """V of every observation and of every true successor (meaningless, and not used, where terminated).

    The successor is the next row's observation unless the episode ended there, so the critic is asked again
    only where there are truncations.
    """
    value = critic(rollout.obs)
    following = jnp.concatenate([value[1:], critic(rollout.next_obs[-1:])])

    def ask_again() -> Array:
        return jnp.where(rollout.truncated, critic(rollout.next_obs), following)

    return value, jax.lax.cond(jnp.any(rollout.truncated), ask_again, lambda: following)


def explained_variance(
    value: Float[Array, " B"], target: Float[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """1 − Var(target − V)/Var(target): 1 for a perfect critic, 0 for a constant, negative for a worse one."""

    def variance(x: Array) -> Array:
        return weighted_mean(jnp.square(x - weighted_mean(x, weight)), weight)

    total = variance(target)
    return jnp.where(total > 0, 1 - variance(target - value) / jnp.where(total > 0, total, 1), jnp.nan)
