"""How the observation statistics of policy and critic follow what is observed."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import PyTree

from klimb.policies.networks import Critic
from klimb.policies.policy import observe
from klimb.types import Batch


@dataclass(frozen=True)
class NormalizerUpdates:
    """Takes a batch into the statistics, after the step that was computed with the old ones.

    policy: whether the policy's statistics are updated. Those of a policy that was cloned or trained before are not:
    new ones would move it outside the trust region. critic: whether the critic's are.
    """

    policy: bool
    critic: bool

    def update(self, policy: PyTree, critic: Critic, batch: Batch) -> tuple[PyTree, Critic]:
        """(policy, critic) with the observations of a batch; rows of weight 0 are left out."""
        if self.critic:
            critic = observe(critic, batch.obs, batch.weight)
        if self.policy:
            policy = observe(policy, batch.obs, batch.weight)
        return policy, critic
