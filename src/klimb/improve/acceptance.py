"""Accepting or rejecting a step, and its diagnostics. The `step` of every rule ends here."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from klimb.estimate.importance import effective_sample_size
from klimb.improve.divergences import kl_divergence, total_variation, total_variation_bound
from klimb.improve.objectives import log_ratio
from klimb.improve.rule import KLDirection
from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Status, StepErrors, UpdateInfo

Extra = Array | float | Callable[[Distribution], Array]


def accept_or_reject(
    policy: PyTree,
    state: PyTree,
    new_policy: PyTree,
    new_state: PyTree,
    batch: Batch,
    *,
    status: Array | Status = Status.ACCEPTED,
    kl_direction: KLDirection = "old_new",
    old: Distribution | None = None,
    **extra: Extra,
) -> tuple[PyTree, PyTree, UpdateInfo]:
    """The end of every step: (policy, state, info). `info` describes the policy that is returned.

    The new policy is returned if the status is ACCEPTED and everything is finite; else the old one, bit for bit. The
    new state is returned unless something is non-finite: then the status is NONFINITE.

    policy, state: what `Rule.step` was given. new_policy, new_state: what it proposes.
    batch: the rows that the proposal was computed from.
    status: the outcome of the rule's own search, a `Status`.
    kl_direction: the KL that `kl_max` reports: old_new is KL(π_old‖π_new), new_old is KL(π_new‖π_old).
    old: the distributions `[B]` of the old policy if the rule has them already; None computes them.
    extra: the rule's own metrics by name. A function is called with the distributions, `[B]`, of the policy returned.
    """
    old = action_distribution(policy, batch.obs) if old is None else old
    new = action_distribution(new_policy, batch.obs)
    finite = finite_batch(batch) & all_finite((flatten(new_policy).theta, new_state)) & finite_move(old, new, batch)
    status = jnp.where(finite, status, Status.NONFINITE)
    accepted = status == Status.ACCEPTED
    returned = choose(accepted, new, old)
    info = update_info(
        old,
        returned,
        batch,
        status,
        kl_direction=kl_direction,
        **{name: value(returned) if callable(value) else value for name, value in extra.items()},
    )
    return choose(accepted, new_policy, policy), choose(finite, new_state, state), info


def finite_batch(batch: Batch) -> Array:
    """Whether there are rows of positive weight and all of them are finite: observation, log-prob and advantage.

    batch: the rows.
    """
    rows = jnp.isfinite(batch.advantage) & jnp.isfinite(batch.log_prob)
    obs = batch.obs_rows
    if jnp.issubdtype(obs.dtype, jnp.inexact):
        rows &= jnp.all(jnp.isfinite(obs), axis=tuple(range(1, obs.ndim)))
    return jnp.all(rows | (batch.weight <= 0)) & jnp.any(batch.weight > 0)


def all_finite(tree: PyTree) -> Array:
    """Whether every real number in a tree of arrays is finite."""
    numbers = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))


def finite_move(old: Distribution, new: Distribution, batch: Batch) -> Array:
    """Whether KL(π_old‖π_new) and KL(π_new‖π_old) are finite on every row of positive weight.

    Finite parameters can still overflow in the network or in exp(log σ).

    old, new: distributions `[B]`. batch: the rows.
    """
    rows = jnp.isfinite(kl_divergence(old, new)) & jnp.isfinite(kl_divergence(new, old))
    return jnp.all(rows | (batch.weight <= 0))


def choose(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees of the same structure: a rejected step returns the old parameters bit for bit.

    condition: a single bool. if_true, if_false: the trees; leaves that are not arrays come from `if_true`.
    """
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
    """The fields that all rules share: the policy returned (`new`) compared with the one that was given (`old`).

    old, new: distributions of every row, `[B]`.
    batch: the rows; those of weight 0 are ignored.
    status: a `Status`.
    kl_direction: the KL whose maximum over states is `kl_max`.
    extra: the rule's own metrics by name, scalars.
    """
    kl_old_new, kl_new_old = kl_divergence(old, new), kl_divergence(new, old)
    constrained = kl_old_new if kl_direction == "old_new" else kl_new_old
    counted = batch.weight > 0
    # The gain is relative to π_old, which on older data is not the policy that collected the batch.
    log_ratio_old, ratio = log_ratio(old, batch), jnp.exp(log_ratio(new, batch))
    change = jnp.exp(log_ratio_old) * jnp.expm1(log_ratio(new, batch) - log_ratio_old)
    tv_bound = total_variation_bound(jnp.minimum(kl_old_new, kl_new_old))
    if old.has_closed_form_tv:
        tv = total_variation(old, new)
        assert not isinstance(tv, tuple)
    else:
        tv = 0.5 * jnp.abs(change)

    def worst(rows: Array) -> Array:
        return jnp.max(jnp.where(counted, rows, 0))

    gains = change * batch.advantage
    gain = batch.mean(gains)
    share = batch.weight / jnp.maximum(jnp.sum(batch.weight), jnp.finfo(batch.weight.dtype).tiny)
    gain_variance = jnp.sum(jnp.where(counted, jnp.square(share * (gains - gain)), 0))
    return UpdateInfo(
        surrogate_gain=gain,
        kl_old_new=batch.mean(kl_old_new),
        kl_new_old=batch.mean(kl_new_old),
        kl_max=worst(constrained),
        tv=batch.mean(tv),
        tv_max=worst(tv if old.has_closed_form_tv else tv_bound),
        entropy=batch.mean(new.entropy()),
        ess=effective_sample_size(ratio, batch.weight),
        status=jnp.asarray(status, jnp.int32),
        errors=StepErrors(
            surrogate_gain_se=jnp.sqrt(gain_variance),
            kl_old_new_se=standard_error(kl_old_new, batch),
            kl_new_old_se=standard_error(kl_new_old, batch),
            tv_se=standard_error(tv, batch),
            kl_old_new_max=worst(kl_old_new),
            kl_new_old_max=worst(kl_new_old),
            tv_bound=batch.mean(tv_bound),
            tv_max_bound=worst(tv_bound),
        ),
        extra={name: jnp.asarray(value, batch.advantage.dtype) for name, value in extra.items()},
    )


def standard_error(value: Float[Array, " B"], batch: Batch) -> Float[Array, ""]:
    """Standard error of Σ w x / Σ w. Rows of one environment may be correlated; environments are independent.

    √(N/(N − 1) Σ_n (Σ_t w (x − x̄))²) / Σ w over N environments. Rows count as independent if the batch has no
    trajectory of at least two environments.

    value: x, `[B]`. batch: the rows with their weights w.
    """
    counted, weight = batch.weight > 0, batch.weight
    deviation = jnp.where(counted, weight * (value - batch.mean(value)), 0)
    columns = 1 if batch.trajectory is None else batch.trajectory.rollout.reward.shape[1]
    if columns > 1:
        deviation = jnp.sum(deviation.reshape(-1, columns), axis=0)
        counted = jnp.any(counted.reshape(-1, columns), axis=0)
    count = jnp.sum(counted, dtype=weight.dtype)
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    return jnp.sqrt(count / jnp.maximum(count - 1, 1) * jnp.sum(jnp.square(deviation))) / total
