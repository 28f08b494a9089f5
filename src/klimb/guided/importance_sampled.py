"""Importance-sampled guided policy search: climbing Φ on samples that optimised paths have brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.guided.guides import Guide, Guides, Path
from klimb.guided.objective import Phi, phi
from klimb.improve.acceptance import choose, conclude
from klimb.improve.ascent import Ascent, climb_epochs
from klimb.improve.objectives import flatten
from klimb.policies.normalizer import observe
from klimb.types import Batch, Mixture, Rollout, UpdateInfo

LEAST, MOST, FACTOR = 1e-6, 1e2, 10.0  # of the regularisation w_r, and by what it changes (Levine and Koltun 2013)
MINIBATCH = 512  # rows of one supervised step
MAX_GRAD_NORM = 1.0


class Samples(eqx.Module):
    """The runs from S start states: M = 2 + G from each, of the policy, of the best policy before it, and of G guides.

    Axes: S starts, T steps, M runs, O observation, A action dimensions, B = 3 behaviours (policy, best, guide), which
    have taken 1, 1 and G of the runs. log_prob: log q_b(a|s) of every step of every run. alive: the decision counts.
    cut: the run was cut off before this step, by the clock of its episode, and says nothing of it.
    """

    obs: Float[Array, "*slots S T M O"]
    action: Float[Array, "*slots S T M A"]
    reward: Float[Array, "*slots S T M"]
    log_prob: Float[Array, "*slots S B T M"]
    alive: Bool[Array, "*slots S T M"]
    cut: Bool[Array, "*slots S T M"]


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
    sets_normalizer: ClassVar[bool] = True

    guides: Guides
    starts: int
    learns_scale: bool
    guiding_samples: int
    adaptation: float | Array
    supervised_iterations: int
    supervised_steps: int
    supervised_learning_rate: float | Array
    memory: int
    subset: int
    regularisation: float | Array
    gradient_steps: int
    learning_rate: float | Array

    @property
    def steps_a_row(self) -> int:
        """Environment steps for each row of a rollout."""
        return 2 + self.guiding_samples

    def init(self, policy: PyTree) -> Search:
        """No samples yet; the policy given is the best."""
        runs = (self.memory, self.starts, self.guides.horizon, self.steps_a_row)
        environment = self.guides.environment
        obs = jax.eval_shape(lambda key: environment.observe(environment.initial(key)), jax.random.key(0))
        log_prob = (*runs[:2], 3, *runs[2:])
        samples = Samples(
            jnp.zeros((*runs, *obs.shape), obs.dtype),
            jnp.zeros((*runs, len(self.guides.actions.low)), obs.dtype),
            jnp.zeros(runs, obs.dtype),
            jnp.zeros(log_prob, obs.dtype),
            jnp.zeros(runs, bool),
            jnp.ones(runs, bool),
        )
        regularisation = jnp.asarray(self.regularisation, obs.dtype)
        return Search(samples, jnp.int32(0), eqx.filter(policy, eqx.is_array), regularisation)

    def step(self, key: PRNGKeyArray, policy: PyTree, state: Search, batch: Batch) -> tuple[PyTree, Search, UpdateInfo]:
        """New samples; then an imitation of all guides remembered, or a climb of Φ.

        `info.extra`: phi and its effective sample size (mean over steps and starts) on the newest samples, of the
        policy returned; regularisation (w_r); guide_return and policy_return, means over the newest runs of `horizon`
        steps; gain_over_best, of the policy that collected over the best one before it, from the same starts;
        sound_guides, the share of plans that there is a controller around.
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
        gain = jnp.mean(jnp.sum(apart, axis=1))
        better = supervised | (gain >= 0)
        best = choose(better, arrays, state.best)
        changed = jnp.clip(state.regularisation * jnp.where(better, 1 / FACTOR, FACTOR), LEAST, MOST)
        regularisation = jnp.where(supervised, state.regularisation, changed)

        def imitated(arrays: PyTree) -> PyTree:
            scaled = eqx.combine(arrays, static)
            if self.learns_scale:
                obs = new.obs.reshape(-1, new.obs.shape[-1])
                scaled = observe(scaled, obs, new.alive.reshape(-1).astype(obs.dtype))
            return eqx.filter(self._imitate(key_fit, scaled, samples), eqx.is_array)

        def climbed(arrays: PyTree) -> PyTree:
            return eqx.filter(self._climb(eqx.combine(arrays, static), samples, slot, regularisation), eqx.is_array)

        candidate = eqx.combine(jax.lax.cond(supervised, imitated, climbed, best), static)
        found = self._phi(candidate, new, regularisation)
        # Samples are as good as they were, whatever becomes of the step.
        state = Search(samples, state.iterations + 1, best, regularisation)
        return conclude(
            policy,
            state,
            candidate,
            state,
            batch,
            phi=jnp.mean(found.value),
            phi_ess=jnp.mean(found.ess),
            regularisation=regularisation,
            guide_return=jnp.mean(jnp.sum(new.reward[..., 2:], axis=1)),
            policy_return=jnp.mean(jnp.sum(new.reward[..., 0], axis=1)),
            gain_over_best=gain,
            sound_guides=sound,
        )

    def _sample(
        self, key: PRNGKeyArray, policy: PyTree, best: PyTree, count: Array, rollout: Rollout
    ) -> tuple[Samples, Float[Array, ""]]:
        """The runs of one iteration, and the share of sound guides."""
        guides = self.guides
        imitates = count < self.supervised_iterations
        # The first policy is no one to adapt to.
        adaptation = jnp.where(count == 0, 0, self.adaptation * guides.temperature)

        def from_start(key: PRNGKeyArray, own: Path, cut: Array) -> tuple[Samples, Array]:
            key_plan, key_best, key_guide = jax.random.split(key, 3)
            start = own.physics[0]
            mode = guides.clipped(guides.by_mode(policy, start).action)
            other = jax.lax.cond(imitates, lambda: guides.planned(key_plan, start), lambda: guides.clipped(own.action))
            guide = guides.refined(policy, adaptation, start, jnp.stack([mode, other]))
            guided = jax.vmap(lambda key: guides.run(key, guide.sample, start))(
                jax.random.split(key_guide, self.guiding_samples)
            )
            alone = [jax.tree.map(lambda x: x[None], path) for path in (own, guides.by_policy(key_best, best, start))]
            runs = jax.tree.map(lambda *x: jnp.concatenate(x), *alone, guided)
            cuts = jnp.zeros(runs.alive.shape, bool).at[0].set(cut)
            log_prob = jnp.stack([_of_policy(policy, runs), _of_policy(best, runs), _of_guide(guide, runs)])
            samples = Samples(runs.obs, runs.action, runs.reward, jnp.where(runs.alive, log_prob, 0), runs.alive, cuts)
            steps_first = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), samples)
            return eqx.tree_at(lambda s: s.log_prob, steps_first, jnp.swapaxes(samples.log_prob, 1, 2)), guide.sound

        own, cut = _own_runs(rollout)
        samples, sound = jax.vmap(from_start)(jax.random.split(key, self.starts), own, cut)
        return samples, jnp.mean(sound, dtype=samples.reward.dtype)

    def _imitate(self, key: PRNGKeyArray, policy: PyTree, samples: Samples) -> PyTree:
        """Maximum likelihood of what the guides remembered have done."""
        theta, rebuild = flatten(policy)
        obs, action, weight = (x[:, :, :, 2:] for x in (samples.obs, samples.action, samples.alive))
        rows = weight.size
        minibatches = max(1, rows // MINIBATCH)
        epochs = -(-self.supervised_steps // minibatches)
        # Down to 0: what is left of the noise of minibatches would throw an unstable task off its path.
        falling = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, epochs * minibatches))
        ascent = Ascent(optax.chain(Ascent.make("adam", MAX_GRAD_NORM).transform, falling))
        nothing = jnp.zeros(rows, obs.dtype)
        columns = (obs.reshape(rows, -1), action.reshape(rows, -1), nothing, nothing, nothing)
        climbed = climb_epochs(
            ascent,
            lambda vector, batch: batch.mean(jax.vmap(rebuild(vector))(batch.obs).log_prob(batch.action)),
            key,
            theta,
            ascent.init(theta),
            Batch(*columns, weight=weight.reshape(rows).astype(obs.dtype)),
            learning_rate=self.supervised_learning_rate,
            epochs=epochs,
            num_minibatches=minibatches,
        )
        return rebuild(climbed.theta)

    def _climb(self, policy: PyTree, samples: Samples, slot: Array, regularisation: Array) -> PyTree:
        """Steps up the mean of Φ over the chosen starts."""
        theta, rebuild = flatten(policy)
        chosen = self._chosen(policy, samples, slot, regularisation)
        ascent = Ascent.make("adam", MAX_GRAD_NORM)
        gradient = jax.grad(lambda vector: jnp.mean(self._phi(rebuild(vector), chosen, regularisation).value))

        def climb(_: Array, carry: tuple) -> tuple:
            vector, moments = carry
            return ascent.climb(vector, gradient(vector), moments, self.learning_rate)

        theta, _ = jax.lax.fori_loop(0, self.gradient_steps, climb, (theta, ascent.init(theta)))
        return rebuild(theta)

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
        runs = self.steps_a_row
        log_share = jnp.log(jnp.array([1, 1, self.guiding_samples], samples.reward.dtype) / runs)
        deviation = jnp.maximum(jnp.std(samples.reward, where=samples.alive), 1e-8)

        def of_start(start: Samples) -> Phi:
            empty = jnp.all(start.cut)
            log_prob = jnp.where(start.alive, jax.vmap(jax.vmap(policy))(start.obs).log_prob(start.action), 0)
            log_prob = jnp.where(start.cut & ~empty, -jnp.inf, log_prob)
            mixture = Mixture(start.log_prob, log_share)
            found = phi(log_prob, mixture, start.reward / deviation, regularisation=regularisation)
            return jax.tree.map(lambda x: jnp.where(empty, 0, x), found)

        return jax.vmap(of_start)(samples)


def _own_runs(rollout: Rollout) -> tuple[Path, Bool[Array, "N T"]]:
    """The policy's own runs, one a column, and the rows that it has none for.

    A run begins where the column's first episode does, or with the rollout where none does, and is cut off where the
    rollout ends or the clock sets the next episode going. After the end of the task it stays where it is.
    """
    assert rollout.physics is not None
    assert rollout.time is not None
    length = len(rollout.time)
    first = jnp.argmax(rollout.time == 0, axis=0)
    since = jnp.arange(length)[:, None]
    rows = jnp.minimum(first + since, length - 1)
    run = jax.tree.map(
        lambda x: jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=0),
        (rollout.physics, rollout.obs, rollout.action, rollout.reward, rollout.terminated, rollout.truncated),
    )
    physics, obs, action, reward, terminated, truncated = run
    dead = _before(terminated)
    cut = ((first + since >= length) | _before(truncated)) & ~dead
    columns = (physics, obs, action, jnp.where(dead | cut, 0, reward), ~(dead | cut))
    return Path(*(jnp.moveaxis(x, 0, 1) for x in columns)), jnp.moveaxis(cut, 0, 1)


def _before(flag: Bool[Array, "T N"]) -> Bool[Array, "T N"]:
    """Whether there has been one in the steps before."""
    return jnp.cumsum(flag, axis=0) - flag > 0


def _of_policy(policy: PyTree, runs: Path) -> Float[Array, "M T"]:
    return jax.vmap(jax.vmap(policy))(runs.obs).log_prob(runs.action)


def _of_guide(guide: Guide, runs: Path) -> Float[Array, "M T"]:
    times = jnp.arange(runs.reward.shape[1])
    return jax.vmap(jax.vmap(guide.log_prob), (None, 0, 0))(times, runs.physics, runs.action)
