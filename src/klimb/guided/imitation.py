"""Imitating guides: the supervised part of importance-sampled guided policy search."""

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

MINIBATCH = 512  # rows of one step
MAX_GRAD_NORM = 1.0


def imitate(
    key: PRNGKeyArray, policy: PyTree, samples: GuidedSamples, *, steps: int, learning_rate: float | Array
) -> PyTree:
    """argmin KL(guide‖π_θ) in the states of the guides' runs: what they mean, without the noise of what they do.

    At least `steps` steps of Adam, down from the learning rate, on everything that is remembered (`[K, S, ...]`).
    """
    theta, rebuild = flatten(policy)
    # Not the first run, which is the policy's own.
    obs, mean, alive = (x[:, :, :, 1:] for x in (samples.obs, samples.guide_mean, samples.alive))
    std = jnp.broadcast_to(samples.guide_std[:, :, :, None], mean.shape)
    rows = alive.size
    minibatches = max(1, rows // MINIBATCH)
    epochs = -(-steps // minibatches)
    # Down to 0: what is left of the noise of minibatches would throw an unstable task off its path.
    falling = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, epochs * minibatches))
    optimizer = Optimizer(optax.chain(Optimizer.make("adam", MAX_GRAD_NORM).transform, falling))
    nothing = jnp.zeros(rows, obs.dtype)
    target = jnp.concatenate([mean, std], axis=-1).reshape(rows, -1)
    batch = Batch(
        obs.reshape(rows, -1), target, nothing, nothing, nothing, weight=alive.reshape(rows).astype(obs.dtype)
    )

    def likeness(vector: Array, batch: Batch) -> Array:
        mean, std = jnp.split(batch.action, 2, axis=-1)
        guide = DiagGaussian(mean=mean, log_std=jnp.log(std))
        return -batch.mean(kl_divergence(guide, action_distribution(rebuild(vector), batch.obs)))

    fitted = fit_epochs(
        optimizer,
        likeness,
        key,
        theta,
        optimizer.init(theta),
        batch,
        learning_rate=learning_rate,
        epochs=epochs,
        num_minibatches=minibatches,
    )
    return rebuild(fitted.theta)
