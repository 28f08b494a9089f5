"""What a rule learns from: the newest rollout, or with it the last several and demonstrations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from klimb.collect.history import History
from klimb.estimate.estimator import Estimator
from klimb.estimate.values import values
from klimb.policies.networks import Critic
from klimb.types import Batch, Rollout, TrainState


@dataclass(frozen=True)
class Replay:
    """Extends the newest batch.

    length: rollouts that a step learns from. keeps_policies: whether the policies that collected them are kept, for
    the mixture of all of them. policy_static: the part of the policy that is no array.
    """

    length: int
    keeps_policies: bool
    policy_static: PyTree
    estimator: Estimator

    def empty(self, rollout: Rollout, policy: PyTree) -> History:
        """A history of nothing. rollout, policy: the shapes of a rollout and of the policy's arrays."""
        return History.empty(self.length, rollout, policy, keeps_policies=self.keeps_policies)

    def training_batch(
        self,
        state: TrainState,
        critic: Critic,
        batch: Batch,
        demonstrations: Rollout | None,
        behaviour: PyTree | None = None,
    ) -> tuple[History | tuple[()], Batch]:
        """(history, what the rule learns from). Values and advantages of old rollouts are the present critic's.

        state: before the step. critic: the one that it holds. batch: the newest rows.
        demonstrations: rows to add, `[T, M]`, or None. behaviour: the arrays of the policy that collected the newest
        rows; None if it is the state's.
        """
        assert batch.trajectory is not None
        rollout = batch.trajectory.rollout
        history, rollouts, mixture = state.history, [rollout], None
        if self.length > 1:
            history = history.push(rollout, state.policy if behaviour is None else behaviour, self.policy_static)
            rollouts, mixture = [history.merged()], history.mixture()
        if demonstrations is not None:
            rollouts.append(demonstrations)
        if self.length == 1 and demonstrations is None:
            return history, batch
        joint = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *rollouts)
        data = self.estimator.estimate(joint, *values(critic, joint), fraction_done=batch.fraction_done)
        assert data.trajectory is not None
        return history, dataclasses.replace(data, trajectory=dataclasses.replace(data.trajectory, mixture=mixture))
