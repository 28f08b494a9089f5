"""How the observation statistics of policy and critic follow what is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PyTree

from klimb.improve.optimizer import moments_after
from klimb.policies.critic import Critic
from klimb.policies.policy import observe


class Learned(NamedTuple):
    """Policy and critic, each with the state of what improves it: optimiser moments and multipliers."""

    policy: PyTree
    critic: Critic
    rule_state: PyTree
    critic_state: PyTree


@dataclass(frozen=True)
class NormalizerUpdates:
    """Takes a batch into the statistics, after the step that was computed with the old ones.

    Policy and critic stay the same functions, except for observations that are clipped: their first layers absorb what
    the new statistics change. The moments of their optimisers follow.

    policy: whether the policy's statistics are updated; those of a policy that was cloned or trained before are not.
    critic: whether the critic's are. start_with_rollout: whether they are first computed from a rollout before the
    first iteration, from which nothing else is learned. Fresh networks are meant for scaled observations: their first
    statistics are not absorbed.
    """

    policy: bool
    critic: bool
    start_with_rollout: bool

    def update(
        self, learned: Learned, obs: Num[Array, " B *obs"], weight: Float[Array, " B"]
    ) -> tuple[Learned, Bool[Array, ""]]:
        """(the same functions, and the states of their optimisers, with a batch in the statistics; exact).

        learned: after the step and the fit. obs: rows. weight: of every row; rows of weight 0 are left out.

        exact: whether the policy is the same function, to rounding, for all rows: none of them is clipped.
        """
        policy, critic, rule_state, critic_state = learned
        exact = jnp.bool_(True)
        if self.policy:
            policy, rescaling = observe(policy, obs, weight)
            rule_state = moments_after(rescaling, policy, rule_state)
            exact = jnp.bool_(True if rescaling is None else rescaling.exact)
        if self.critic:
            critic, rescaling = observe(critic, obs, weight)
            critic_state = moments_after(rescaling, critic, critic_state)
        return Learned(policy, critic, rule_state, critic_state), exact
