"""What a rule maximises: surrogates of the return J, and the divergences that penalise or limit them."""

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
    """mean log π_θ(a|s) Â: at the parameters that collected the batch its gradient is the policy gradient.

    policy: π_θ, a callable pytree. batch: the rows.
    """
    log_prob = action_distribution(policy, batch.obs).log_prob(batch.action)
    return batch.mean(log_prob * batch.advantage)


def log_ratio(distribution: Distribution, batch: Batch) -> Float[Array, " B"]:
    """log π_θ(a|s) − log π_β(a|s), π_β the behaviour policy; 0 for rows of weight 0.

    distribution: π_θ(·|s) of every row. batch: the rows, with the log-probs of π_β.
    """
    difference = distribution.log_prob(batch.action) - batch.log_prob
    return jnp.where(batch.weight > 0, difference, 0)


def surrogate_gain(distribution: Distribution, batch: Batch) -> Float[Array, ""]:
    """mean (π_θ/π_β − 1) Â: the predicted improvement, with the states of π_β (Kakade and Langford 2002).

    The −1 makes it 0 at the old policy even if the sampled advantages do not average to 0.

    distribution: π_θ(·|s) of every row. batch: the rows, with the log-probs of π_β.
    """
    return batch.mean(jnp.expm1(log_ratio(distribution, batch)) * batch.advantage)


def directed_kl(old: Distribution, new: Distribution, direction: KLDirection) -> Float[Array, " B"]:
    """KL(π_old‖π_new) for `old_new` (as in TRPO), KL(π_new‖π_old) for `new_old`, in nats, per row.

    old, new: distributions of every row. direction: which of the two.
    """
    return kl_divergence(old, new) if direction == "old_new" else kl_divergence(new, old)


def divergence_of(direction: KLDirection) -> Divergence:
    """The KL of a direction as a kind of divergence.

    direction: old_new for KL(π_old‖π_new), new_old for KL(π_new‖π_old).
    """
    return "kl_old_new" if direction == "old_new" else "kl_new_old"


def divergence(kind: Divergence, old: Distribution, new: Distribution, batch: Batch) -> Float[Array, " B"]:
    """How far the policy has moved, per row: KL in either direction, or total variation.

    If the total variation has no closed form (Gaussians of several dimensions), the value of a row is
    ½ |π_new − π_old|/π_β of its action, whose mean is an unbiased estimate whichever policy π_β collected the batch.

    kind: the divergence. old, new: distributions of every row. batch: the rows.

    Returns nats for a KL, else a number in [0, 1] (without a closed form, ≥ 0).
    """
    if kind == "kl_old_new":
        return kl_divergence(old, new)
    if kind == "kl_new_old":
        return kl_divergence(new, old)
    if not old.has_closed_form_tv:
        before = log_ratio(old, batch)
        return 0.5 * jnp.exp(before) * jnp.abs(jnp.expm1(log_ratio(new, batch) - before))
    rows = total_variation(old, new)
    assert not isinstance(rows, tuple)
    return rows


def penalised_gain(
    kind: Divergence, penalty: float | Array, old: Distribution, new: Distribution, batch: Batch
) -> Float[Array, ""]:
    """Ā − λ D: the surrogate gain minus `penalty` times the mean divergence from the old policy.

    kind: the divergence D. penalty: λ ≥ 0, in units of the advantage per unit of D.
    old, new: distributions of every row. batch: the rows.
    """
    return surrogate_gain(new, batch) - penalty * batch.mean(divergence(kind, old, new, batch))


def with_entropy(
    objective: Float[Array, ""], ent_coef: float | Array | None, distribution: Distribution, batch: Batch
) -> Float[Array, ""]:
    """objective + ent_coef · mean entropy: with the entropy bonus, which keeps the policy from becoming deterministic.

    objective: without it. ent_coef: ≥ 0, in units of the objective per nat; None for no bonus.
    distribution: π_θ(·|s) of every row. batch: the rows.
    """
    return objective if ent_coef is None else objective + ent_coef * batch.mean(distribution.entropy())


def has_signal(batch: Batch) -> Array:
    """Whether any row of positive weight has an advantage other than 0.

    Without one the gradient of a penalised objective is rounding noise, which Adam would turn into a full step.

    batch: the rows.
    """
    return jnp.any((batch.advantage != 0) & (batch.weight > 0))
