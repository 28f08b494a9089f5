"""Imitation of guides: the supervised part of importance-sampled guided policy search."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.guided.samples import GuidedSamples
from klimb.improve.divergences import kl_divergence
from klimb.improve.optimizer import Optimizer, fit_epochs
from klimb.policies.distributions import DiagGaussian
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch

MINIBATCH_SIZE = 512
MAX_GRAD_NORM = 1.0


def imitate(
    key: PRNGKeyArray, policy: PyTree, samples: GuidedSamples, *, steps: int, learning_rate: float | Array
) -> PyTree:
    """argmin KL(guide‖π_θ) in the states of the stored runs: of the guides' distributions, not their noisy actions.

    key: for the order of the rows. policy: where to start. samples: all that are stored, `[K, S, ...]`.
    steps: of Adam, at least; whole epochs are done. learning_rate: of the first step; it falls linearly to 0.
    """
    theta, rebuild = flatten(policy)
    # The first run is the policy's own.
    obs, mean, alive = (x[:, :, :, 1:] for x in (samples.obs, samples.guide_mean, samples.alive))
    std = jnp.broadcast_to(samples.guide_std[:, :, :, None], mean.shape)
    rows = alive.size
    minibatches = max(1, rows // MINIBATCH_SIZE)
    epochs = -(-steps // minibatches)
    # The learning rate falls to 0, because the noise of minibatches would make the policy fail on an unstable task.
    schedule = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, epochs * minibatches))
    optimizer = Optimizer(optax.chain(Optimizer.make("adam", MAX_GRAD_NORM).transform, schedule))
    zeros = jnp.zeros(rows, obs.dtype)
    # The guide's mean and standard deviation take the place of the action.
    target = jnp.concatenate([mean, std], axis=-1).reshape(rows, -1)
    batch = Batch(obs.reshape(rows, -1), target, zeros, zeros, zeros, weight=alive.reshape(rows).astype(obs.dtype))

    def negative_kl(vector: Array, batch: Batch) -> Array:
        """vector: θ. batch: some rows."""
        mean, std = jnp.split(batch.action, 2, axis=-1)
        guide = DiagGaussian(mean=mean, log_std=jnp.log(std))
        return -batch.mean(kl_divergence(guide, action_distribution(rebuild(vector), batch.obs)))

    fitted = fit_epochs(
        optimizer,
        negative_kl,
        key,
        theta,
        optimizer.init(theta),
        batch,
        learning_rate=learning_rate,
        epochs=epochs,
        num_minibatches=minibatches,
    )
    return rebuild(fitted.theta)
