"""What a rule climbs, and what it reports: surrogates of J, old distributions, and the common part of UpdateInfo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from klimb.estimate.importance import effective_sample_size
from klimb.improve.divergences import (
    has_closed_form_tv,
    kl_divergence,
    total_variation,
    total_variation_bound,
)
from klimb.policies.distributions import Distribution
from klimb.types import Batch, Status, UpdateInfo, trainable_filter

KLDirection = Literal["old_new", "new_old"]


class Flat(NamedTuple):
    """A policy's trainable arrays as one vector θ of P numbers, and the way back.

    One vector makes an optimiser step one fused operation, whatever the number of layers. The order is
    `jax.flatten_util.ravel_pytree`'s.
    """

    theta: Float[Array, " P"]
    rebuild: Callable[[Float[Array, " P"]], PyTree]


def flatten(policy: PyTree) -> Flat:
    """θ and the function θ → policy; whatever is not trainable is carried along unchanged."""
    trainable, fixed = eqx.partition(policy, trainable_filter(policy))
    theta, unravel = ravel_pytree(trainable)
    return Flat(theta, lambda vector: eqx.combine(unravel(vector), fixed))


def action_distribution(policy: PyTree, obs: Array) -> Distribution:
    """π(·|s) for every row, `[B]`. The policy is called with one observation at a time, under vmap."""
    return jax.vmap(policy)(obs)


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


def finite_batch(batch: Batch) -> Array:
    """Whether every row that counts is finite: observations, log-probs and advantages."""
    rows = jnp.isfinite(batch.advantage) & jnp.isfinite(batch.log_prob)
    if jnp.issubdtype(batch.obs.dtype, jnp.inexact):
        rows &= jnp.all(jnp.isfinite(batch.obs), axis=tuple(range(1, batch.obs.ndim)))
    return jnp.all(rows | (batch.weight <= 0))


def finite_move(old: Distribution, new: Distribution, batch: Batch) -> Array:
    """Whether the new policy is a policy still: both divergences from the old one are finite on every row that counts.

    Finite parameters can overflow in the network or in exp(log σ).
    """
    rows = jnp.isfinite(kl_divergence(old, new)) & jnp.isfinite(kl_divergence(new, old))
    return jnp.all(rows | (batch.weight <= 0))


def choose(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees of the same structure, whole: how a rejected step returns the old parameters bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, if_true, if_false)


def update_info(
    old: Distribution,
    new: Distribution,
    batch: Batch,
    status: Array | Status,
    *,
    kl_direction: KLDirection = "old_new",
    **extra: Array | float,
) -> UpdateInfo:
    """The fields all rules share, measured on the policy returned (`new`) against the one that was given (`old`).

    `extra` begins with surrogate_gain_se, the standard error of the surrogate gain over independent rows.
    """
    kl_old_new, kl_new_old = kl_divergence(old, new), kl_divergence(new, old)
    constrained = kl_old_new if kl_direction == "old_new" else kl_new_old
    counted = batch.weight > 0
    ratio = jnp.exp(log_ratio(new, batch))
    if has_closed_form_tv(old):
        tv_row = total_variation(old, new)
        assert not isinstance(tv_row, tuple)
        tv, tv_max = batch.mean(tv_row), jnp.max(jnp.where(counted, tv_row, 0))
    else:
        tv = batch.mean(0.5 * jnp.abs(ratio - 1))
        bound = total_variation_bound(jnp.minimum(kl_old_new, kl_new_old))
        tv_max = jnp.max(jnp.where(counted, bound, 0))
    gains = jnp.expm1(log_ratio(new, batch)) * batch.advantage
    gain = batch.mean(gains)
    share = batch.weight / jnp.maximum(jnp.sum(batch.weight), jnp.finfo(batch.weight.dtype).tiny)
    gain_variance = jnp.sum(jnp.where(counted, jnp.square(share * (gains - gain)), 0))
    return UpdateInfo(
        surrogate_gain=gain,
        kl_old_new=batch.mean(kl_old_new),
        kl_new_old=batch.mean(kl_new_old),
        kl_max=jnp.max(jnp.where(counted, constrained, 0)),
        tv=tv,
        tv_max=tv_max,
        entropy=batch.mean(new.entropy()),
        ess=effective_sample_size(ratio, batch.weight),
        status=jnp.asarray(status, jnp.int32),
        extra={
            "surrogate_gain_se": jnp.sqrt(gain_variance),
            **{name: jnp.asarray(value, batch.advantage.dtype) for name, value in extra.items()},
        },
    )
