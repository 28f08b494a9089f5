"""Action distributions: pytrees with any leading axes `[...]`, and the Fisher metric of their parameters."""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(eqx.Module):
    """A distribution over one action. Divergences between two of a kind are in `klimb.improve.divergences`."""

    @abc.abstractmethod
    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Array:
        """The randomness of `draws` samples: `[*draws, ...]`. It depends on the shapes alone, not on the parameters.

        Collectors draw a whole rollout's noise at once: random bits are cheap in bulk and dear one by one.
        """

    @abc.abstractmethod
    def sample_from(self, noise: Array) -> Array:
        """The action that one draw of noise stands for: `[...]` discrete, `[..., D]` continuous."""

    def sample(self, key: PRNGKeyArray) -> Array:
        """One action for each leading index."""
        return self.sample_from(self.noise(key))

    @abc.abstractmethod
    def log_prob(self, action: Array) -> Array:
        """Log probability (or density) of an action, `[...]`, in nats."""

    @abc.abstractmethod
    def entropy(self) -> Array:
        """Entropy (differential for continuous actions), `[...]`, in nats."""

    @abc.abstractmethod
    def mode(self) -> Array:
        """The most probable action."""

    @abc.abstractmethod
    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """M v: the Fisher matrix in the distribution's own parameters, times a tangent of them (of the same kind)."""


class Categorical(Distribution):
    """π(a) = softmax(logits)_a over A actions. A logit of −inf is an action that can't be taken."""

    logits: Float[Array, "*batch A"]

    @property
    def log_probs(self) -> Float[Array, "*batch A"]:
        """log π(a), normalised. A masked action gets the lowest finite number, so that 0 · log 0 is 0."""
        floor = jnp.finfo(self.logits.dtype).min / 2
        return jax.nn.log_softmax(jnp.maximum(self.logits, floor))

    @property
    def probs(self) -> Float[Array, "*batch A"]:
        """π(a)."""
        return jnp.exp(self.log_probs)

    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Float[Array, "..."]:
        # One uniform number an action: A times fewer random bits than the Gumbel trick.
        return jax.random.uniform(key, (*draws, *self.logits.shape[:-1]), self.logits.dtype)

    def sample_from(self, noise: Float[Array, " *batch"]) -> Int[Array, " *batch"]:
        # Inverts the cumulative sum. The comparison is with its own total, so that the last action of
        # positive probability is taken when rounding leaves the total below the uniform number.
        cumulative = jnp.cumsum(self.probs, axis=-1)
        threshold = noise[..., None] * cumulative[..., -1:]
        return jnp.sum((cumulative <= threshold).astype(jnp.int32), axis=-1)

    def log_prob(self, action: Int[Array, " *batch"]) -> Float[Array, " *batch"]:
        one_hot = jax.nn.one_hot(action, self.logits.shape[-1], dtype=bool)
        return jnp.sum(jnp.where(one_hot, self.log_probs, 0), axis=-1)

    def entropy(self) -> Float[Array, " *batch"]:
        log_probs = self.log_probs
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def mode(self) -> Int[Array, " *batch"]:
        return jnp.argmax(self.logits, axis=-1)

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """(diag(p) − p pᵀ) v."""
        probs = self.probs
        mean = jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return Categorical(logits=probs * (tangent.logits - mean))


class DiagGaussian(Distribution):
    """Independent Gaussians over D action dimensions, in the units of the environment's actions."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jax.random.normal(key, (*draws, *self.mean.shape), self.mean.dtype)

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, " *batch"]:
        standard = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(standard) - self.log_std - HALF_LOG_2PI, axis=-1)

    def entropy(self) -> Float[Array, " *batch"]:
        return jnp.sum(self.log_std + 0.5 + HALF_LOG_2PI, axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        return self.mean

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """diag(1/σ²) on the mean, diag(2) on log σ."""
        precision = jnp.exp(-2 * self.log_std)
        return DiagGaussian(mean=precision * tangent.mean, log_std=2 * tangent.log_std)
