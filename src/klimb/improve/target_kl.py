"""What `target_kl` does in a rule that makes passes over a batch: it ends them, or the learning rate aims at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from klimb.improve.objectives import directed_kl
from klimb.improve.optimizer import rate_factor, with_rate_factor
from klimb.improve.rule import KLDirection
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric

EPOCHS_DONE = Metric("Epochs", "passes over the batch, including the one that exceeded target_kl")
RATE_STEP = 1.5
"""Factor between two learning rates that follow the KL."""
RATE_RANGE = (1e-2, 1e2)
"""Smallest and largest learning rate that follows the KL, as multiples of its initial value."""


class TargetKL(NamedTuple):
    """A target for the mean KL from the old policy on one batch.

    target: in nats; None for none. aims: whether the learning rate is adapted to reach it; then it ends no passes.
    kl: θ ↦ mean KL, in the rule's direction.
    """

    target: float | Array | None
    aims: bool
    kl: Callable[[Float[Array, " P"]], Array]

    @classmethod
    def of(cls, rule: Any, policy: PyTree, batch: Batch, direction: KLDirection) -> TargetKL:
        """The target of a rule.

        rule: or whatever has `target_kl` and `learning_rate_schedule`. policy: the old one. batch: the rows.
        direction: of the KL; old_new is KL(π_old‖π_new), new_old is KL(π_new‖π_old).
        """
        rebuild, old = flatten(policy).rebuild, action_distribution(policy, batch.obs)

        def kl(theta: Array) -> Array:
            return batch.mean(directed_kl(old, action_distribution(rebuild(theta), batch.obs), direction))

        return cls(rule.target_kl, rule.learning_rate_schedule == "kl", kl)

    @property
    def keep_going(self) -> Callable[[Array], Array] | None:
        """Whether a fit goes on after a pass, for `fit_epochs`: while the KL is not above the target."""
        target = self.target
        return None if target is None or self.aims else lambda theta: self.kl(theta) <= target

    def adapted(self, moments: optax.OptState, theta: Float[Array, " P"]) -> optax.OptState:
        """The optimiser's state after a batch, with another factor of the learning rate where that follows the KL.

        moments: after the passes. theta: the parameters that they have led to.
        """
        if not self.aims:
            return moments
        assert self.target is not None
        return with_rate_factor(moments, adapted_factor(rate_factor(moments), self.kl(theta), self.target))


def adapted_factor(factor: Float[Array, ""], kl: Array, target: float | Array) -> Float[Array, ""]:
    """The factor of the learning rate for the next batch: ·1.5 if KL < target/2, ÷1.5 if KL > 2 target.

    The rule of `schedule = "adaptive"` in rsl_rl (Rudin et al. 2022), applied after whole batches instead of after
    minibatches. A KL of 0 changes nothing: no step was taken.

    factor: of this batch, in `RATE_RANGE`. kl: mean KL of this batch's step, in nats. target: KL aimed at, in nats.
    """
    lower = jnp.where(kl > 2 * target, factor / RATE_STEP, factor)
    raised = jnp.where((kl < target / 2) & (kl > 0), factor * RATE_STEP, lower)
    return jnp.clip(raised, *RATE_RANGE).astype(factor.dtype)


def require_target_kl(rule: Any) -> None:
    """ValueError where the learning rate of a rule is to follow the KL and there is no KL to aim at.

    rule: has `target_kl` and `learning_rate_schedule`.
    """
    if rule.learning_rate_schedule == "kl" and rule.target_kl is None:
        raise ValueError(
            "learning_rate_schedule = kl needs target_kl, the mean KL per batch that the learning rate aims at: give "
            "for example target_kl = 0.01"
        )


def target_metrics(rule: Any) -> dict[str, Metric]:
    """The metric epochs_done where a rule has a `target_kl`, for `Traits.metrics`.

    rule: has `target_kl`.
    """
    return {} if rule.target_kl is None else {"epochs_done": EPOCHS_DONE}


def epochs_done(rule: Any, epochs: Array) -> dict[str, Any]:
    """The value of `target_metrics`.

    rule: has `target_kl`. epochs: passes over the batch.
    """
    return {} if rule.target_kl is None else {"epochs_done": epochs}
