"""The samples of importance-sampled guided policy search: runs and their log-probs under every behaviour."""

from __future__ import annotations

import enum

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.guided.guides import ModelRollout
from klimb.types import Mixture, Rollout

NO_SHARE = -1e6
"""The log share of a behaviour without runs, finite so that it can be added and subtracted."""


class Behaviour(enum.IntEnum):
    """What sampled a run: the current policy, the best policy so far, or the guide."""

    POLICY = 0
    BEST = 1
    GUIDE = 2


class GuidedSamples(eqx.Module):
    """M runs from each of S start states: one of the policy, one of the best policy or the guide, the rest the guide's.

    Axes: leading memory slots and S starts, T steps, M runs, O observation, A action dimensions, B behaviours
    (`Behaviour`). log_prob: log q_b(a|s) of every step of every run. taken: which behaviour sampled each run.
    guide_mean, guide_std: the guide's action in these states. alive: the step counts. cut: the run has no data for this
    step, because its episode was truncated before, because it is not finite, or because there was no usable guide.
    """

    obs: Float[Array, "*slots T M O"]
    action: Float[Array, "*slots T M A"]
    reward: Float[Array, "*slots T M"]
    log_prob: Float[Array, "*slots B T M"]
    taken: Bool[Array, "*slots B M"]
    guide_mean: Float[Array, "*slots T M A"]
    guide_std: Float[Array, "*slots T A"]
    alive: Bool[Array, "*slots T M"]
    cut: Bool[Array, "*slots T M"]


def mixture(log_prob: Float[Array, "B T M"], taken: Bool[Array, "B M"], cut: Bool[Array, "T M"]) -> Mixture:
    """The mixture of the behaviours, in shares of the runs that are not cut; a share falls when one of its runs is cut.

    Weights come from log-probs summed over time, so the changes of the log share are added to the log-probs.

    log_prob: of every behaviour. taken: which behaviour sampled each run. cut: the run has no data for the step.
    """
    counts = jnp.sum(taken & ~cut[:, None], axis=2)
    share = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    log_share = jnp.where(counts > 0, jnp.log(jnp.maximum(share, 1e-6)), NO_SHARE).astype(log_prob.dtype)
    changes = jnp.diff(log_share, axis=0, prepend=jnp.zeros_like(log_share[:1]))
    return Mixture(log_prob + changes.T[:, :, None], jnp.zeros(len(log_prob), log_prob.dtype))


def own_runs(rollout: Rollout) -> tuple[ModelRollout, Bool[Array, "N T"]]:
    """The policy's own runs, one per column of the rollout, and the steps that they have no data for.

    A run begins with the first episode that starts in the first half of the column, else with the rollout. It is
    truncated where the rollout or the episode's time limit ends. After the end of the task its state does not change.

    rollout: `[T, N]` steps, with `time` and `env_state`.
    """
    assert rollout.env_state is not None
    assert rollout.time is not None
    length = len(rollout.time)
    first = jnp.argmax(rollout.time == 0, axis=0)
    first = jnp.where(first > length // 2, 0, first)
    step = jnp.arange(length)[:, None]
    rows = jnp.minimum(first + step, length - 1)
    run = jax.tree.map(
        lambda x: jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=0),
        (rollout.env_state, rollout.obs, rollout.action, rollout.reward, rollout.terminated, rollout.truncated),
    )
    env_state, obs, action, reward, terminated, truncated = run
    ended = _any_before(terminated & ~_any_before(truncated))
    cut = ((first + step >= length) | _any_before(truncated)) & ~ended
    columns = (env_state, obs, action, jnp.where(ended | cut, 0, reward), ~(ended | cut))
    return ModelRollout(*(jnp.moveaxis(x, 0, 1) for x in columns)), jnp.moveaxis(cut, 0, 1)


def _any_before(flag: Bool[Array, "T N"]) -> Bool[Array, "T N"]:
    """Whether the flag is set in any earlier step."""
    return jnp.cumsum(flag, axis=0) - flag > 0


def mean_return(samples: GuidedSamples, runs: slice) -> Float[Array, ""]:
    """The return of runs over the whole horizon, from the mean reward of the steps that are not cut; 0 if all are.

    samples: of one iteration, `[S, ...]`. runs: which of the M runs.
    """
    has_data = ~samples.cut[..., runs]
    horizon = samples.reward.shape[1]
    return horizon * jnp.sum(samples.reward[..., runs]) / jnp.maximum(jnp.sum(has_data), 1)
