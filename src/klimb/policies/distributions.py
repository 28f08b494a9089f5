"""Action distributions: pytrees with any leading axes `[...]`, and the Fisher metric of their parameters."""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from klimb.policies.closed_forms import expm1_minus, gaussian_total_variation

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Gauss-Hermite quadrature for expectations under N(0, 1): E f(z) ≈ Σ wᵢ f(zᵢ).
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
# The largest |tanh u| that `TanhGaussian.from_environment` answers for, in both precisions: |u| ≤ 7.25.
NEAR_THE_EDGE = 1 - 1e-6


class Distribution(eqx.Module):
    """A distribution over one action, with any leading axes `[...]`.

    A new kind of distribution is a class with these methods. `klimb.kl_divergence` and `klimb.total_variation` check
    that both of their arguments are of one kind before they ask for a divergence here.
    """

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

    def to_environment(self, action: Array) -> Array:
        """The environment's action for one of this distribution's: the same, unless the kind says otherwise."""
        return action

    def from_environment(self, action: Array) -> Array:
        """The inverse of `to_environment`, for actions that somebody else has taken."""
        return action

    @abc.abstractmethod
    def kl_to(self, other: Any) -> Array:
        """KL(self‖other) in nats, `[...]`, for another distribution of the same kind."""

    @property
    def has_closed_form_tv(self) -> bool:
        """Whether `tv_to` is exact for this kind and number of dimensions, whatever the parameters."""
        return False

    def tv_to(self, other: Any) -> Array:
        """Total variation in [0, 1], `[...]`, in closed form. ValueError where there is none."""
        raise ValueError(f"no closed form of the total variation is known for {type(self).__name__}: give key=")

    def require_comparable(self, other: Any) -> None:
        """ValueError where two distributions of this kind have no divergence."""

    @abc.abstractmethod
    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """M v: the Fisher matrix in the distribution's own parameters, times a tangent of them (of the same kind)."""

    @abc.abstractmethod
    def fisher_root(self, tangent: PyTree) -> PyTree:
        """Lᵀ v with M = L Lᵀ: as many numbers as parameters, whose squares add up to vᵀ M v."""


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

    def kl_to(self, other: Categorical) -> Float[Array, " *batch"]:
        log_p, log_q = self.log_probs, other.log_probs
        probs = jnp.exp(log_p)
        # Σ p (log p − log q) cancels to rounding noise for near-equal p, q, with either sign. Adding
        # Σ (q − p) = 0 turns every term into p·(eᵈ − 1 − d) ≥ 0 with d = log q − log p.
        difference = jnp.where(probs > 0, log_q - log_p, 0)
        return jnp.sum(jnp.where(probs > 0, probs * expm1_minus(difference), jnp.exp(log_q)), axis=-1)

    @property
    def has_closed_form_tv(self) -> bool:
        return True

    def tv_to(self, other: Categorical) -> Float[Array, " *batch"]:
        return 0.5 * jnp.sum(jnp.abs(self.probs - other.probs), axis=-1)

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """(diag(p) − p pᵀ) v."""
        probs = self.probs
        mean = jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return Categorical(logits=probs * (tangent.logits - mean))

    def fisher_root(self, tangent: PyTree) -> PyTree:
        """√p ⊙ (v − pᵀv)."""
        probs = self.probs
        mean = jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return Categorical(logits=jnp.sqrt(probs) * (tangent.logits - mean))


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

    def kl_to(self, other: DiagGaussian) -> Float[Array, " *batch"]:
        # Per dimension ½ (e^{2d} − 1 − 2d) + ½ (μ_p − μ_q)²/σ_q² with d = log σ_p − log σ_q.
        spread = expm1_minus(2 * (self.log_std - other.log_std))
        shift = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        return 0.5 * jnp.sum(spread + shift, axis=-1)

    @property
    def has_closed_form_tv(self) -> bool:
        return self.mean.shape[-1] == 1

    def tv_to(self, other: DiagGaussian) -> Float[Array, " *batch"]:
        dimensions = jnp.broadcast_shapes(self.mean.shape, other.mean.shape)[-1]
        if dimensions == 1:
            return gaussian_total_variation(
                self.mean[..., 0], self.log_std[..., 0], other.mean[..., 0], other.log_std[..., 0]
            )
        concrete = not any(isinstance(scale, jax.core.Tracer) for scale in (self.log_std, other.log_std))
        if concrete and bool(jnp.all(self.log_std == other.log_std)):
            # Equal scales: the half-space between the means decides, TV = erf(Mahalanobis distance / 2√2).
            squared = jnp.sum(jnp.square((self.mean - other.mean) * jnp.exp(-self.log_std)), axis=-1)
            # The root of 0 has no derivative, and the one at equality is to be 0.
            return jnp.where(squared > 0, erf(jnp.sqrt(jnp.where(squared > 0, squared, 1)) / 8**0.5), 0)
        raise ValueError(
            f"the total variation of Gaussians with {dimensions} dimensions and unequal scales has no closed form: "
            "give key= for a Monte Carlo value with its standard error, or use total_variation_bound(kl)"
        )

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """diag(1/σ²) on the mean, diag(2) on log σ."""
        precision = jnp.exp(-2 * self.log_std)
        return DiagGaussian(mean=precision * tangent.mean, log_std=2 * tangent.log_std)

    def fisher_root(self, tangent: PyTree) -> PyTree:
        """v/σ on the mean, √2 v on log σ."""
        return DiagGaussian(mean=jnp.exp(-self.log_std) * tangent.mean, log_std=2**0.5 * tangent.log_std)


class TanhGaussian(Distribution):
    """a = center + half_width · tanh(u) with u ~ N(mean, diag σ²): always inside its box, D dimensions.

    Its actions are the u: `sample_from`, `mode`, `log_prob` and rollouts have them, because at the edge of the box
    rounding has lost which u an a came from. Environments get a, from `to_environment`. Densities and entropy are
    those of a.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]
    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)

    @property
    def base(self) -> DiagGaussian:
        """The distribution of u."""
        return DiagGaussian(mean=self.mean, log_std=self.log_std)

    def noise(self, key: PRNGKeyArray, draws: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.base.noise(key, draws)

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.base.sample_from(noise)

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, " *batch"]:
        """log N(u) − Σ log (half_width (1 − tanh² u)): the density of a at the u given."""
        return self.base.log_prob(action) - jnp.sum(self._log_stretch(action), axis=-1)

    def entropy(self) -> Float[Array, " *batch"]:
        """H[u] + E Σ log (half_width (1 − tanh² u)), the expectation by 32-point Gauss-Hermite quadrature.

        It is numerical, as there is no closed form: the measured error of a dimension is below 1e-7 nats for
        σ ≤ 1, 2e-4 for σ ≤ 2 and 0.1 for σ ≤ e².
        """
        column = (-1,) + (1,) * self.mean.ndim
        nodes, weights = (jnp.asarray(x, self.mean.dtype).reshape(column) for x in (NODES, WEIGHTS))
        stretch = weights * self._log_stretch(self.mean + jnp.exp(self.log_std) * nodes)
        return self.base.entropy() + jnp.sum(stretch, axis=(0, -1))

    def mode(self) -> Float[Array, "*batch D"]:
        """The most probable u. Its a is the median of each dimension; the density of a may peak at an edge instead."""
        return self.mean

    def to_environment(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """center + half_width · tanh(u)."""
        center, half_width = self._box(action)
        low, high = (jnp.asarray(bound, action.dtype) for bound in (self.low, self.high))
        # Rounding in the sum may go past an edge.
        return jnp.clip(center + half_width * jnp.tanh(action), low, high)

    def from_environment(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """tanh⁻¹((a − center) / half_width); an a at an edge is taken a millionth of the half-width inside it."""
        center, half_width = self._box(action)
        return jnp.arctanh(jnp.clip((action - center) / half_width, -NEAR_THE_EDGE, NEAR_THE_EDGE))

    def kl_to(self, other: TanhGaussian) -> Float[Array, " *batch"]:
        # Squashing both by the same one-to-one map changes no divergence.
        return self.base.kl_to(other.base)

    @property
    def has_closed_form_tv(self) -> bool:
        return self.base.has_closed_form_tv

    def tv_to(self, other: TanhGaussian) -> Float[Array, " *batch"]:
        return self.base.tv_to(other.base)

    def require_comparable(self, other: TanhGaussian) -> None:
        if (self.low, self.high) != (other.low, other.high):
            raise ValueError(
                f"both squashed Gaussians must be in one box, not in {self.low} to {self.high} and {other.low} to "
                f"{other.high}: give them the same low and high"
            )

    def fisher_metric(self, tangent: PyTree) -> PyTree:
        """The base's: a is a function of u and u of a, so that both have the same scores."""
        return self._squash(self.base.fisher_metric(tangent))

    def fisher_root(self, tangent: PyTree) -> PyTree:
        """The base's."""
        return self._squash(self.base.fisher_root(tangent))

    def _log_stretch(self, u: Float[Array, "*draws D"]) -> Float[Array, "*draws D"]:
        """log da/du = log half_width + log (1 − tanh² u), a dimension each."""
        _, half_width = self._box(u)
        # 1 − tanh² u = 4 / (eᵘ + e⁻ᵘ)², of which 1 − tanh(u)² itself would keep no digit from |u| = 9 on.
        return jnp.log(half_width) + 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))

    def _box(self, like: Array) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """Center and half-width."""
        low, high = np.array(self.low), np.array(self.high)
        return jnp.asarray((low + high) / 2, like.dtype), jnp.asarray((high - low) / 2, like.dtype)

    def _squash(self, base: DiagGaussian) -> TanhGaussian:
        return TanhGaussian(mean=base.mean, log_std=base.log_std, low=self.low, high=self.high)
