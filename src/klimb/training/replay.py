"""What a rule learns from: the newest rollout, or with it the last several and demonstrations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from klimb.collect.history import History, action_log_prob
from klimb.estimate.estimator import Estimator
from klimb.estimate.importance import mixture_by_shares
from klimb.policies.critic import Critic
from klimb.types import Batch, Demonstrated, Mixture, Rollout, TrainState


@dataclass(frozen=True)
class Replay:
    """Extends the newest batch.

    length: rollouts that a step learns from. keeps_policies: whether the policies that collected them are kept, for
    the mixture of all of them. policy_static: the part of the policy that is no array. demonstrator_static: that of the
    policy that made the demonstrations, where it is a part of the mixture.
    """

    length: int
    keeps_policies: bool
    policy_static: PyTree
    estimator: Estimator
    demonstrator_static: PyTree = None

    def empty(self, rollout: Rollout, policy: PyTree) -> History:
        """A history of nothing. rollout, policy: the shapes of a rollout and of the policy's arrays."""
        stored = jax.eval_shape(Rollout.with_all_successors, rollout)
        return History.empty(self.length, stored, policy, keeps_policies=self.keeps_policies)

    def training_batch(
        self,
        state: TrainState,
        critic: Critic,
        batch: Batch,
        demonstrations: Demonstrated | None,
        behaviour: PyTree | None = None,
    ) -> tuple[History | tuple[()], Batch]:
        """(history, what the rule learns from). Values and advantages of old rollouts are the present critic's.

        state: before the step. critic: the one that it holds. batch: the newest rows.
        demonstrations: to add, or None. behaviour: the arrays of the policy that collected the newest rows; None if it
        is the state's.
        """
        assert batch.trajectory is not None
        rollout, history = batch.trajectory.rollout, state.history
        if self.length == 1 and demonstrations is None:
            return history, batch
        behaviour = state.policy if behaviour is None else behaviour
        # How many successors are kept may change from one rollout to the next.
        rollout = rollout.with_all_successors()
        if self.length > 1:
            history = history.push(rollout, behaviour, self.policy_static)
            rollout = history.merged()
        joint, demonstrated = rollout, None
        if demonstrations is not None:
            joint = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), rollout, demonstrations.rollout)
            demonstrated = jnp.arange(joint.reward.shape[1]) >= rollout.reward.shape[1]
        data = self.estimator.estimate(joint, *self.estimator.values(critic, joint), fraction_done=batch.fraction_done)
        assert data.trajectory is not None
        mixture = self._mixture(history, rollout, behaviour, demonstrations) if self.keeps_policies else None
        trajectory = dataclasses.replace(data.trajectory, mixture=mixture, demonstrated=demonstrated)
        return history, dataclasses.replace(data, trajectory=trajectory)

    def _mixture(
        self, history: History | tuple[()], rollout: Rollout, behaviour: PyTree, demonstrations: Demonstrated | None
    ) -> Mixture:
        """The policies of the last K rollouts, and with demonstrations the one that made them as number K.

        rollout: all K as one. behaviour: the arrays of the policy that collected the newest.
        """
        if isinstance(history, History):
            policies, log_prob, slots = history.policies, history.merged_log_prob(), self.length
        else:
            policies, log_prob, slots = jax.tree.map(lambda x: x[None], behaviour), rollout.log_prob[None], 1
        collected_by = jnp.repeat(jnp.arange(slots), rollout.reward.shape[1] // slots)
        if demonstrations is not None:
            rows = demonstrations.rollout
            of_demonstrations = jax.vmap(lambda arrays: action_log_prob(arrays, self.policy_static, rows))(policies)
            by_demonstrator = action_log_prob(demonstrations.demonstrator, self.demonstrator_static, rollout)
            own = jnp.concatenate([log_prob, of_demonstrations], axis=2)
            demonstrator = jnp.concatenate([by_demonstrator, rows.log_prob], axis=1)
            log_prob = jnp.concatenate([own, demonstrator[None]])
            collected_by = jnp.concatenate([collected_by, jnp.full(rows.reward.shape[1], slots)])
            rollout = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), rollout, rows)
        return mixture_by_shares(log_prob, collected_by, rollout.valid, rollout.terminated | rollout.truncated)
