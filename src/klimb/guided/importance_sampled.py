"""Importance-sampled guided policy search: climbing Φ on samples that optimised paths have brought."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from klimb.guided.guides import Guide, Guides, ModelRollout
from klimb.guided.imitation import imitate
from klimb.guided.objective import Phi, phi
from klimb.guided.projection import require_gaussian
from klimb.guided.samples import GuidedSamples, mean_return, mixture, own_runs
from klimb.improve.acceptance import accept_or_reject, choose
from klimb.improve.divergences import kl_divergence
from klimb.improve.optimizer import Optimizer
from klimb.improve.rule import Traits
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution, observe
from klimb.types import Batch, Metric, Rollout, Status, UpdateInfo

LEAST, MOST, FACTOR = 1e-6, 1e2, 10.0  # of the regularisation w_r, and by what it changes (Levine and Koltun 2013)
MAX_GRAD_NORM = 1.0


SAMPLED_TRAITS = Traits(
    title="Guided policy search",
    uses_critic=False,
    records_env_state=True,
    binds=True,
    metrics={
        "phi": Metric("Φ", "objective Φ of the policy returned, on the newest samples"),
        "phi_ess": Metric("Effective sample size of Φ", "of its weights, as a fraction; mean over steps and starts"),
        "regularisation": Metric("Regularisation", "w_r, the weight of log Z in Φ"),
        "guide_return": Metric("Return of the guides", "of their newest runs: mean reward times the horizon"),
        "policy_return": Metric("Return of the policy", "of its newest runs: mean reward times the horizon"),
        "gain_over_best": Metric("Gain over the best policy", "return above the best policy's, from the same starts"),
        "climb_steps": Metric("Steps up Φ", "gradient steps taken within climb_kl"),
        "sound_guides": Metric("Usable guides", "share of plans around which a valid controller was found"),
    },
)


class SampledState(NamedTuple):
    """Samples `[K, S, ...]` of the last K iterations, the number of all, the arrays of the best policy, and w_r."""

    samples: GuidedSamples
    iterations: Int[Array, ""]
    best: PyTree
    regularisation: Float[Array, ""]


@dataclass(frozen=True)
class ImportanceSampled:
    """The rule, in an environment (Levine and Koltun 2013, algorithm 1).

    Every iteration plans a guide from each of the `starts` columns of the rollout, and has the guide and the best
    policy so far run from there as well. In the first iterations the policy imitates the guides; then it climbs Φ,
    from itself or from the best policy, whichever has done better from these starts.
    Fields: `klimb.guided.search.GuidedPolicySearch`.
    """

    guides: Guides
    starts: int
    learns_scale: bool
    fresh: bool
    guiding_samples: int
    adaptation: float | Array
    supervised_iterations: int
    supervised_steps: int
    supervised_learning_rate: float | Array
    memory: int
    subset: int
    regularisation: float | Array
    gradient_steps: int
    climb_kl: float | Array
    learning_rate: float | Array

    @property
    def traits(self) -> Traits:
        # The policy's normaliser learns from the guides, while these teach.
        return replace(
            SAMPLED_TRAITS,
            binds=False,
            env_steps_per_row=self._runs_per_start,
            owns_normalizer=self.supervised_iterations > 0,
        )

    @property
    def _runs_per_start(self) -> int:
        """The policy's own run, one of the best policy, and those of the guide."""
        return 2 + self.guiding_samples

    def init(self, policy: PyTree) -> SampledState:
        """No samples yet; the policy given is the best. ConfigError where it is not a Gaussian one."""
        runs = (self.memory, self.starts, self.guides.horizon, self._runs_per_start)
        environment = self.guides.environment
        obs = jax.eval_shape(lambda key: environment.observe(environment.initial(key)), jax.random.key(0))
        require_gaussian(policy, obs)
        sizes = (*runs, len(self.guides.actions.low))
        samples = GuidedSamples(
            obs=jnp.zeros((*runs, *obs.shape), obs.dtype),
            action=jnp.zeros(sizes, obs.dtype),
            reward=jnp.zeros(runs, obs.dtype),
            log_prob=jnp.zeros((*runs[:2], 3, *runs[2:]), obs.dtype),
            taken=jnp.zeros((*runs[:2], 3, runs[-1]), bool),
            guide_mean=jnp.zeros(sizes, obs.dtype),
            guide_std=jnp.ones((*runs[:3], sizes[-1]), obs.dtype),
            alive=jnp.zeros(runs, bool),
            cut=jnp.ones(runs, bool),
        )
        regularisation = jnp.asarray(self.regularisation, obs.dtype)
        return SampledState(samples, jnp.int32(0), eqx.filter(policy, eqx.is_array), regularisation)

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: SampledState, batch: Batch
    ) -> tuple[PyTree, SampledState, UpdateInfo]:
        """New samples; then an imitation of all guides remembered, or a climb of Φ.

        `info.extra`: phi and its effective sample size (mean over steps and starts) on the newest samples, of where the
        step has led; regularisation (w_r); guide_return and policy_return, from the mean reward of the newest runs, for
        `horizon` steps; gain_over_best, of the policy that collected over the best one before it, from the same starts;
        climb_steps up Φ within climb_kl, without one of which the status is KL_TOO_LARGE; sound_guides, the share of
        plans that there is a controller around.
        """
        assert batch.trajectory is not None
        rollout = batch.trajectory.rollout
        key_runs, key_fit = jax.random.split(key)
        arrays, static = eqx.partition(policy, eqx.is_array)
        supervised = state.iterations < self.supervised_iterations
        new, sound = self._sample(key_runs, policy, eqx.combine(state.best, static), state.iterations, rollout)
        slot = state.iterations % self.memory
        samples = jax.tree.map(lambda rows, row: rows.at[slot].set(row), state.samples, new)

        # Over the steps that both have taken.
        apart = jnp.where(new.cut[..., 0], 0, new.reward[..., 0] - new.reward[..., 1])
        gains = jnp.where(supervised, 0, jnp.sum(apart, axis=1))
        gain, error = jnp.mean(gains), jnp.std(gains) / math.sqrt(max(self.starts - 1, 1))
        worse, better = gain < -error, gain > error
        best = choose(worse, state.best, arrays)
        factor = jnp.where(worse, FACTOR, jnp.where(better, 1 / FACTOR, 1))
        regularisation = jnp.clip(state.regularisation * factor, LEAST, MOST)

        def copy(arrays: PyTree) -> tuple[PyTree, Array]:
            scaled = eqx.combine(arrays, static)
            if self.learns_scale:
                obs = new.obs.reshape(-1, new.obs.shape[-1])
                scaled = observe(scaled, obs, new.alive.reshape(-1).astype(obs.dtype))
            copied = imitate(
                key_fit,
                scaled,
                samples,
                steps=self.supervised_steps,
                learning_rate=self.supervised_learning_rate,
            )
            return eqx.filter(copied, eqx.is_array), jnp.int32(0)

        def climb(arrays: PyTree) -> tuple[PyTree, Array]:
            higher, steps = self._climb(eqx.combine(arrays, static), samples, slot, regularisation, batch)
            return eqx.filter(higher, eqx.is_array), steps

        improved, steps = jax.lax.cond(supervised, copy, climb, best)
        candidate = eqx.combine(improved, static)
        found = self._phi(candidate, new, regularisation)
        new_policy, new_state, info = accept_or_reject(
            policy,
            state,
            candidate,
            SampledState(samples, state.iterations + 1, best, regularisation),
            batch,
            phi=jnp.mean(found.value),
            phi_ess=jnp.mean(found.ess),
            regularisation=regularisation,
            guide_return=mean_return(new, slice(2, None)),
            policy_return=mean_return(new, slice(0, 1)),
            gain_over_best=gain,
            climb_steps=steps,
            sound_guides=sound,
        )
        stayed = ~supervised & ~worse & (steps == 0) & (info.status == Status.ACCEPTED)
        status = jnp.where(stayed, Status.KL_TOO_LARGE, info.status)
        return new_policy, new_state, eqx.tree_at(lambda i: i.status, info, status.astype(info.status.dtype))

    def _sample(
        self, key: PRNGKeyArray, policy: PyTree, best: PyTree, count: Array, rollout: Rollout
    ) -> tuple[GuidedSamples, Float[Array, ""]]:
        """The runs of one iteration, and the share of sound guides."""
        guides = self.guides
        imitates = count < self.supervised_iterations
        behaviour = jnp.array([0, 2, *[2] * self.guiding_samples]).at[1].set(jnp.where(imitates, 2, 1))
        # A fresh policy is no one to adapt to.
        adaptation = jnp.where((count == 0) & self.fresh, 0, self.adaptation)

        def from_start(key: PRNGKeyArray, own: ModelRollout, cut: Array) -> tuple[GuidedSamples, Array]:
            key_plan, key_best, key_guide = jax.random.split(key, 3)
            start = own.physics[0]
            mode = guides.clipped(guides.by_mode(policy, start).action)
            other = jax.lax.cond(imitates, lambda: guides.planned(key_plan, start), lambda: guides.clipped(own.action))
            guide = guides.refined(policy, adaptation, start, jnp.stack([mode, other]))
            guided = jax.vmap(lambda key: guides.run(key, guide.sample, start))(
                jax.random.split(key_guide, self.guiding_samples)
            )
            # There is no one to judge while the policy imitates.
            again = jax.lax.cond(
                imitates,
                lambda: guides.run(key_best, guide.sample, start),
                lambda: guides.by_policy(key_best, best, start),
            )
            alone = [jax.tree.map(lambda x: x[None], path) for path in (own, again)]
            runs = jax.tree.map(lambda *x: jnp.concatenate(x), *alone, guided)
            log_prob = jnp.stack([_of_policy(policy, runs), _of_policy(best, runs), _of_guide(guide, runs)])
            times = jnp.arange(guides.horizon)
            guide_mean = jax.vmap(jax.vmap(guide.mean), (None, 0))(times, runs.physics)
            # A guide that is none shows nothing, nor does a run from where it is not finite any more.
            cuts = jnp.broadcast_to(~guide.sound, runs.alive.shape)
            cuts = cuts.at[1].set(~guide.sound & imitates).at[0].set(cut)
            sums = (runs.obs, runs.action, guide_mean, runs.reward[..., None], jnp.moveaxis(log_prob, 0, -1))
            finite = jnp.isfinite(sum(jnp.sum(x, axis=-1) for x in sums))
            cuts = cuts | (jnp.cumsum(~finite, axis=1) > 0)
            alive = runs.alive & ~cuts
            said = lambda x: jnp.where(alive[..., None], x, 0)  # noqa: E731
            steps_first = lambda x: jnp.swapaxes(x, 0, 1)  # noqa: E731
            samples = GuidedSamples(
                obs=steps_first(said(runs.obs)),
                action=steps_first(said(runs.action)),
                reward=steps_first(jnp.where(alive, runs.reward, 0)),
                log_prob=jnp.swapaxes(jnp.where(alive, log_prob, 0), 1, 2),
                taken=behaviour == jnp.arange(3)[:, None],
                guide_mean=steps_first(said(guide_mean)),
                guide_std=jnp.sqrt(jnp.diagonal(guide.covariance, axis1=1, axis2=2)),
                alive=steps_first(alive),
                cut=steps_first(cuts),
            )
            return samples, guide.sound

        own, cut = own_runs(rollout)
        samples, sound = jax.vmap(from_start)(jax.random.split(key, self.starts), own, cut)
        return samples, jnp.mean(sound, dtype=samples.reward.dtype)

    def _climb(
        self, policy: PyTree, samples: GuidedSamples, slot: Array, regularisation: Array, batch: Batch
    ) -> tuple[PyTree, Int[Array, ""]]:
        """Steps up the mean of Φ over the chosen starts, halved from where one would leave the KL."""
        theta, rebuild = flatten(policy)
        chosen = self._chosen(policy, samples, slot, regularisation)
        optimizer = Optimizer.make("adam", MAX_GRAD_NORM)
        gradient = jax.grad(lambda vector: jnp.mean(self._phi(rebuild(vector), chosen, regularisation).value))
        obs = batch.obs
        before = action_distribution(policy, obs)

        def climb(_: Array, carry: tuple) -> tuple:
            vector, moments, rate, taken = carry
            higher, moved = optimizer.apply_gradient(vector, gradient(vector), moments, rate)
            near = batch.mean(kl_divergence(before, action_distribution(rebuild(higher), obs))) <= self.climb_kl
            vector, moments = choose(near, (higher, moved), (vector, moments))
            return vector, moments, jnp.where(near, rate, rate / 2), taken + near

        rate = jnp.asarray(self.learning_rate, theta.dtype)
        start = (theta, optimizer.init(theta), rate, jnp.int32(0))
        theta, _, _, taken = jax.lax.fori_loop(0, self.gradient_steps, climb, start)
        return rebuild(theta), taken

    def _chosen(self, policy: PyTree, samples: GuidedSamples, slot: Array, regularisation: Array) -> GuidedSamples:
        """The newest starts, and those of before whose samples the policy explains best (largest Z)."""
        remembered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
        explained = jnp.mean(self._phi(policy, remembered, regularisation).log_normaliser, axis=1)
        explained = jnp.where(jnp.any(remembered.alive, axis=(1, 2)), explained, -jnp.inf)
        newest = jnp.arange(len(explained)) // self.starts == slot
        _, rows = jax.lax.top_k(jnp.where(newest, jnp.inf, explained), min(self.subset, len(explained)))
        return jax.tree.map(lambda x: x[rows], remembered)

    def _phi(self, policy: PyTree, samples: GuidedSamples, regularisation: Array) -> Phi:
        """Φ of each start `[S]`, in units of the rewards' deviation; zeros for a place that holds no samples yet."""
        deviation = jnp.maximum(jnp.std(samples.reward, where=samples.alive), 1e-8)

        def of_start(start: GuidedSamples) -> Phi:
            empty = jnp.all(start.cut)
            log_prob = jnp.where(start.alive, action_distribution(policy, start.obs, axes=2).log_prob(start.action), 0)
            # Of steps that no run has taken there is nothing to say, and a logarithm of nothing to avoid.
            nobody = jnp.all(start.cut, axis=1, keepdims=True)
            log_prob = jnp.where(start.cut & ~nobody, -jnp.inf, log_prob)
            behaviour = mixture(start.log_prob, start.taken, start.cut)
            found = phi(log_prob, behaviour, start.reward / deviation, regularisation=regularisation)
            return jax.tree.map(lambda x: jnp.where(empty, 0, x), found)

        return jax.vmap(of_start)(samples)


def _of_policy(policy: PyTree, runs: ModelRollout) -> Float[Array, "M T"]:
    return action_distribution(policy, runs.obs, axes=2).log_prob(runs.action)


def _of_guide(guide: Guide, runs: ModelRollout) -> Float[Array, "M T"]:
    times = jnp.arange(runs.reward.shape[1])
    return jax.vmap(jax.vmap(guide.log_prob), (None, 0, 0))(times, runs.physics, runs.action)
