"""Fitting the critic: regression of V(s) on the value targets, at once or in rounds with advantages of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.fields import Count, Positive, checked
from klimb.improve.acceptance import all_finite, choose
from klimb.improve.minibatches import random_minibatches, require_minibatches
from klimb.improve.optimizer import Optimizer
from klimb.improve.schedules import Schedule, scheduled
from klimb.mesh import gather_rows
from klimb.policies.critic import Critic
from klimb.policies.parameters import flatten
from klimb.types import Batch, Sequences, take_rows, weighted_mean


class CriticInfo(NamedTuple):
    """value_loss: mean squared error of the last epoch, in units of the targets' variance."""

    value_loss: Float[Array, ""]


@checked
class CriticFit:
    """Minibatch Adam on mean (V(s) − target)²."""

    critic_learning_rate: Positive = 1e-3
    """Adam's step size for the critic."""
    critic_epochs: Count = 10
    """Passes over the batch per fit of the critic."""
    critic_num_minibatches: Count = 8
    """Minibatches per pass; has to divide num_steps × num_envs."""
    critic_clip_eps: Positive | None = None
    """Maximum change of a value that lowers the loss, in standard deviations of the value targets; none: no limit."""
    normalize_value_targets: bool = True
    """Fit the critic to value targets that are scaled by their running mean and standard deviation."""
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

        With `critic_clip_eps` the loss of a row is max((V − y)², (V_old + clip(V − V_old, ±ε) − y)²), V_old the value
        before the fit (the value clipping of OpenAI's PPO code, Engstrom et al. 2020).

        key: for the order of the rows. critic: before the fit. state: Adam's moments. batch: rows with value targets.

        Raises ValueError if `critic_num_minibatches` does not divide the number of rows.
        """
        old = self._rescaled(critic, batch)
        (after, moments), loss = self._passes(key, old, old, state, batch, self.critic_epochs)
        return *self._unless_broken(critic, state, after, moments), CriticInfo(loss)

    def fit_in_rounds(
        self,
        key: PRNGKeyArray,
        critic: Critic,
        state: optax.OptState,
        batch: Batch,
        rounds: int,
        estimate: Callable[[Critic], Batch],
    ) -> tuple[Critic, optax.OptState, CriticInfo, Float[Array, "rounds B"]]:
        """As `fit`, with value targets, and advantages, computed anew before each of several rounds of epochs.

        As in Andrychowicz et al. (2021), "recompute advantages". The critic's fit does not depend on the policy's step,
        so that it can be made before it.

        key, critic, state: as for `fit`. batch: with the targets of the first round. rounds: they divide
        `critic_epochs`. estimate: from a critic to the batch with the targets and advantages that its values give.

        Returns what `fit` does, and the advantages at the start of every round.
        """
        old = self._rescaled(critic, batch)

        def one_round(carry: tuple, key_round: PRNGKeyArray) -> tuple[tuple, tuple[Array, Array]]:
            """carry: the critic's arrays, and Adam's moments. key_round: for the order of the rows."""
            arrays, moments = carry
            now = eqx.combine(arrays, static)
            again = estimate(now)
            after, loss = self._passes(key_round, now, old, moments, again, self.critic_epochs // rounds)
            return (eqx.filter(after[0], eqx.is_array), after[1]), (again.advantage, loss)

        arrays, static = eqx.partition(old, eqx.is_array)
        (arrays, moments), (advantage, losses) = jax.lax.scan(one_round, (arrays, state), jax.random.split(key, rounds))
        after, moments = self._unless_broken(critic, state, eqx.combine(arrays, static), moments)
        return after, moments, CriticInfo(losses[-1]), advantage

    def _rescaled(self, critic: Critic, batch: Batch) -> Critic:
        return rescale(critic, batch) if self.normalize_value_targets else critic

    def _passes(
        self, key: PRNGKeyArray, critic: Critic, old: Critic, state: optax.OptState, batch: Batch, epochs: int
    ) -> tuple[tuple[Critic, optax.OptState], Float[Array, ""]]:
        """Epochs on one batch: ((critic, moments), mean loss of the last one).

        key: for the order of the rows. critic: before them. old: of the same scale, from whose values changes are
        clipped. state: Adam's moments. batch: rows with value targets. epochs: their number.
        """
        learning_rate = scheduled(self.critic_learning_rate, self.critic_learning_rate_schedule, batch.fraction_done)
        theta, rebuild = flatten(critic)
        target = (batch.value_target - critic.target.mean) / critic.target_scale
        # Rows of weight 0 are zeroed: a NaN in one would reach the gradient as 0·NaN.
        counted = batch.weight > 0
        # The part of the encoding that does not depend on θ is computed once.
        inputs = critic.inputs(batch.blank_padding().obs)
        if not isinstance(inputs, Sequences):
            inputs = jnp.where(jnp.reshape(counted, counted.shape + (1,) * (inputs.ndim - 1)), inputs, 0)
        require_minibatches(inputs, self.critic_num_minibatches, what="critic_num_minibatches")
        eps = self.critic_clip_eps
        before = None if eps is None else old.scaled_rows(inputs)
        rows = gather_rows((inputs, jnp.where(counted, target, 0), batch.weight, before))

        def loss(vector: Array, minibatch: tuple[Array | Sequences, Array, Array, Array | None]) -> Array:
            """vector: the critic's parameters. minibatch: encoder inputs, scaled targets, weights, values before."""
            x, y, weight, start = minibatch
            value = rebuild(vector).scaled_rows(x)
            error = jnp.square(value - y)
            if start is not None and eps is not None:
                clipped = start + jnp.clip(value - start, -eps, eps)
                error = jnp.maximum(error, jnp.square(clipped - y))
            return weighted_mean(error, weight)

        def descend(carry: tuple, order: Array) -> tuple[tuple, Array]:
            """carry: parameters and moments. order: the row numbers of one minibatch."""
            vector, moments = carry
            value, gradient = jax.value_and_grad(loss)(vector, take_rows(rows, order))
            vector, moments = self._optimizer.apply_gradient(vector, -gradient, moments, learning_rate)
            return (vector, moments), value

        def epoch(carry: tuple, key_shuffle: PRNGKeyArray) -> tuple[tuple, Array]:
            """carry: parameters and moments. key_shuffle: for the order of the rows in this pass."""
            carry, losses = jax.lax.scan(
                descend, carry, random_minibatches(key_shuffle, inputs, self.critic_num_minibatches)
            )
            return carry, jnp.mean(losses)

        (theta, moments), losses = jax.lax.scan(epoch, (theta, state), jax.random.split(key, epochs))
        return (rebuild(theta), moments), losses[-1]

    def _unless_broken(
        self, critic: Critic, state: optax.OptState, after: Critic, moments: optax.OptState
    ) -> tuple[Critic, optax.OptState]:
        """Critic and moments after a fit if they are finite, else those before it."""
        # Adam's second moments can overflow while all parameters are finite; those parameters would never move again.
        finite = all_finite((flatten(after).theta, moments))
        return choose(finite, after, critic), choose(finite, moments, state)

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
