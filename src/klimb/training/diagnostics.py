"""What is recorded of an iteration: the step's own measurements, the certificate, the episodes, the critic."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from klimb.collect.episodes import EpisodeSummary
from klimb.estimate.certificate import certificate
from klimb.estimate.improvement import MeanResidual, mean_residual, realised_improvement
from klimb.estimate.values import explained_variance, values
from klimb.improve.critic_fit import CriticInfo
from klimb.improve.divergences import kl_divergence
from klimb.policies.critic import Critic
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Rollout, TrainState, UpdateInfo

Metrics = dict[str, Array]


@dataclass(frozen=True)
class Diagnostics:
    """The metrics of an iteration.

    certificate: whether the step certificate is among them. gamma: discount per step. has_values: whether there is a
    critic; without one what it explains, and the realised improvement, are NaN.
    """

    certificate: bool
    gamma: float | Array
    has_values: bool

    def init(self) -> MeanResidual:
        """What is remembered before the first iteration: nothing known."""
        return MeanResidual(_unknown(), _unknown())

    def measure(
        self,
        state: TrainState,
        batch: Batch,
        data: Batch,
        value: Float[Array, "T N"],
        next_value: Float[Array, "T N"],
        info: UpdateInfo,
        fit: CriticInfo,
        episodes: EpisodeSummary,
    ) -> Metrics:
        """Scalars by name.

        state: before the step. batch: the newest rows. data: what the rule learned from. value, next_value: of the
        newest rollout's observations and successors, before the fit. info, fit: of the step and of the critic's fit.
        episodes: those that ended in the rollout.
        """
        metrics = {
            **episode_metrics(episodes),
            **step_metrics(info),
            "explained_variance": self._explained_variance(value, batch),
            "value_loss": fit.value_loss,
        }
        if self.certificate:
            assert batch.trajectory is not None
            now = self._mean_residual(batch.trajectory.rollout, value, next_value)
            metrics |= {**certificate(info, data, self.gamma), **realised_improvement(now, state.previous)}
        return metrics

    def _explained_variance(self, value: Float[Array, "T N"], batch: Batch) -> Array:
        if not self.has_values:
            return _unknown()
        return explained_variance(value.reshape(-1), batch.value_target, batch.weight)

    def _mean_residual(
        self, rollout: Rollout, value: Float[Array, "T N"], next_value: Float[Array, "T N"]
    ) -> MeanResidual:
        if not self.has_values:
            return MeanResidual(_unknown(), _unknown())
        return mean_residual(rollout, value, next_value, gamma=self.gamma)

    def normalizer_move(self, improved: PyTree, acting: PyTree, batch: Batch, exact: Bool[Array, ""]) -> Metrics:
        """What the update of the observation statistics changed: the KL between the policies before and after it.

        improved: after the step. acting: after the update; it acts next. batch: the newest rows. exact: whether the two
        are the same function for all of them, to rounding; then the KL is 0 and not computed.
        """
        if not self.certificate:
            return {}

        def kl() -> Array:
            rows = batch.blank_padding()
            before, after = (action_distribution(policy, rows.obs) for policy in (improved, acting))
            return rows.mean(kl_divergence(before, after))

        return {"kl_normalizer": jax.lax.cond(exact, lambda: jnp.zeros((), batch.weight.dtype), kl)}

    def remember(self, state: TrainState, critic: Critic, rollout: Rollout) -> MeanResidual:
        """What the next iteration's realised improvement is measured against.

        state: before the step. critic: after its fit. rollout: the newest.
        """
        if not (self.certificate and self.has_values):
            return state.previous
        return mean_residual(rollout, *values(critic, rollout), gamma=self.gamma)


def _unknown() -> Array:
    """NaN, not weakly typed: the second call of a program would be traced again."""
    return jnp.zeros(()) * jnp.nan


def episode_metrics(episodes: EpisodeSummary) -> Metrics:
    """The episodes that ended in a rollout, by name."""
    faults = {} if episodes.faults is None else {"env_faults": jnp.asarray(episodes.faults)}
    late = {} if episodes.late_rows is None else {"late_rows": jnp.asarray(episodes.late_rows)}
    return {
        **faults,
        **late,
        "episode_return": jnp.asarray(episodes.mean_return),
        "episode_length": jnp.asarray(episodes.mean_length),
        "episodes": jnp.asarray(episodes.count),
    }


def step_metrics(info: UpdateInfo) -> Metrics:
    """A step's `UpdateInfo` by name, with the rule's own metrics; its errors belong to the certificate."""
    fields = {name: value for name, value in vars(info).items() if name not in ("errors", "extra")}
    return {**fields, **info.extra}
