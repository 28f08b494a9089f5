"""Importance-sampled guided policy search: maximising Φ on samples of the policy and of guides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.guided.guides import Guides
from klimb.guided.imitation import imitate
from klimb.guided.objective import Phi, phi
from klimb.guided.projection import require_gaussian
from klimb.guided.samples import Behaviour, GuidedSamples, mean_return, mixture
from klimb.guided.sampling import Sampler
from klimb.improve.acceptance import accept_or_reject, choose
from klimb.improve.divergences import kl_divergence
from klimb.improve.optimizer import Optimizer
from klimb.improve.rule import Traits
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution, observe
from klimb.types import Batch, Metric, Status, UpdateInfo

# Limits of the regularisation w_r, and the factor it changes by (Levine and Koltun 2013).
MIN_REGULARISATION, MAX_REGULARISATION, REGULARISATION_FACTOR = 1e-6, 1e2, 10.0
MAX_GRAD_NORM = 1.0


SAMPLED_TRAITS = Traits(
    title="Guided policy search",
    uses_critic=False,
    records_env_state=True,
    binds=True,
    metrics={
        "phi": Metric("Φ", "objective Φ of the policy returned, on the newest samples"),
        "phi_ess": Metric(
            "Effective sample size of Φ",
            "effective sample size of the weights in Φ, as a fraction; mean over steps and starts",
        ),
        "regularisation": Metric("Regularisation", "w_r, the weight of log Z in Φ"),
        "guide_return": Metric("Return of the guides", "return of their newest runs, as mean reward times the horizon"),
        "policy_return": Metric("Return of the policy", "return of its newest runs, as mean reward times the horizon"),
        "gain_over_best": Metric(
            "Gain over the best policy", "return minus that of the best policy so far, from the same starts"
        ),
        "climb_steps": Metric("Ascent steps on Φ", "gradient steps that were taken without exceeding climb_kl"),
        "sound_guides": Metric("Usable guides", "fraction of plans around which a valid controller was found"),
    },
)


class SampledState(NamedTuple):
    """samples: of the last K iterations, `[K, S, ...]`. iterations: done so far. regularisation: w_r.

    best: arrays of the best policy among those that have collected; the last climb from it has not.
    """

    samples: GuidedSamples
    iterations: Int[Array, ""]
    best: PyTree
    regularisation: Float[Array, ""]


class _Comparison(NamedTuple):
    """The policy that collected against the best policy before it, from the same starts.

    gain: difference of the returns. worse, better: by more than the standard error.
    """

    gain: Float[Array, ""]
    worse: Bool[Array, ""]
    better: Bool[Array, ""]


class _Climb(NamedTuple):
    """The carry of the climb. steps: taken within climb_kl."""

    theta: Float[Array, " P"]
    moments: optax.OptState
    learning_rate: Float[Array, ""]
    steps: Int[Array, ""]


@dataclass(frozen=True)
class ImportanceSampled:
    """The rule, bound to an environment (Levine and Koltun 2013, algorithm 1).

    Every iteration plans a guide from the start of each column of the rollout, and also runs the guide and the best
    policy so far from there. In the first iterations the policy imitates the guides; then it climbs Φ, from itself or
    from the best policy, whichever had the higher return from these starts. The training results in the best policy.

    guides: plans and paths through the environment. starts: columns of the rollout. learns_scale: whether the policy's
    normaliser is updated. fresh: whether the first policy is untrained; then its guides do not adapt to it.
    The other fields: `klimb.guided.search.GuidedPolicySearch`.
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
    kept_iterations: int
    subset: int
    regularisation: float | Array
    gradient_steps: int
    climb_kl: float | Array
    learning_rate: float | Array

    @property
    def traits(self) -> Traits:
        # While the policy imitates the guides, its normaliser is updated with their runs.
        return replace(
            SAMPLED_TRAITS,
            binds=False,
            env_steps_per_row=self._runs_per_start,
            owns_normalizer=self.supervised_iterations > 0,
            keeps_best=True,
        )

    @property
    def _runs_per_start(self) -> int:
        """The policy's own run, one of the best policy, and those of the guide."""
        return 2 + self.guiding_samples

    def init(self, policy: PyTree) -> SampledState:
        """The state without samples, with the given policy as the best. ConfigError unless it is Gaussian.

        policy: the first one.
        """
        runs = (self.kept_iterations, self.starts, self.guides.horizon, self._runs_per_start)
        environment = self.guides.environment
        obs = jax.eval_shape(lambda key: environment.observe(environment.initial(key)), jax.random.key(0))
        require_gaussian(policy, obs)
        sizes = (*runs, len(self.guides.actions.low))
        samples = GuidedSamples(
            obs=jnp.zeros((*runs, *obs.shape), obs.dtype),
            action=jnp.zeros(sizes, obs.dtype),
            reward=jnp.zeros(runs, obs.dtype),
            log_prob=jnp.zeros((*runs[:2], len(Behaviour), *runs[2:]), obs.dtype),
            taken=jnp.zeros((*runs[:2], len(Behaviour), runs[-1]), bool),
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
        """Samples runs; then imitates all stored guides, or climbs Φ. `info.extra`: the metrics of `SAMPLED_TRAITS`.

        After a climb without a step within climb_kl, from a policy not worse than the best, the status is KL_TOO_LARGE.

        key: of plans, noise and minibatches. policy: the one that collected. state: of the last step.
        batch: with a trajectory that has `time` and `env_state`.
        """
        assert batch.trajectory is not None
        rollout = batch.trajectory.rollout
        key_runs, key_fit = jax.random.split(key)
        arrays, static = eqx.partition(policy, eqx.is_array)
        imitates = state.iterations < self.supervised_iterations
        sampler = self._sampler(policy, eqx.combine(state.best, static), state.iterations, imitates)
        new, usable_guides = sampler.sample(key_runs, rollout)
        slot = state.iterations % self.kept_iterations
        samples = jax.tree.map(lambda rows, row: rows.at[slot].set(row), state.samples, new)

        comparison = self._compare(new, imitates)
        best = choose(comparison.worse, state.best, arrays)
        regularisation = _adapted_regularisation(state.regularisation, comparison)

        def imitation(arrays: PyTree) -> tuple[PyTree, Array]:
            imitator = self._imitate(key_fit, eqx.combine(arrays, static), samples, new)
            return eqx.filter(imitator, eqx.is_array), jnp.int32(0)

        def climb(arrays: PyTree) -> tuple[PyTree, Array]:
            climbed, steps = self._climb(eqx.combine(arrays, static), samples, slot, regularisation, batch)
            return eqx.filter(climbed, eqx.is_array), steps

        improved, steps = jax.lax.cond(imitates, imitation, climb, best)
        candidate = eqx.combine(improved, static)
        newest = self._phi(candidate, new, regularisation)
        new_policy, new_state, info = accept_or_reject(
            policy,
            state,
            candidate,
            SampledState(samples, state.iterations + 1, best, regularisation),
            batch,
            phi=jnp.mean(newest.value),
            phi_ess=jnp.mean(newest.ess),
            regularisation=regularisation,
            guide_return=mean_return(new, slice(2, None)),
            policy_return=mean_return(new, slice(0, 1)),
            gain_over_best=comparison.gain,
            climb_steps=steps,
            sound_guides=usable_guides,
        )
        unchanged = ~imitates & ~comparison.worse & (steps == 0) & (info.status == Status.ACCEPTED)
        status = jnp.where(unchanged, Status.KL_TOO_LARGE, info.status)
        return new_policy, new_state, eqx.tree_at(lambda i: i.status, info, status.astype(info.status.dtype))

    def best_policy(self, policy: PyTree, state: SampledState) -> PyTree:
        """The best policy among those that have been compared; while the policy imitates, the last one.

        Imitations are not compared: the last has seen the most guides. A policy that has climbed is compared when it
        has collected, in the next step, so the last climb of a training is not part of its result.

        policy: of the last step. state: of the last step.
        """
        arrays, static = eqx.partition(policy, eqx.is_array)
        return eqx.combine(choose(state.iterations <= self.supervised_iterations, arrays, state.best), static)

    def _sampler(self, policy: PyTree, best: PyTree, iterations: Array, imitates: Array) -> Sampler:
        # An untrained policy says nothing of which actions are good, so the first guides do not adapt to it.
        adaptation = jnp.where((iterations == 0) & self.fresh, 0, self.adaptation)
        return Sampler(self.guides, policy, best, imitates, adaptation, self.guiding_samples)

    def _compare(self, new: GuidedSamples, imitates: Array) -> _Comparison:
        """From the first two runs of each start, over the steps before the policy's own run was cut; 0 in imitation."""
        difference = jnp.where(new.cut[..., 0], 0, new.reward[..., 0] - new.reward[..., 1])
        gains = jnp.where(imitates, 0, jnp.sum(difference, axis=1))
        gain, error = jnp.mean(gains), jnp.std(gains) / math.sqrt(max(self.starts - 1, 1))
        return _Comparison(gain, worse=gain < -error, better=gain > error)

    def _imitate(self, key: PRNGKeyArray, policy: PyTree, samples: GuidedSamples, new: GuidedSamples) -> PyTree:
        """The policy after imitating all stored guides, its normaliser updated with the new runs."""
        if self.learns_scale:
            obs = new.obs.reshape(-1, new.obs.shape[-1])
            policy, _ = observe(policy, obs, new.alive.reshape(-1).astype(obs.dtype))
        return imitate(key, policy, samples, steps=self.supervised_steps, learning_rate=self.supervised_learning_rate)

    def _climb(
        self, policy: PyTree, samples: GuidedSamples, slot: Array, regularisation: Array, batch: Batch
    ) -> tuple[PyTree, Int[Array, ""]]:
        """Gradient steps on the mean of Φ over the chosen starts; a step that would exceed climb_kl halves the rate."""
        theta, rebuild = flatten(policy)
        chosen = self._chosen(policy, samples, slot, regularisation)
        optimizer = Optimizer.make("adam", MAX_GRAD_NORM)
        gradient = jax.grad(lambda vector: jnp.mean(self._phi(rebuild(vector), chosen, regularisation).value))
        obs = batch.obs
        old = action_distribution(policy, obs)

        def climb_step(_: Array, now: _Climb) -> _Climb:
            stepped = optimizer.apply_gradient(now.theta, gradient(now.theta), now.moments, now.learning_rate)
            kl = batch.mean(kl_divergence(old, action_distribution(rebuild(stepped[0]), obs)))
            within = kl <= self.climb_kl
            theta, moments = choose(within, stepped, (now.theta, now.moments))
            learning_rate = jnp.where(within, now.learning_rate, now.learning_rate / 2)
            return _Climb(theta, moments, learning_rate, now.steps + within)

        learning_rate = jnp.asarray(self.learning_rate, theta.dtype)
        start = _Climb(theta, optimizer.init(theta), learning_rate, jnp.int32(0))
        end = jax.lax.fori_loop(0, self.gradient_steps, climb_step, start)
        return rebuild(end.theta), end.steps

    def _chosen(self, policy: PyTree, samples: GuidedSamples, slot: Array, regularisation: Array) -> GuidedSamples:
        """The samples of the newest starts, and of those older ones that the policy explains best (largest Z)."""
        stored = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
        log_z = jnp.mean(self._phi(policy, stored, regularisation).log_normaliser, axis=1)
        log_z = jnp.where(jnp.any(stored.alive, axis=(1, 2)), log_z, -jnp.inf)
        newest = jnp.arange(len(log_z)) // self.starts == slot
        _, rows = jax.lax.top_k(jnp.where(newest, jnp.inf, log_z), min(self.subset, len(log_z)))
        return jax.tree.map(lambda x: x[rows], stored)

    def _phi(self, policy: PyTree, samples: GuidedSamples, regularisation: Array) -> Phi:
        """Φ of each start `[S]`, in units of the rewards' standard deviation; zeros for slots without samples."""
        std = jnp.maximum(jnp.std(samples.reward, where=samples.alive), 1e-8)

        def of_start(start: GuidedSamples) -> Phi:
            empty = jnp.all(start.cut)
            log_prob = jnp.where(start.alive, action_distribution(policy, start.obs, axes=2).log_prob(start.action), 0)
            # Runs have no weight in steps without data; if that were all runs, log Z would be the logarithm of 0.
            no_run = jnp.all(start.cut, axis=1, keepdims=True)
            log_prob = jnp.where(start.cut & ~no_run, -jnp.inf, log_prob)
            behaviour = mixture(start.log_prob, start.taken, start.cut)
            result = phi(log_prob, behaviour, start.reward / std, regularisation=regularisation)
            return jax.tree.map(lambda x: jnp.where(empty, 0, x), result)

        return jax.vmap(of_start)(samples)


def _adapted_regularisation(regularisation: Array, comparison: _Comparison) -> Float[Array, ""]:
    """w_r, larger after a loss and smaller after a gain."""
    smaller = jnp.where(comparison.better, 1 / REGULARISATION_FACTOR, 1)
    factor = jnp.where(comparison.worse, REGULARISATION_FACTOR, smaller)
    return jnp.clip(regularisation * factor, MIN_REGULARISATION, MAX_REGULARISATION)
