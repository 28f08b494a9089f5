"""The runs of one iteration of importance-sampled guided policy search, from the starts of a rollout."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.guided.guides import Guide, Guides, ModelRollout
from klimb.guided.samples import Behaviour, GuidedSamples, own_runs
from klimb.policies.policy import action_distribution
from klimb.types import Rollout


@dataclass(frozen=True)
class Sampler:
    """Plans a guide from every start, and samples runs of the policy, of the best policy so far and of the guide.

    guides: plans and paths through the environment. policy: π_θ. best: the best policy so far.
    imitates: whether the policy imitates the guides; then the second run is the guide's, since the best policy does not
    matter yet, and plans start from random or demonstrated actions. adaptation: κ. guiding_samples: runs of each guide
    beside that one.
    """

    guides: Guides
    policy: PyTree
    best: PyTree
    imitates: Bool[Array, ""]
    adaptation: float | Array
    guiding_samples: int

    def sample(self, key: PRNGKeyArray, rollout: Rollout) -> tuple[GuidedSamples, Float[Array, ""]]:
        """Runs from the start of each column, and the share of usable guides.

        key: of plans and noise. rollout: of the policy, `[T, N]`, with `time` and `env_state`.
        """
        own, cut = own_runs(rollout)
        samples, usable = jax.vmap(self._from_start)(jax.random.split(key, len(cut)), own, cut)
        return samples, jnp.mean(usable, dtype=samples.reward.dtype)

    def _from_start(
        self, key: PRNGKeyArray, own: ModelRollout, own_cut: Bool[Array, " T"]
    ) -> tuple[GuidedSamples, Bool[Array, ""]]:
        """All runs from where the policy's own run started, and whether there is a usable guide."""
        key_plan, key_second, key_guide = jax.random.split(key, 3)
        guide = self._guide(key_plan, own)
        runs = self._runs(key_second, key_guide, guide, own)
        # In the order of `Behaviour`.
        log_prob = jnp.stack(
            [_policy_log_prob(self.policy, runs), _policy_log_prob(self.best, runs), _guide_log_prob(guide, runs)]
        )
        times = jnp.arange(self.guides.horizon)
        guide_mean = jax.vmap(jax.vmap(guide.mean), (None, 0))(times, runs.env_state)
        cut = self._without_guide(guide, own_cut, runs) | _nonfinite_so_far(runs, guide_mean, log_prob)
        samples = _as_samples(runs, guide, guide_mean, log_prob, self._behaviour(), cut)
        return samples, guide.usable

    def _guide(self, key: PRNGKeyArray, own: ModelRollout) -> Guide:
        """The guide around the best plan, from the policy's actions and from planned or its own sampled ones."""
        guides, start = self.guides, own.env_state[0]
        mode = guides.clipped(guides.by_mode(self.policy, start).action)
        other = jax.lax.cond(self.imitates, lambda: guides.planned(key, start), lambda: guides.clipped(own.action))
        return guides.refined(self.policy, self.adaptation, start, jnp.stack([mode, other]))

    def _runs(self, key_second: PRNGKeyArray, key_guide: PRNGKeyArray, guide: Guide, own: ModelRollout) -> ModelRollout:
        """The policy's own run, one of the best policy (of the guide, during imitation), and the guide's: `[M, T]`."""
        guides, start = self.guides, own.env_state[0]
        guided = jax.vmap(lambda key: guides.run(key, guide.sample, start))(
            jax.random.split(key_guide, self.guiding_samples)
        )
        second = jax.lax.cond(
            self.imitates,
            lambda: guides.run(key_second, guide.sample, start),
            lambda: guides.by_policy(key_second, self.best, start),
        )
        single = [jax.tree.map(lambda x: x[None], run) for run in (own, second)]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *single, guided)

    def _behaviour(self) -> Int[Array, " M"]:
        """Which behaviour sampled each of the runs."""
        second = jnp.where(self.imitates, Behaviour.GUIDE, Behaviour.BEST)
        of_guide = [Behaviour.GUIDE] * self.guiding_samples
        return jnp.array([Behaviour.POLICY, Behaviour.GUIDE, *of_guide]).at[1].set(second)

    def _without_guide(self, guide: Guide, own_cut: Bool[Array, " T"], runs: ModelRollout) -> Bool[Array, "M T"]:
        """The steps without data: all of a guide that is not usable, and those after the policy's own run was cut."""
        cut = jnp.broadcast_to(~guide.usable, runs.alive.shape)
        return cut.at[1].set(~guide.usable & self.imitates).at[0].set(own_cut)


def _nonfinite_so_far(
    runs: ModelRollout, guide_mean: Float[Array, "M T A"], log_prob: Float[Array, "B M T"]
) -> Bool[Array, "M T"]:
    """Whether a run has had a non-finite number, in this step or before."""
    columns = (runs.obs, runs.action, guide_mean, runs.reward[..., None], jnp.moveaxis(log_prob, 0, -1))
    finite = jnp.isfinite(sum(jnp.sum(x, axis=-1) for x in columns))
    return jnp.cumsum(~finite, axis=1) > 0


def _as_samples(
    runs: ModelRollout,
    guide: Guide,
    guide_mean: Float[Array, "M T A"],
    log_prob: Float[Array, "B M T"],
    behaviour: Int[Array, " M"],
    cut: Bool[Array, "M T"],
) -> GuidedSamples:
    """With the steps before the runs, and zeros in steps that do not count."""
    alive = runs.alive & ~cut

    def steps_first(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1)

    def masked(x: Float[Array, "M T *rest"]) -> Float[Array, "T M *rest"]:
        return steps_first(jnp.where(alive[..., None], x, 0))

    return GuidedSamples(
        obs=masked(runs.obs),
        action=masked(runs.action),
        reward=steps_first(jnp.where(alive, runs.reward, 0)),
        log_prob=jnp.swapaxes(jnp.where(alive, log_prob, 0), 1, 2),
        taken=behaviour == jnp.arange(len(Behaviour))[:, None],
        guide_mean=masked(guide_mean),
        guide_std=jnp.sqrt(jnp.diagonal(guide.covariance, axis1=1, axis2=2)),
        alive=steps_first(alive),
        cut=steps_first(cut),
    )


def _policy_log_prob(policy: PyTree, runs: ModelRollout) -> Float[Array, "M T"]:
    return action_distribution(policy, runs.obs, axes=2).log_prob(runs.action)


def _guide_log_prob(guide: Guide, runs: ModelRollout) -> Float[Array, "M T"]:
    times = jnp.arange(runs.reward.shape[1])
    return jax.vmap(jax.vmap(guide.log_prob), (None, 0, 0))(times, runs.env_state, runs.action)
