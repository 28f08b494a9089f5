"""From a rollout and the critic's values to the batch that a rule sees."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from klimb.estimate.advantages import (
    ADVANTAGES,
    AdvantageKind,
    Data,
    Settings,
    advantage_residuals,
    discount_from_start,
    mean_length,
    normalise,
)
from klimb.estimate.values import values
from klimb.fields import UnitInterval, checked
from klimb.policies.critic import Critic
from klimb.types import Batch, Residuals, Rollout, Trajectory


@checked
class Estimator:
    """How advantages and value targets are estimated."""

    gamma: UnitInterval = 0.99
    """Discount of rewards, per step."""
    gae_lambda: UnitInterval = 0.95
    """λ of generalised advantage estimation: 1 is Monte Carlo, 0 one-step."""
    advantage: AdvantageKind = "gae"
    """How advantages are estimated."""
    n_step: Annotated[int, Field(ge=1, le=2**24)] = 5
    """Number of rewards summed before the critic's value is added, for advantage = n_step."""
    bootstrap: Literal["value"] | None = "value"
    """Estimate of the rewards after a time limit or the end of a rollout: the critic's value; none for 0."""
    discount_states: bool = False
    """Keep the factor γᵗ of the exact policy gradient, which is usually dropped."""
    normalize_advantage: bool = True
    """Scale each batch's advantages to standard deviation 1 and mean 0; those without a baseline keep their mean."""

    @property
    def uses_critic(self) -> bool:
        """Whether advantages or value targets depend on the critic's values."""
        return self.bootstrap == "value" or ADVANTAGES[self.advantage].baseline == "value"

    def values(self, critic: Critic, rollout: Rollout) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
        """V of every observation and of every true successor; zeros where nothing depends on them.

        critic: V. rollout: `[T, N]` steps.
        """
        if self.uses_critic:
            return values(critic, rollout)
        return jnp.zeros_like(rollout.reward), jnp.zeros_like(rollout.reward)

    def estimate(
        self,
        rollout: Rollout,
        value: Float[Array, "T N"],
        next_value: Float[Array, "T N"],
        *,
        fraction_done: Float[Array, ""] | float,
    ) -> Batch:
        """The T·N rows of a rollout with their advantages and value targets.

        Of whole episodes, and not normalised, advantages are multiplied by the mean length of the N trajectories: the
        mean over all rows is then the policy gradient's (1/N) Σ_n Σ_t, which the number of rows does not bias.

        rollout: `[T, N]`. value: V of its observations. next_value: V of the true successors, before any reset.
        fraction_done: completed part of the training, 0 to 1.
        """
        if self.bootstrap is None:
            next_value = jnp.where(rollout.cut_off, 0, next_value)
        data, settings = Data(rollout, value, next_value), Settings(self.gamma, self.gae_lambda, self.n_step)
        chosen = ADVANTAGES[self.advantage]
        advantage, value_target = chosen.estimate(data, settings)
        # The total return is discounted from the episode's start already, so that γᵗ is part of it.
        leading = self.discount_states and self.advantage != "total_return"
        discount = discount_from_start(rollout, self.gamma) if leading else jnp.ones_like(advantage)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
        weight = rows.valid.astype(rollout.reward.dtype)
        flat_advantage, scale = (advantage * discount).reshape(-1), jnp.ones(())
        if self.normalize_advantage:
            flat_advantage, scale = normalise(flat_advantage, weight, centre=chosen.centred)
        elif rollout.whole_episodes:
            scale = 1 / mean_length(rollout)
            flat_advantage = flat_advantage / scale
        residual, decay = advantage_residuals(self.advantage, data, settings)
        return Batch(
            obs=rollout.inputs,
            action=rows.action,
            log_prob=rows.log_prob,
            advantage=flat_advantage,
            value_target=value_target.reshape(-1),
            weight=weight,
            trajectory=Trajectory(rollout, Residuals(residual / scale, decay, discount)),
            fraction_done=fraction_done,
            advantage_scale=scale,
            gamma=self.gamma,
        )
