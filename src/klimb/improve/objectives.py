"""What a rule climbs: surrogates of J, and the distances that they are weighed against."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from klimb.improve.divergences import kl_divergence, total_variation
from klimb.improve.rule import KLDirection
from klimb.policies.distributions import Distribution
from klimb.policies.policy import action_distribution
from klimb.types import Batch

Divergence = Literal["kl_old_new", "kl_new_old", "tv"]


def log_likelihood(policy: PyTree, batch: Batch) -> Float[Array, ""]:
    """mean log π_θ(a|s) Â: at the parameters that collected the batch its gradient is the policy gradient."""
    log_prob = action_distribution(policy, batch.obs).log_prob(batch.action)
    return batch.mean(log_prob * batch.advantage)


def log_ratio(distribution: Distribution, batch: Batch) -> Float[Array, " B"]:
    """log π_θ(a|s) − log π_β(a|s) against the recorded behaviour; rows of weight 0 give 0."""
    difference = distribution.log_prob(batch.action) - batch.log_prob
    return jnp.where(batch.weight > 0, difference, 0)


def surrogate_gain(distribution: Distribution, batch: Batch) -> Float[Array, ""]:
    """mean (π_θ/π_β − 1) Â: the improvement promised to first order in the change of states (Kakade and Langford 2002).

    The −1 makes it 0 at the old policy even when the sampled advantages do not average to 0.
    """
    return batch.mean(jnp.expm1(log_ratio(distribution, batch)) * batch.advantage)


def directed_kl(old: Distribution, new: Distribution, direction: KLDirection) -> Float[Array, " B"]:
    """KL(π_old‖π_new) for `old_new` (TRPO), KL(π_new‖π_old) for `new_old` (the lectures), a row each."""
    return kl_divergence(old, new) if direction == "old_new" else kl_divergence(new, old)


def divergence_of(direction: KLDirection) -> Divergence:
    """The divergence that a direction of the KL is."""
    return "kl_old_new" if direction == "old_new" else "kl_new_old"


def divergence(kind: Divergence, old: Distribution, new: Distribution, batch: Batch) -> Float[Array, " B"]:
    """KL in either direction, or total variation: how far the policy has moved, a row each.

    Where the total variation has no closed form (Gaussians of several dimensions) a row is the sampled
    ½ |π_new/π_β − 1| of its action, whose mean over an on-policy batch is an unbiased estimate.
    """
    if kind == "kl_old_new":
        return kl_divergence(old, new)
    if kind == "kl_new_old":
        return kl_divergence(new, old)
    if not old.has_closed_form_tv:
        return 0.5 * jnp.abs(jnp.expm1(log_ratio(new, batch)))
    rows = total_variation(old, new)
    assert not isinstance(rows, tuple)
    return rows


def penalised_gain(
    kind: Divergence, penalty: float | Array, old: Distribution, new: Distribution, batch: Batch
) -> Float[Array, ""]:
    """Ā − λ D: the surrogate gain, less `penalty` times the mean divergence from the old policy."""
    return surrogate_gain(new, batch) - penalty * batch.mean(divergence(kind, old, new, batch))


def has_signal(batch: Batch) -> Array:
    """Whether any advantage is not zero.

    Without one there is nothing to climb, but the gradient of a penalty is made of rounding noise, which an
    adaptive optimiser would turn into a full step.
    """
    return jnp.any((batch.advantage != 0) & (batch.weight > 0))
