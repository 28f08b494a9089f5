"""Importance-sampled guided policy search: climbing Φ on samples that optimised paths have brought."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.guided.guides import Guide, Guides, Path
from klimb.guided.objective import Phi, phi
from klimb.guided.projection import require_gaussian
from klimb.improve.acceptance import choose, conclude
from klimb.improve.ascent import Ascent, climb_epochs
from klimb.improve.divergences import kl_divergence
from klimb.improve.objectives import action_distribution, flatten
from klimb.policies.distributions import DiagGaussian
from klimb.policies.normalizer import observe
from klimb.types import Batch, Mixture, Rollout, Status, UpdateInfo

LEAST, MOST, FACTOR = 1e-6, 1e2, 10.0  # of the regularisation w_r, and by what it changes (Levine and Koltun 2013)
MINIBATCH = 512  # rows of one supervised step
MAX_GRAD_NORM = 1.0
NEVER = -1e6  # the log share of a behaviour that has taken no run, finite so that it can be added and taken away


class Samples(eqx.Module):
    """The runs from S start states: M from each, of the policy, of the best policy before it or once more of the guide,
    and of the guide.

    Axes: leading memory slots and S starts, T steps, M runs, O observation, A action dimensions, B = 3 behaviours
    (policy, best, guide). log_prob: log q_b(a|s) of every step of every run. taken: by which behaviour each run was.
    guide_mean: what the guide would do in these states, with deviation guide_std. alive: the decision counts. cut: the
    run was cut off before this step, by the clock of its episode, and says nothing of it.
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


class Search(NamedTuple):
    """What is remembered: samples `[K, S, ...]` of the last K iterations, the number of iterations, the arrays of the
    best policy so far, and w_r."""

    samples: Samples
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

    records_physics: ClassVar[bool] = True
    uses_critic: ClassVar[bool] = False

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
    def sets_normalizer(self) -> bool:
        """Whether the policy's normaliser is the rule's affair: it learns from guides, while these teach."""
        return self.supervised_iterations > 0

    @property
    def steps_a_row(self) -> int:
        """Environment steps for each row of a rollout."""
        return 2 + self.guiding_samples

    def init(self, policy: PyTree) -> Search:
        """No samples yet; the policy given is the best. ConfigError where it is not a Gaussian one."""
        runs = (self.memory, self.starts, self.guides.horizon, self.steps_a_row)
        environment = self.guides.environment
        obs = jax.eval_shape(lambda key: environment.observe(environment.initial(key)), jax.random.key(0))
        require_gaussian(policy, obs)
        sizes = (*runs, len(self.guides.actions.low))
        samples = Samples(
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
        return Search(samples, jnp.int32(0), eqx.filter(policy, eqx.is_array), regularisation)

    def step(self, key: PRNGKeyArray, policy: PyTree, state: Search, batch: Batch) -> tuple[PyTree, Search, UpdateInfo]:
        """New samples; then an imitation of all guides remembered, or a climb of Φ.

        `info.extra`: phi and its effective sample size (mean over steps and starts) on the newest samples, of where the
        step has led; regularisation (w_r); guide_return and policy_return, from the mean reward of the newest runs, for
        `horizon` steps; gain_over_best, of the policy that collected over the best one before it, from the same starts;
        climb_steps up Φ within climb_kl, without one of which the status is KL_TOO_LARGE; sound_guides, the share of
        plans that there is a controller around.
        """
        assert batch.rollout is not None
        key_runs, key_fit = jax.random.split(key)
        arrays, static = eqx.partition(policy, eqx.is_array)
        supervised = state.iterations < self.supervised_iterations
        new, sound = self._sample(key_runs, policy, eqx.combine(state.best, static), state.iterations, batch.rollout)
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

        def imitate(arrays: PyTree) -> tuple[PyTree, Array]:
            scaled = eqx.combine(arrays, static)
            if self.learns_scale:
                obs = new.obs.reshape(-1, new.obs.shape[-1])
                scaled = observe(scaled, obs, new.alive.reshape(-1).astype(obs.dtype))
            return eqx.filter(self._imitate(key_fit, scaled, samples), eqx.is_array), jnp.int32(0)

        def climb(arrays: PyTree) -> tuple[PyTree, Array]:
            higher, steps = self._climb(eqx.combine(arrays, static), samples, slot, regularisation, batch)
            return eqx.filter(higher, eqx.is_array), steps

        improved, steps = jax.lax.cond(supervised, imitate, climb, best)
        candidate = eqx.combine(improved, static)
        found = self._phi(candidate, new, regularisation)
        new_policy, new_state, info = conclude(
            policy,
            state,
            candidate,
            Search(samples, state.iterations + 1, best, regularisation),
            batch,
            phi=jnp.mean(found.value),
            phi_ess=jnp.mean(found.ess),
            regularisation=regularisation,
            guide_return=_return(new, slice(2, None)),
            policy_return=_return(new, slice(0, 1)),
            gain_over_best=gain,
            climb_steps=steps,
            sound_guides=sound,
        )
        stayed = ~supervised & ~worse & (steps == 0) & (info.status == Status.ACCEPTED)
        status = jnp.where(stayed, Status.KL_TOO_LARGE, info.status)
        return new_policy, new_state, eqx.tree_at(lambda i: i.status, info, status.astype(info.status.dtype))

    def _sample(
        self, key: PRNGKeyArray, policy: PyTree, best: PyTree, count: Array, rollout: Rollout
    ) -> tuple[Samples, Float[Array, ""]]:
        """The runs of one iteration, and the share of sound guides."""
        guides = self.guides
        imitates = count < self.supervised_iterations
        behaviour = jnp.array([0, 2, *[2] * self.guiding_samples]).at[1].set(jnp.where(imitates, 2, 1))
        # A fresh policy is no one to adapt to.
        adaptation = jnp.where((count == 0) & self.fresh, 0, self.adaptation)

        def from_start(key: PRNGKeyArray, own: Path, cut: Array) -> tuple[Samples, Array]:
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
            samples = Samples(
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

        own, cut = _own_runs(rollout)
        samples, sound = jax.vmap(from_start)(jax.random.split(key, self.starts), own, cut)
        return samples, jnp.mean(sound, dtype=samples.reward.dtype)

    def _imitate(self, key: PRNGKeyArray, policy: PyTree, samples: Samples) -> PyTree:
        """argmin KL(guide‖π_θ) in the states of the guides' runs: what they mean, without the noise of what they do."""
        theta, rebuild = flatten(policy)
        # Not the first run, which is the policy's own.
        obs, mean, alive = (x[:, :, :, 1:] for x in (samples.obs, samples.guide_mean, samples.alive))
        std = jnp.broadcast_to(samples.guide_std[:, :, :, None], mean.shape)
        rows = alive.size
        minibatches = max(1, rows // MINIBATCH)
        epochs = -(-self.supervised_steps // minibatches)
        # Down to 0: what is left of the noise of minibatches would throw an unstable task off its path.
        falling = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, epochs * minibatches))
        ascent = Ascent(optax.chain(Ascent.make("adam", MAX_GRAD_NORM).transform, falling))
        nothing = jnp.zeros(rows, obs.dtype)
        target = jnp.concatenate([mean, std], axis=-1).reshape(rows, -1)
        batch = Batch(
            obs.reshape(rows, -1), target, nothing, nothing, nothing, weight=alive.reshape(rows).astype(obs.dtype)
        )

        def likeness(vector: Array, batch: Batch) -> Array:
            mean, std = jnp.split(batch.action, 2, axis=-1)
            guide = DiagGaussian(mean=mean, log_std=jnp.log(std))
            return -batch.mean(kl_divergence(guide, action_distribution(rebuild(vector), batch.obs)))

        climbed = climb_epochs(
            ascent,
            likeness,
            key,
            theta,
            ascent.init(theta),
            batch,
            learning_rate=self.supervised_learning_rate,
            epochs=epochs,
            num_minibatches=minibatches,
        )
        return rebuild(climbed.theta)

    def _climb(
        self, policy: PyTree, samples: Samples, slot: Array, regularisation: Array, batch: Batch
    ) -> tuple[PyTree, Int[Array, ""]]:
        """Steps up the mean of Φ over the chosen starts, halved from where one would leave the KL."""
        theta, rebuild = flatten(policy)
        chosen = self._chosen(policy, samples, slot, regularisation)
        ascent = Ascent.make("adam", MAX_GRAD_NORM)
        gradient = jax.grad(lambda vector: jnp.mean(self._phi(rebuild(vector), chosen, regularisation).value))
        obs = batch.obs
        before = action_distribution(policy, obs)

        def climb(_: Array, carry: tuple) -> tuple:
            vector, moments, rate, taken = carry
            higher, moved = ascent.climb(vector, gradient(vector), moments, rate)
            near = batch.mean(kl_divergence(before, action_distribution(rebuild(higher), obs))) <= self.climb_kl
            vector, moments = choose(near, (higher, moved), (vector, moments))
            return vector, moments, jnp.where(near, rate, rate / 2), taken + near

        rate = jnp.asarray(self.learning_rate, theta.dtype)
        start = (theta, ascent.init(theta), rate, jnp.int32(0))
        theta, _, _, taken = jax.lax.fori_loop(0, self.gradient_steps, climb, start)
        return rebuild(theta), taken

    def _chosen(self, policy: PyTree, samples: Samples, slot: Array, regularisation: Array) -> Samples:
        """The newest starts, and those of before whose samples the policy explains best (largest Z)."""
        remembered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
        explained = jnp.mean(self._phi(policy, remembered, regularisation).log_normaliser, axis=1)
        explained = jnp.where(jnp.any(remembered.alive, axis=(1, 2)), explained, -jnp.inf)
        newest = jnp.arange(len(explained)) // self.starts == slot
        _, rows = jax.lax.top_k(jnp.where(newest, jnp.inf, explained), min(self.subset, len(explained)))
        return jax.tree.map(lambda x: x[rows], remembered)

    def _phi(self, policy: PyTree, samples: Samples, regularisation: Array) -> Phi:
        """Φ of each start `[S]`, in units of the rewards' deviation; zeros for a place that holds no samples yet."""
        deviation = jnp.maximum(jnp.std(samples.reward, where=samples.alive), 1e-8)

        def of_start(start: Samples) -> Phi:
            empty = jnp.all(start.cut)
            log_prob = jnp.where(start.alive, jax.vmap(jax.vmap(policy))(start.obs).log_prob(start.action), 0)
            # Of steps that no run has taken there is nothing to say, and a logarithm of nothing to avoid.
            nobody = jnp.all(start.cut, axis=1, keepdims=True)
            log_prob = jnp.where(start.cut & ~nobody, -jnp.inf, log_prob)
            mixture = _mixture(start.log_prob, start.taken, start.cut)
            found = phi(log_prob, mixture, start.reward / deviation, regularisation=regularisation)
            return jax.tree.map(lambda x: jnp.where(empty, 0, x), found)

        return jax.vmap(of_start)(samples)


def _mixture(log_prob: Float[Array, "B T M"], taken: Bool[Array, "B M"], cut: Bool[Array, "T M"]) -> Mixture:
    """The behaviours in shares of the runs that go on, which fall when a run of theirs is cut.

    The weights are of log-probs summed over time: a share that changes is added as its changes.
    """
    counts = jnp.sum(taken & ~cut[:, None], axis=2)
    share = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    level = jnp.where(counts > 0, jnp.log(jnp.maximum(share, 1e-6)), NEVER).astype(log_prob.dtype)
    changes = jnp.diff(level, axis=0, prepend=jnp.zeros_like(level[:1]))
    return Mixture(log_prob + changes.T[:, :, None], jnp.zeros(len(log_prob), log_prob.dtype))


def _own_runs(rollout: Rollout) -> tuple[Path, Bool[Array, "N T"]]:
    """The policy's own runs, one a column, and the rows that it has none for.

    A run begins where the column's first episode does, or with the rollout where that leaves more steps, and is cut off
    where the rollout ends or the clock sets the next episode going. After the end of the task it stays where it is.
    """
    assert rollout.physics is not None
    assert rollout.time is not None
    length = len(rollout.time)
    first = jnp.argmax(rollout.time == 0, axis=0)
    first = jnp.where(first > length // 2, 0, first)
    since = jnp.arange(length)[:, None]
    rows = jnp.minimum(first + since, length - 1)
    run = jax.tree.map(
        lambda x: jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=0),
        (rollout.physics, rollout.obs, rollout.action, rollout.reward, rollout.terminated, rollout.truncated),
    )
    physics, obs, action, reward, terminated, truncated = run
    dead = _before(terminated & ~_before(truncated))
    cut = ((first + since >= length) | _before(truncated)) & ~dead
    columns = (physics, obs, action, jnp.where(dead | cut, 0, reward), ~(dead | cut))
    return Path(*(jnp.moveaxis(x, 0, 1) for x in columns)), jnp.moveaxis(cut, 0, 1)


def _before(flag: Bool[Array, "T N"]) -> Bool[Array, "T N"]:
    """Whether there has been one in the steps before."""
    return jnp.cumsum(flag, axis=0) - flag > 0


def _return(samples: Samples, runs: slice) -> Float[Array, ""]:
    """Of runs as long as the horizon, from the mean reward of the steps that were not cut; 0 without any."""
    there = ~samples.cut[..., runs]
    horizon = samples.reward.shape[1]
    return horizon * jnp.sum(samples.reward[..., runs]) / jnp.maximum(jnp.sum(there), 1)


def _of_policy(policy: PyTree, runs: Path) -> Float[Array, "M T"]:
    return jax.vmap(jax.vmap(policy))(runs.obs).log_prob(runs.action)


def _of_guide(guide: Guide, runs: Path) -> Float[Array, "M T"]:
    times = jnp.arange(runs.reward.shape[1])
    return jax.vmap(jax.vmap(guide.log_prob), (None, 0, 0))(times, runs.physics, runs.action)
