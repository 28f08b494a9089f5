"""PPO: several epochs of minibatch ascent on a surrogate that stops paying once the ratio leaves its clip range."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic.dataclasses import dataclass

from klimb.improve.ascent import Ascent, annealed
from klimb.improve.divergences import kl_divergence
from klimb.improve.objectives import (
    action_distribution,
    choose,
    finite_batch,
    finite_move,
    flatten,
    log_ratio,
    update_info,
)
from klimb.improve.rule import RULE, Count, Fraction, NonNegative, Positive
from klimb.minibatches import require_divisible, shuffled
from klimb.types import Batch, Status, UpdateInfo


@dataclass(frozen=True, config=RULE)
class PPO:
    """Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017).

    maximise mean min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) + ent_coef · entropy,   ρ = π_θ(a|s)/π_old(a|s).
    The clip limits what the objective pays for, not how far the policy moves: the KL reported is a result,
    not a guarantee.
    """

    learning_rate: Positive = 3e-4
    """Adam's step size."""
    clip_eps: Fraction = 0.2
    """ε: the ratio's range that still pays."""
    epochs: Count = 10
    """Passes over the batch."""
    num_minibatches: Count = 4
    """Minibatches a pass; has to divide num_steps × num_envs."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Positive | None = 0.5
    """Limit on the gradient's global norm; none for no limit."""
    target_kl: Positive | None = None
    """Aimed at: no further epoch once the mean KL(π_old‖π_new) has passed it; none for all epochs."""
    anneal_learning_rate: bool = False
    """Lower the learning rate linearly to 0 over the run."""

    def init(self, policy: PyTree) -> optax.OptState:
        """Adam's moments."""
        return self._ascent.init(flatten(policy).theta)

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: optax.OptState, batch: Batch
    ) -> tuple[PyTree, optax.OptState, UpdateInfo]:
        """All epochs on one batch. `info.extra`: clip_fraction, epochs_done, grad_norm of the last minibatch."""
        batch = batch.blank_padding()
        num_rows = batch.log_prob.shape[0]
        require_divisible(num_rows, self.num_minibatches, what="num_minibatches")
        theta, rebuild = flatten(policy)
        old = action_distribution(policy, batch.obs)
        learning_rate = annealed(self.learning_rate, batch.progress, self.anneal_learning_rate)

        def ascend(carry: tuple, rows: Array) -> tuple[tuple, Array]:
            vector, moments = carry
            gradient = jax.grad(lambda v: self._objective(rebuild(v), batch.take(rows)))(vector)
            vector, moments = self._ascent.climb(vector, gradient, moments, learning_rate)
            return (vector, moments), jnp.linalg.norm(gradient)

        def epoch(carry: tuple) -> tuple:
            k, key, vector, moments, _, _ = carry
            key, key_shuffle = jax.random.split(key)
            order = shuffled(key_shuffle, num_rows, self.num_minibatches)
            (vector, moments), norms = jax.lax.scan(ascend, (vector, moments), order)
            if self.target_kl is None:
                kl = jnp.zeros((), vector.dtype)
            else:
                new = action_distribution(rebuild(vector), batch.obs)
                kl = batch.mean(kl_divergence(old, new))
            return k + 1, key, vector, moments, kl, norms[-1]

        def unfinished(carry: tuple) -> Array:
            limit = jnp.inf if self.target_kl is None else self.target_kl
            return (carry[0] < self.epochs) & (carry[4] <= limit)

        zero = jnp.zeros((), theta.dtype)
        start = (jnp.int32(0), key, theta, state, zero, zero)
        epochs_done, _, new_theta, new_state, _, grad_norm = jax.lax.while_loop(unfinished, epoch, start)

        new = action_distribution(rebuild(new_theta), batch.obs)
        accepted = finite_batch(batch) & jnp.all(jnp.isfinite(new_theta)) & finite_move(old, new, batch)
        new = choose(accepted, new, old)
        ratio = jnp.exp(log_ratio(new, batch))
        info = update_info(
            old,
            new,
            batch,
            jnp.where(accepted, Status.ACCEPTED, Status.NONFINITE),
            clip_fraction=batch.mean((jnp.abs(ratio - 1) > self.clip_eps).astype(theta.dtype)),
            epochs_done=epochs_done,
            grad_norm=grad_norm,
        )
        return choose(accepted, rebuild(new_theta), policy), choose(accepted, new_state, state), info

    @property
    def _ascent(self) -> Ascent:
        return Ascent.make("adam", self.max_grad_norm)

    def _objective(self, policy: PyTree, batch: Batch) -> Float[Array, ""]:
        distribution = action_distribution(policy, batch.obs)
        ratio = jnp.exp(log_ratio(distribution, batch))
        clipped = jnp.clip(ratio, 1 - self.clip_eps, 1 + self.clip_eps)
        objective = batch.mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
        if self.ent_coef == 0:
            return objective
        return objective + self.ent_coef * batch.mean(distribution.entropy())
