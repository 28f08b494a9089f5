"""The types that everything else passes around. Every array's axes are named here, once.

Axes: T time steps, N environments, B rows of a batch, A discrete actions, D action dimensions,
`obs` the axes of one observation, `act` the axes of one action (none for discrete actions).
"""

from __future__ import annotations

import enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from klimb.minibatches import take_rows


class Status(enum.IntEnum):
    """What became of one improvement step. Arrays hold the number; `message` is for people."""

    ACCEPTED = 0
    KL_TOO_LARGE = 1
    NO_IMPROVEMENT = 2
    NONFINITE = 3
    CG_BREAKDOWN = 4
    CRITIC_WARMUP = 5

    @property
    def message(self) -> str:
        """Cause and remedy, in one line."""
        return _STATUS_MESSAGES[self]


_STATUS_MESSAGES = {
    Status.ACCEPTED: "the step was taken",
    Status.KL_TOO_LARGE: "every step tried left the trust region: raise max_backtracks or the limit (max_kl, "
    "climb_kl), lower the learning rate, or collect larger batches so that the quadratic model of the KL is better",
    Status.NO_IMPROVEMENT: "no step tried improved the surrogate: the gradient is mostly noise (collect larger "
    "batches) or the policy is at a stationary point",
    Status.NONFINITE: "the batch, the gradient or the new policy held a NaN or an infinity: look at the "
    "environment's observations and rewards, and lower the learning rate",
    Status.CG_BREAKDOWN: "conjugate gradient met a direction of no curvature: raise damping",
    Status.CRITIC_WARMUP: "no step was tried: the critic is still learning the value of the policy that the run "
    "started from; lower critic_warmup for a shorter wait",
}


class Rollout(eqx.Module):
    """What every collector returns: T steps of N environments, in order. Leaves are `[T, N, ...]`.

    `next_obs` is the true successor of `obs`, before any reset, so at an episode's end it differs from the
    next row's `obs`. `log_prob` is log π_β(action | obs) under the behaviour policy that collected the data.
    `terminated` (no value beyond) and `truncated` (cut off; the value goes on) are never merged. Rows with
    `valid` False were inserted by an environment's own reset and are never trained on. `time` counts the
    steps since the episode began; None when unknown (then it counts from the start of the rollout). `physics` is
    the simulator's own state before the step, of classic control under a rule that plans with it, else None.
    """

    obs: Float[Array, "T N *obs"] | Int[Array, "T N *obs"]
    action: Float[Array, "T N *act"] | Int[Array, "T N *act"]
    log_prob: Float[Array, "T N"]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    next_obs: Float[Array, "T N *obs"] | Int[Array, "T N *obs"]
    valid: Bool[Array, "T N"]
    time: Int[Array, "T N"] | None = None
    physics: Float[Array, "T N *physics"] | None = None


class Residuals(eqx.Module):
    """What per-decision importance weighting makes advantages of: Â_t = residual_t + decay_t · ρ_{t+1} Â_{t+1}.

    residual: r_t + γ V(s'_t) − V(s_t), or without a baseline r_t (plus γ V(s'_t) where the data is cut off).
    decay: γλ, 0 where the episode ends. discount: the leading γᵗ of the exact gradient, or 1.
    """

    residual: Float[Array, "T N"]
    decay: Float[Array, "T N"]
    discount: Float[Array, "T N"]


class Mixture(eqx.Module):
    """The K policies that collected a rollout between them: log-probs of every action under each, and log shares."""

    log_prob: Float[Array, "K T N"]
    log_share: Float[Array, " K"]


class Batch(eqx.Module):
    """What every rule consumes: B weighted rows. Every mean over a batch is Σ w x / Σ w.

    A row of weight 0 is padding. With weight d(s) π(a|s) over all (s, a) the same means are exact
    expectations (`klimb.tabular.exact_batch`), which is how rules are checked against theory.
    `rollout` keeps the `[T, N]` arrangement for rules that need rewards and time, else None.
    `progress` is the fraction of training done, for hyperparameters that are annealed.
    `residuals` and `mixture` go with the rollout, for importance weights over time; None where not needed.
    """

    obs: Float[Array, " B *obs"] | Int[Array, " B *obs"]
    action: Float[Array, " B *act"] | Int[Array, " B *act"]
    log_prob: Float[Array, " B"]
    advantage: Float[Array, " B"]
    value_target: Float[Array, " B"]
    weight: Float[Array, " B"]
    rollout: Rollout | None = None
    progress: Float[Array, ""] | float = 0.0
    residuals: Residuals | None = None
    mixture: Mixture | None = None

    def mean(self, value: Float[Array, " B"]) -> Float[Array, ""]:
        """Σ w x / Σ w. A row of weight 0 has no say, whatever it holds."""
        return weighted_mean(value, self.weight)

    def blank_padding(self) -> Batch:
        """The same batch with zeros in the rows of weight 0: a NaN there would spread through gradients (0·NaN)."""
        counted = self.weight > 0

        def blank(column: Array) -> Array:
            return jnp.where(jnp.reshape(counted, counted.shape + (1,) * (column.ndim - 1)), column, 0)

        columns = (self.obs, self.action, self.log_prob, self.advantage, self.value_target, self.weight)
        obs, action, log_prob, advantage, value_target, weight = map(blank, columns)
        arranged = (self.rollout, self.progress, self.residuals, self.mixture)
        return Batch(obs, action, log_prob, advantage, value_target, weight, *arranged)

    def take(self, rows: Int[Array, " b"]) -> Batch:
        """A minibatch: some of the rows, without the rollout they came from."""
        columns = (self.obs, self.action, self.log_prob, self.advantage, self.value_target, self.weight)
        obs, action, log_prob, advantage, value_target, weight = take_rows(columns, rows)
        return Batch(obs, action, log_prob, advantage, value_target, weight, progress=self.progress)


def weighted_mean(value: Float[Array, " B *rest"], weight: Float[Array, " B"]) -> Float[Array, " *rest"]:
    """Σ w x / Σ w over the leading axis; a non-finite row of weight 0 does not spread (0·∞ would be NaN)."""
    weight = jnp.reshape(weight, weight.shape + (1,) * (value.ndim - 1))
    total = jnp.sum(weight, axis=0)
    return jnp.sum(jnp.where(weight > 0, value * weight, 0), axis=0) / jnp.where(total > 0, total, 1)


class UpdateInfo(eqx.Module):
    """How far one step moved and whether it kept its promise. Scalars, from the parameters *returned*.

    surrogate_gain: mean of (π_new/π_old − 1) Â, in the units of the batch's advantages.
    kl_old_new: mean over states of KL(π_old‖π_new); kl_new_old: of KL(π_new‖π_old); kl_max: the largest
        over states, in the direction the rule constrains.
    tv: mean over states of the total variation in [0, 1]; tv_max: over the worst state. Closed form where
        there is one; for Gaussians of several dimensions `tv` is the sampled ½ mean |ratio − 1| and `tv_max`
        the Pinsker / Bretagnolle-Huber upper bound at the worst state.
    entropy: mean entropy of the returned policy (nats).
    ess: effective sample size of the ratios to the policies that collected the batch, as a fraction; on the old
        policy's own data 1 for an unmoved policy.
    status: a `Status`. extra: the rule's own scalars by name (CG residual, backtracks, clip fraction ...), after what
        the step certificate is made of (`klimb.estimate.certificate.STEP`).
    """

    surrogate_gain: Float[Array, ""]
    kl_old_new: Float[Array, ""]
    kl_new_old: Float[Array, ""]
    kl_max: Float[Array, ""]
    tv: Float[Array, ""]
    tv_max: Float[Array, ""]
    entropy: Float[Array, ""]
    ess: Float[Array, ""]
    status: Int[Array, ""]
    extra: dict[str, Float[Array, ""]]


class TrainState(eqx.Module):
    """Everything a run is made of: exactly what a checkpoint holds. Leaves carry a leading axis of seeds.

    `previous` is what the last iteration leaves for the next to measure its promise against. `history` holds
    the last rollouts for a rule that learns from several, else ().
    """

    policy: PyTree
    critic: PyTree
    rule_state: PyTree
    critic_state: PyTree
    collector_state: PyTree
    history: PyTree
    previous: PyTree
    iteration: Int[Array, ""]
    env_steps: UInt32[Array, ""]
    key: PRNGKeyArray


def trainable_filter(policy: PyTree) -> PyTree:
    """True for every leaf that gradients move: inexact arrays, except the normaliser's running statistics."""
    from klimb.policies.normalizer import Normalizer

    def mark(node: Any) -> PyTree:
        if isinstance(node, Normalizer):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mark, policy, is_leaf=lambda node: isinstance(node, Normalizer))
