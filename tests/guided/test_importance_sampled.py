"""Importance-sampled guided policy search: its samples, what it makes of them, and when it takes a policy back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jaxtyping import Array, PyTree

import klimb
from klimb import RunConfig, TrainOptions
from klimb.environments.base import ClassicControl
from klimb.environments.control.cartpole_swing_up import CartPoleSwingUp
from klimb.environments.control.linear_quadratic import LinearQuadratic
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import ConfigError
from klimb.guided.guides import Guide, Guides
from klimb.guided.importance_sampled import ImportanceSampled
from klimb.guided.planning.trajectory import Plan
from klimb.guided.samples import GuidedSamples
from klimb.guided.samples import own_runs as runs_of
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import traits_of
from klimb.policies.actions import action_spec
from klimb.training.program import Program
from klimb.types import Rollout, Status, TrainState
from problems import assert_same_bits, same_bits

ENVS, STEPS, GUIDES, SUPERVISED, ITERATIONS = 3, 24, 2, 2, 9
RULE = GuidedPolicySearch(
    learning_rate=0.01,
    guiding_samples=GUIDES,
    restarts=2,
    supervised_iterations=SUPERVISED,
    supervised_steps=30,
    supervised_learning_rate=0.03,
    kept_iterations=2,
    subset=4,
    gradient_steps=5,
)
OPTIONS = TrainOptions(
    env_steps=ITERATIONS * (2 + GUIDES) * ENVS * STEPS,
    num_envs=ENVS,
    num_steps=STEPS,
    hidden=(8,),
    critic_epochs=1,
    critic_num_minibatches=1,
)
EXTRA = {
    "phi",
    "phi_ess",
    "regularisation",
    "guide_return",
    "policy_return",
    "gain_over_best",
    "climb_steps",
    "sound_guides",
}


class Course(NamedTuple):
    """A training one iteration at a time: `states[k]` is the one before iteration k, of which `metrics[k]` tells."""

    program: Program
    states: list[TrainState]
    metrics: list[dict[str, float]]

    @property
    def rule(self) -> ImportanceSampled:
        assert isinstance(self.program.iteration.rule, ImportanceSampled)
        return self.program.iteration.rule

    def advance(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """One iteration, with the state kept."""
        # Placed, as all states are: for one that is not, everything would be compiled again.
        state, metrics = self.program.advance(self.program.place(jax.tree.map(jnp.copy, state)), 1)
        return state, {name: values[0, 0].item() for name, values in metrics.items()}

    def policy(self, arrays: PyTree) -> Any:
        """The policy of the only seed."""
        return eqx.combine(jax.tree.map(lambda x: x[0], arrays), self.program.policy_static)

    def newest(self, iteration: int) -> GuidedSamples:
        """What iteration `iteration` sampled."""
        slot = iteration % RULE.kept_iterations
        return jax.tree.map(lambda x: x[0, slot], self.states[iteration + 1].rule_state.samples)


@pytest.fixture(scope="module")
def course() -> Course:
    """Two iterations of imitation and seven of climbing; in the last of them every column begins a second episode."""
    program = Program(RunConfig("Pendulum-v1", RULE, OPTIONS), klimb.make("Pendulum-v1"))
    course = Course(program, [program.initial_state()], [])
    for _ in range(ITERATIONS):
        state, metrics = course.advance(course.states[-1])
        course.states.append(state)
        course.metrics.append(metrics)
    return course


def log_prob(policy: Any, samples: GuidedSamples) -> np.ndarray:
    """Of every action, in NumPy."""
    distribution = policy(samples.obs)
    mean, std = np.asarray(distribution.mean, float), np.exp(np.asarray(distribution.log_std, float))
    return scipy.stats.norm.logpdf(np.asarray(samples.action, float), mean, std).sum(axis=-1)


# A training ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_in_the_environment_is_counted(course: Course) -> None:
    """One run of the policy, one of the best policy, and those of the guides."""
    each = (2 + GUIDES) * ENVS * STEPS
    assert traits_of(course.program.config.rule).env_steps_per_row == 2 + GUIDES
    assert course.program.source.rows_per_iteration == each
    assert course.program.config.num_iterations == course.program.length.iterations == ITERATIONS
    assert [metrics["env_steps"] for metrics in course.metrics] == [each * (k + 1) for k in range(ITERATIONS)]
    samples = course.states[-1].rule_state.samples
    assert samples.reward.shape == (1, RULE.kept_iterations, ENVS, STEPS, 2 + GUIDES)


@pytest.mark.slow
def test_what_it_says_of_a_step(course: Course) -> None:
    for k, metrics in enumerate(course.metrics):
        assert set(metrics) >= EXTRA
        assert all(np.isfinite(metrics[name]) for name in (*EXTRA, "kl_old_new", "entropy"))
        stayed = k >= SUPERVISED and metrics["climb_steps"] == 0
        assert metrics["status"] == (Status.KL_TOO_LARGE if stayed else Status.ACCEPTED)
        assert metrics["climb_steps"] <= RULE.gradient_steps * (k >= SUPERVISED)
        assert metrics["sound_guides"] == 1
        assert 0 < metrics["phi_ess"] <= 1
        new = course.newest(k)
        for name, runs in (("policy_return", slice(0, 1)), ("guide_return", slice(2, None))):
            mean = np.asarray(new.reward, float)[..., runs][~np.asarray(new.cut)[..., runs]].mean()
            assert metrics[name] == pytest.approx(STEPS * mean, rel=1e-5)
        if k < SUPERVISED:
            assert metrics["gain_over_best"] == 0
        else:
            both = ~np.asarray(new.cut[..., 0])
            gain = (np.asarray(new.reward[..., 0] - new.reward[..., 1], float) * both).sum(axis=1).mean()
            assert metrics["gain_over_best"] == pytest.approx(gain, rel=1e-4, abs=1e-4)
        found = of_starts(
            course.rule, course.policy(course.states[k + 1].policy), new, jnp.float32(metrics["regularisation"])
        )
        assert metrics["phi"] == pytest.approx(float(found.value.mean()), rel=1e-4)
        assert metrics["phi_ess"] == pytest.approx(float(found.ess.mean()), rel=1e-4)


@pytest.mark.slow
def test_what_it_says_is_in_the_table(course: Course) -> None:
    table = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    for name in course.metrics[0]:
        assert f"`{name}`" in table, name


@pytest.mark.slow
def test_guides_know_better_than_the_untrained_policy(course: Course) -> None:
    first = np.asarray(course.newest(0).reward, float).sum(axis=1)
    assert (first[:, 1:].max(axis=1) > first[:, 0]).all()
    assert course.metrics[0]["guide_return"] > course.metrics[0]["policy_return"] + 20


@pytest.mark.slow
def test_imitation_makes_the_guides_actions_likelier(course: Course) -> None:
    untrained, imitator = (course.policy(course.states[k].policy) for k in (0, SUPERVISED))
    for k in range(SUPERVISED):
        meant = dataclasses.replace(course.newest(k), action=course.newest(k).guide_mean)
        gain = log_prob(imitator, meant) - log_prob(untrained, meant)
        assert gain[..., 1:].mean() > 0.05


@pytest.mark.slow
def test_the_normaliser_has_seen_what_imitation_did(course: Course) -> None:
    for k in range(ITERATIONS):
        before, after = (course.policy(course.states[i].policy).encoder.normalizer for i in (k, k + 1))
        if k >= SUPERVISED:
            # Not one bit while Φ is fitted: it is a matter of the policy as it is.
            assert_same_bits(before.mean, course.policy(course.states[SUPERVISED].policy).encoder.normalizer.mean)
            continue
        assert after.count - before.count == ENVS * STEPS * (2 + GUIDES)
    seen = np.concatenate(
        [np.asarray(course.newest(0).obs).reshape(-1, 3), np.asarray(course.newest(1).obs).reshape(-1, 3)]
    )
    normalizer = course.policy(course.states[SUPERVISED].policy).encoder.normalizer
    np.testing.assert_allclose(normalizer.mean, seen.mean(axis=0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_climbing_stays_within_the_kl(course: Course) -> None:
    """Of where it began: the policy that collected, or the best one."""
    reached = []
    for k in range(SUPERVISED, ITERATIONS):
        begun = course.policy(course.states[k + 1].rule_state.best)
        new = course.policy(course.states[k + 1].policy)
        new_best, before = course.states[k + 1].rule_state.best, course.states[k]
        if same_bits(new_best, before.policy):
            assert course.metrics[k]["kl_old_new"] <= RULE.climb_kl * (1 + 1e-4)
        else:
            assert course.metrics[k]["gain_over_best"] < 0
            assert_same_bits(new_best, before.rule_state.best)
        if course.newest(k).cut.any():
            continue  # the rollout holds rows that the runs do not
        p, q = begun(course.newest(k).obs[:, :, 0]), new(course.newest(k).obs[:, :, 0])
        (m, s), (n, r) = ((np.asarray(x.mean, float), np.exp(np.asarray(x.log_std, float))) for x in (p, q))
        reached.append(np.mean(np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5))
    assert min(reached) > 0
    assert 0.3 * RULE.climb_kl < max(reached) <= RULE.climb_kl * (1 + 1e-3)


# GuidedSamples ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_densities_are_those_of_who_acted(course: Course) -> None:
    for k in range(ITERATIONS):
        new, before = course.newest(k), course.states[k]
        stored = np.where(new.alive[:, None], new.log_prob, 0)
        np.testing.assert_array_equal(stored, new.log_prob)
        policy, best = (course.policy(arrays) for arrays in (before.policy, before.rule_state.best))
        guide = scipy.stats.norm.logpdf(
            np.asarray(new.action, float), new.guide_mean, np.asarray(new.guide_std, float)[:, :, None]
        ).sum(axis=-1)
        for b, expected in enumerate((log_prob(policy, new), log_prob(best, new), guide)):
            # In float32, with deviations of a hundredth of the actions.
            np.testing.assert_allclose(stored[:, b], np.where(new.alive, expected, 0), rtol=2e-3, atol=5e-3)
        counts = [1, 0, GUIDES + 1] if k < SUPERVISED else [1, 1, GUIDES]
        np.testing.assert_array_equal(new.taken.sum(axis=2), np.tile(counts, (ENVS, 1)))
        np.testing.assert_array_equal(new.taken.sum(axis=1), 1)


@pytest.mark.slow
def test_all_runs_of_a_start_begin_there(course: Course) -> None:
    for k in range(ITERATIONS):
        new = course.newest(k)
        np.testing.assert_array_equal(new.obs[:, 0], np.broadcast_to(new.obs[:, 0, :1], new.obs[:, 0].shape))
        np.testing.assert_array_equal(
            new.guide_mean[:, 0], np.broadcast_to(new.guide_mean[:, 0, :1], new.guide_mean[:, 0].shape)
        )
        assert (np.abs(new.guide_mean) <= 2).all()
        # Of the guides' own runs: their actions scatter around what they mean, as widely as they say.
        standard = (new.action - new.guide_mean)[:, :, 2:] / new.guide_std[:, :, None]
        assert np.sqrt(np.mean(np.square(standard))) == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_a_second_episode_begins_the_run_and_the_rollouts_end_cuts_it(course: Course) -> None:
    """After 192 of 200 steps: the last 8 of the first episode are no part of it."""
    new = course.newest(ITERATIONS - 1)
    expected = np.zeros((ENVS, STEPS, 2 + GUIDES), bool)
    expected[:, 16:, 0] = True
    np.testing.assert_array_equal(new.cut, expected)
    np.testing.assert_array_equal(new.alive, ~expected)
    assert (np.asarray(new.reward)[expected] == 0).all()
    assert (np.abs(new.obs[:, 0, :, 2]) <= 1).all()  # where episodes start
    assert not any(course.newest(k).cut.any() for k in range(ITERATIONS - 1))


PHYSICS, OBS = 2, 3
# Times; rows that terminated; rows that were truncated.
COLUMNS = {
    "one episode": ([0, 1, 2, 3, 4, 5, 6], [], []),
    "in the middle of one": ([5, 6, 7, 8, 9, 10, 11], [], []),
    "the second begins": ([3, 4, 0, 1, 2, 3, 4], [], [1]),
    "the clock": ([0, 1, 2, 3, 0, 1, 2], [], [3]),
    "the clock at the end": ([0, 1, 2, 3, 4, 5, 6], [], [6]),
    "the task ends": ([0, 1, 2, 0, 1, 2, 3], [2], []),
    "the second's task ends": ([8, 0, 1, 2, 3, 0, 1], [4], [0]),
    "the last row's task ends": ([4, 5, 0, 1, 2, 3, 4], [1, 6], []),
    "the task ends, then the clock": ([0, 1, 0, 1, 2, 3, 0], [1], [5]),
    "the clock, then the task ends": ([0, 1, 0, 1, 2, 0, 1], [4], [1]),
    "the second begins late": ([5, 6, 7, 8, 9, 0, 1], [], [4]),
}


def handmade(columns: list[tuple[list[int], list[int], list[int]]]) -> Rollout:
    times = np.array([column[0] for column in columns]).T
    shape = times.shape
    rng = np.random.default_rng(0)
    physics, obs, action = (jnp.asarray(rng.normal(size=(*shape, n)), jnp.float32) for n in (PHYSICS, OBS, 1))
    number = jnp.asarray(rng.normal(size=shape), jnp.float32)
    terminated, truncated = (
        jnp.asarray(np.array([[t in column[i] for t in range(shape[0])] for column in columns]).T) for i in (1, 2)
    )
    valid = jnp.ones(shape, bool)
    return Rollout(
        obs, action, number, number, terminated, truncated, obs, valid, jnp.asarray(times, jnp.int32), physics
    )


@functools.cache
def own_runs() -> tuple[Rollout, Any, Any]:
    rollout = handmade(list(COLUMNS.values()))
    return rollout, *runs_of(rollout)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_run_is_the_first_whole_episode_or_what_there_is(name: str) -> None:
    rollout, runs, cut = own_runs()
    column = list(COLUMNS).index(name)
    times, ends, stops = COLUMNS[name]
    length = len(times)
    first = times.index(0) if 0 in times[: length // 2 + 1] else 0
    over, why = False, ""
    for t in range(length):
        row = first + t
        if row >= length and not over:
            over, why = True, "cut"
        if not over:
            for x, y in ((runs.env_state, rollout.env_state), (runs.obs, rollout.obs), (runs.action, rollout.action)):
                np.testing.assert_array_equal(x[column, t], y[row, column])
        assert float(runs.reward[column, t]) == (0 if over else float(rollout.reward[row, column])), t
        assert bool(runs.alive[column, t]) == (not over), t
        assert bool(cut[column, t]) == (over and why == "cut"), t
        if not over and row in ends:
            over, why = True, "ended"
        elif not over and row in stops:
            over, why = True, "cut"
    assert runs.alive.shape == cut.shape == (len(COLUMNS), length)


# Φ ------------------------------------------------------------------------------------------------------------


of_starts = eqx.filter_jit(ImportanceSampled._phi)


@eqx.filter_jit
def phi_and_gradient(rule: ImportanceSampled, policy: Any, samples: GuidedSamples, regularisation: Array) -> tuple:
    arrays, static = eqx.partition(policy, eqx.is_inexact_array)

    def total(arrays: PyTree) -> tuple:
        found = rule._phi(eqx.combine(arrays, static), samples, regularisation)
        return jnp.sum(found.value), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(arrays)
    return found, gradient


W_R = jnp.float32(0.1)


def phi_by_hand(policy: Any, start: GuidedSamples, deviation: float) -> tuple[float, np.ndarray]:
    """Φ and log Z in NumPy: a run that is cut has no weight, and its behaviour that much less of a share."""
    counted = ~np.asarray(start.cut)
    own = np.cumsum(np.where(start.alive, log_prob(policy, start), 0), axis=0)
    theirs = np.cumsum(np.asarray(start.log_prob, float), axis=1)
    shares = (np.asarray(start.taken, float) @ counted.T.astype(float)) / counted.sum(axis=1)
    mixed = scipy.special.logsumexp(theirs, axis=0, b=shares[:, :, None])
    weight = np.where(counted, own - mixed, -np.inf)
    log_normaliser = scipy.special.logsumexp(weight, axis=1)
    share = np.exp(weight - log_normaliser[:, None])
    mean_return = np.sum(share * np.asarray(start.reward, float)) / deviation
    return mean_return + float(W_R) * log_normaliser.sum(), log_normaliser


@pytest.mark.slow
def test_phi_of_stored_samples_is_phi_of_each_start(course: Course) -> None:
    """Also where the policy's own run is cut: there it has no weight."""
    policy = course.policy(course.states[3].policy)
    for k in (0, SUPERVISED, ITERATIONS - 1):
        new = course.newest(k)
        found = of_starts(course.rule, policy, new, W_R)
        deviation = np.asarray(new.reward, float)[np.asarray(new.alive)].std()
        for s in range(ENVS):
            value, log_normaliser = phi_by_hand(policy, jax.tree.map(lambda x, s=s: x[s], new), deviation)
            np.testing.assert_allclose(found.log_normaliser[s], log_normaliser, rtol=1e-3, atol=2e-2)
            np.testing.assert_allclose(found.value[s], value, rtol=1e-3, atol=2e-2)


@pytest.mark.slow
def test_where_nothing_is_stored_there_is_nothing(course: Course) -> None:
    empty = jax.tree.map(lambda x: x[0, -1], course.states[0].rule_state.samples)
    policy = course.policy(course.states[3].policy)
    for samples in (empty, jax.tree.map(lambda x, y: jnp.stack([x[0], y[1]]), empty, course.newest(3))):
        found, gradient = phi_and_gradient(course.rule, policy, samples, W_R)
        assert all((part[0] == 0).all() for part in found)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (found.value[1] != 0).all()
    alone, _ = phi_and_gradient(course.rule, policy, jax.tree.map(lambda x: x[1:2], course.newest(3)), W_R)
    np.testing.assert_allclose(found.value[1], alone.value[0], rtol=1e-5)


@pytest.mark.slow
def test_rows_that_are_cut_weigh_nothing(course: Course) -> None:
    """Not by one bit, in Φ or its gradient."""
    new = course.newest(ITERATIONS - 1)
    policy = course.policy(course.states[3].policy)
    cut = np.asarray(new.cut)[..., None]
    assert cut.any()
    spoilt = dataclasses.replace(new, obs=jnp.where(cut, 123.0, new.obs), action=jnp.where(cut, -77.0, new.action))
    found, gradient = phi_and_gradient(course.rule, policy, new, W_R)
    assert_same_bits((found, gradient), phi_and_gradient(course.rule, policy, spoilt, W_R))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, gradient)))
    # Elsewhere they do.
    spoilt = dataclasses.replace(new, action=jnp.where(cut, new.action, 0.5))
    assert (phi_and_gradient(course.rule, policy, spoilt, W_R)[0].value != found.value).all()


@pytest.mark.slow
def test_steps_that_no_run_has_taken_add_nothing(course: Course) -> None:
    """The clock cuts the policy's run, and the guide is none."""
    new = course.newest(0)
    cut = jnp.broadcast_to((jnp.arange(STEPS) >= 10)[:, None], new.cut.shape)
    blank = dataclasses.replace(
        new,
        cut=cut,
        alive=~cut,
        reward=jnp.where(cut, 0, new.reward),
        log_prob=jnp.where(jnp.swapaxes(cut, 1, 2)[:, None].swapaxes(2, 3), 0, new.log_prob),
    )
    found, gradient = phi_and_gradient(course.rule, course.policy(course.states[3].policy), blank, W_R)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found.value, gradient)))


@pytest.mark.slow
def test_phi_is_climbed_on_the_newest_starts_and_the_best_explained(course: Course) -> None:
    samples = jax.tree.map(lambda x: x[0], course.states[-1].rule_state.samples)
    policy = course.policy(course.states[-1].policy)
    remembered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    explained = np.asarray(of_starts(course.rule, policy, remembered, W_R).log_normaliser, float).mean(axis=1)
    choose = eqx.filter_jit(ImportanceSampled._chosen)
    for slot in range(RULE.kept_iterations):
        others = [s for s in range(RULE.kept_iterations * ENVS) if s // ENVS != slot]
        best = max(others, key=lambda s: explained[s])
        chosen = choose(course.rule, policy, samples, jnp.int32(slot), W_R)
        expected = {*range(slot * ENVS, (slot + 1) * ENVS), best}
        rows = {next(s for s in range(len(explained)) if (row == remembered.reward[s]).all()) for row in chosen.reward}
        assert len(chosen.reward) == RULE.subset
        assert rows == expected


# Taking back --------------------------------------------------------------------------------------------------


def upright(course: Course, policy: PyTree, best: PyTree) -> TrainState:
    """A state in the climbing phase, with all pendulums at rest at the top, and these policies."""
    state = course.states[SUPERVISED + 1]
    collector = state.collector_state
    physics = jnp.zeros_like(collector.env_state.physics)
    env_state = collector.env_state._replace(physics=physics, time=jnp.zeros_like(collector.env_state.time))
    obs = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), collector.obs.shape)
    collector = collector._replace(env_state=env_state, obs=obs, time=jnp.zeros_like(collector.time))
    return eqx.tree_at(
        lambda s: (s.policy, s.rule_state, s.collector_state),
        state,
        (policy, state.rule_state._replace(best=best), collector),
    )


def pushing(course: Course, torque: float) -> PyTree:
    """The arrays of a policy that always pushes like this, with hardly any noise."""
    arrays = course.states[SUPERVISED].policy
    head = lambda policy: (policy.network.weights[-1], policy.network.biases[-1], policy.log_std)  # noqa: E731
    weights, bias, log_std = (jnp.zeros_like(x) for x in head(arrays))
    return eqx.tree_at(head, arrays, (weights, bias + torque / 2, log_std - 6))


@pytest.mark.slow
def test_a_policy_that_did_worse_is_taken_back(course: Course) -> None:
    good, bad = pushing(course, 0.0), pushing(course, 2.0)
    before = upright(course, policy=bad, best=good)
    before = eqx.tree_at(lambda s: s.rule_state.regularisation, before, jnp.full(1, 0.02, jnp.float32))
    after, metrics = course.advance(before)
    assert metrics["status"] == Status.ACCEPTED
    assert metrics["gain_over_best"] < -20
    assert metrics["regularisation"] == pytest.approx(0.2, rel=1e-6)
    assert_same_bits(after.rule_state.best, good)
    # The climb began at the better one.
    assert abs(course.policy(after.policy).network.biases[-1][0]) < 0.5
    assert after.rule_state.iterations[0] == before.rule_state.iterations[0] + 1


@pytest.mark.slow
def test_a_policy_that_did_better_is_the_best(course: Course) -> None:
    good, bad = pushing(course, 0.0), pushing(course, 2.0)
    before = upright(course, policy=good, best=bad)
    before = eqx.tree_at(lambda s: s.rule_state.regularisation, before, jnp.full(1, 0.02, jnp.float32))
    after, metrics = course.advance(before)
    assert metrics["gain_over_best"] > 20
    assert metrics["regularisation"] == pytest.approx(0.002, rel=1e-6)
    assert_same_bits(after.rule_state.best, good)
    assert metrics["kl_old_new"] <= RULE.climb_kl * (1 + 1e-4)


@pytest.mark.slow
def test_a_training_results_in_the_best_policy_that_has_been_compared(course: Course) -> None:
    """Not in the last climb, which has not collected yet; while the policy imitates, in the last imitation."""
    for k, state in enumerate(course.states):
        (result,) = course.program.policies(state)
        expected = state.policy if k <= SUPERVISED else state.rule_state.best
        assert_same_bits(eqx.filter(result, eqx.is_array), jax.tree.map(lambda x: x[0], expected))
    assert not same_bits(state.policy, state.rule_state.best)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(5e-6, 1e-6), (50.0, 100.0)])
def test_the_regularisation_has_limits(course: Course, first: float, then: float) -> None:
    good, bad = pushing(course, 0.0), pushing(course, 2.0)
    pair = {"policy": good, "best": bad} if then < first else {"policy": bad, "best": good}
    before = eqx.tree_at(
        lambda s: s.rule_state.regularisation, upright(course, **pair), jnp.full(1, first, jnp.float32)
    )
    assert course.advance(before)[1]["regularisation"] == pytest.approx(then, rel=1e-6)


@pytest.mark.slow
def test_the_policy_that_imitates_is_not_judged(course: Course) -> None:
    good, bad = pushing(course, 0.0), pushing(course, 2.0)
    before = upright(course, policy=bad, best=good)
    before = eqx.tree_at(lambda s: s.rule_state.iterations, before, jnp.ones(1, jnp.int32))
    after, metrics = course.advance(before)
    assert metrics["gain_over_best"] == 0
    assert metrics["regularisation"] == before.rule_state.regularisation[0]
    assert_same_bits(after.rule_state.best, bad)


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [1, SUPERVISED + 1])
def test_a_batch_that_is_not_finite_is_rejected_whole(course: Course, iteration: int) -> None:
    before = course.states[iteration]
    obs = before.collector_state.obs.at[0, 1].set(jnp.nan)
    after, metrics = course.advance(eqx.tree_at(lambda s: s.collector_state.obs, before, obs))
    assert metrics["status"] == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.policy))
    assert_same_bits((after.policy, after.rule_state), (before.policy, before.rule_state))


# Guides -------------------------------------------------------------------------------------------------------


def guides_of(environment: ClassicControl, horizon: int = STEPS) -> Guides:
    return Guides(environment, action_spec(environment.action_space), horizon, 2, 0.01)


def handmade_plan(gains: float, q_uu: float) -> Plan:
    integer = jnp.int32(0)
    return Plan(
        actions=jnp.full((4, 1), 1.5),
        states=jnp.zeros((5, 2)),
        gains=jnp.full((4, 1, 2), gains),
        feedforward=jnp.zeros((4, 1)),
        q_uu=jnp.full((4, 1, 1), q_uu),
        cost=jnp.float32(0),
        regularisation=jnp.float32(0),
        iterations=integer,
        status=integer,
        failed_step=integer,
    )


@pytest.mark.slow
def test_a_guide_means_nothing_beyond_the_bounds() -> None:
    guide = guides_of(Pendulum())._controller(handmade_plan(gains=-3.0, q_uu=0.2), jnp.zeros((4, 1, 1)))
    assert isinstance(guide, Guide)
    assert guide.usable
    states = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), jnp.float32)
    mean = np.asarray(jax.vmap(lambda state: guide.mean(1, state))(states))
    np.testing.assert_allclose(
        mean[:, 0], np.clip(1.5 - 3 * np.asarray(states).sum(axis=1), -2, 2), rtol=1e-5, atol=1e-6
    )
    assert (mean == 2).any()
    assert (mean == -2).any()
    # The deviation of temperature/Q_uu, and never more than half of the range.
    np.testing.assert_allclose(guide.covariance, 0.01 / (0.2 + 0.01 / 4), rtol=1e-5)
    flat = guides_of(Pendulum())._controller(handmade_plan(gains=0.0, q_uu=1e-7), jnp.zeros((4, 1, 1)))
    np.testing.assert_allclose(flat.cholesky, 2, rtol=1e-4)


def test_a_guide_is_as_wide_as_the_reward_says() -> None:
    """Not narrower for a policy's reluctance, unless that is all that curves."""
    for reluctance, curvature in ((0.15, 0.05), (0.3, 0.2)):
        guide = guides_of(Pendulum())._controller(handmade_plan(gains=0.0, q_uu=0.2), jnp.full((4, 1, 1), reluctance))
        np.testing.assert_allclose(guide.covariance, 0.01 / (curvature + 0.01 / 4), rtol=1e-5)


@pytest.mark.parametrize(("gains", "q_uu"), [(np.nan, 0.2), (0.0, np.nan), (0.0, -1.0)])
def test_a_plan_without_a_controller_gives_noise_and_says_so(gains: float, q_uu: float) -> None:
    guide = guides_of(Pendulum())._controller(handmade_plan(gains, q_uu), jnp.zeros((4, 1, 1)))
    assert not guide.usable
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(guide))
    np.testing.assert_array_equal(guide.mean(2, jnp.ones(2)), 0)
    np.testing.assert_array_equal(guide.cholesky, 2)


@pytest.mark.slow
def test_without_bounds_the_pendulum_has_a_derivative_at_the_limit() -> None:
    bounded, free = Pendulum(), Pendulum().unbounded()
    physics = jnp.array([0.4, -0.3])

    def parts(environment: Pendulum) -> Callable[[Array], Array]:
        return lambda u: jnp.append(environment.dynamics(physics, u), environment.cost(physics, u))

    for u in (-2.0, -0.7, 0.0, 1.3, 2.0):
        np.testing.assert_array_equal(parts(bounded)(jnp.array([u])), parts(free)(jnp.array([u])))
    for u in (-2.0, 2.0, 3.0):
        derivative = jax.jacfwd(parts(free))(jnp.array([u]))[:, 0]
        np.testing.assert_allclose(derivative, [0.05 * 0.15, 0.15, 0.002 * u], rtol=1e-5)
    assert jax.jacfwd(parts(bounded))(jnp.array([3.0])).any() == False  # noqa: E712
    assert Pendulum(gravity=3.0).unbounded().gravity == 3.0


@dataclasses.dataclass(frozen=True)
class Concave(LinearQuadratic):
    """One that pays for every action."""

    def reward(self, physics: Array, action: Array, successor: Array) -> Array:
        return super().reward(physics, action, successor) + 2 * jnp.sum(jnp.square(action))


@pytest.mark.slow
def test_a_cost_that_allows_no_guide_is_refused_by_its_time_step() -> None:
    with pytest.raises(ConfigError, match=r"not positive definite in the actions at time step 9 "):
        guides_of(Concave(), horizon=10).check()


@pytest.mark.slow
def test_a_cost_that_is_flat_in_some_places_is_not_refused() -> None:
    """Hanging at rest nothing of the swing-up's cost is convex in the angle; not every start is hopeless."""
    guides_of(CartPoleSwingUp(), horizon=10).check()
