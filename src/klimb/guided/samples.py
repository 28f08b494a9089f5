"""The samples of importance-sampled guided policy search: who has run from where, and how likely it was to whom."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from klimb.guided.guides import ModelRollout
from klimb.types import Mixture, Rollout

NEVER = -1e6  # the log share of a behaviour that has taken no run, finite so that it can be added and taken away


class GuidedSamples(eqx.Module):
    """M runs from each of S start states: the policy's, one of the best policy or once more of the guide, the guide's.

    Axes: leading memory slots and S starts, T steps, M runs, O observation, A action dimensions, B = 3 behaviours
    (policy, best, guide). log_prob: log q_b(a|s) of every step of every run. taken: by which behaviour each run was.
    guide_mean: what the guide would do in these states, with deviation guide_std. alive: the decision counts. cut: the
    run says nothing of this step: its episode's clock cut it off before, it is not finite, or the guide was none.
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
    """The behaviours in shares of the runs that go on, which fall when a run of theirs is cut.

    The weights are of log-probs summed over time: a share that changes is added as its changes.
    """
    counts = jnp.sum(taken & ~cut[:, None], axis=2)
    share = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    level = jnp.where(counts > 0, jnp.log(jnp.maximum(share, 1e-6)), NEVER).astype(log_prob.dtype)
    changes = jnp.diff(level, axis=0, prepend=jnp.zeros_like(level[:1]))
    return Mixture(log_prob + changes.T[:, :, None], jnp.zeros(len(log_prob), log_prob.dtype))


def own_runs(rollout: Rollout) -> tuple[ModelRollout, Bool[Array, "N T"]]:
    """The policy's own runs, one a column, and the rows that it has none for.

    A run begins where the column's first episode does, or with the rollout where that leaves more steps, and is cut off
    where the rollout ends or the clock sets the next episode going. After the end of the task it stays where it is.
    """
    assert rollout.env_state is not None
    assert rollout.time is not None
    length = len(rollout.time)
    first = jnp.argmax(rollout.time == 0, axis=0)
    first = jnp.where(first > length // 2, 0, first)
    since = jnp.arange(length)[:, None]
    rows = jnp.minimum(first + since, length - 1)
    run = jax.tree.map(
        lambda x: jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=0),
        (rollout.env_state, rollout.obs, rollout.action, rollout.reward, rollout.terminated, rollout.truncated),
    )
    physics, obs, action, reward, terminated, truncated = run
    dead = _before(terminated & ~_before(truncated))
    cut = ((first + since >= length) | _before(truncated)) & ~dead
    columns = (physics, obs, action, jnp.where(dead | cut, 0, reward), ~(dead | cut))
    return ModelRollout(*(jnp.moveaxis(x, 0, 1) for x in columns)), jnp.moveaxis(cut, 0, 1)


def _before(flag: Bool[Array, "T N"]) -> Bool[Array, "T N"]:
    """Whether there has been one in the steps before."""
    return jnp.cumsum(flag, axis=0) - flag > 0


def mean_return(samples: GuidedSamples, runs: slice) -> Float[Array, ""]:
    """Of runs as long as the horizon, from the mean reward of the steps that were not cut; 0 without any."""
    there = ~samples.cut[..., runs]
    horizon = samples.reward.shape[1]
    return horizon * jnp.sum(samples.reward[..., runs]) / jnp.maximum(jnp.sum(there), 1)
