"""The step certificate against exact tables: its KL, TV and worst states are right, its lower bound is kept."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, Categorical, KLPenalty, RunConfig, TabularMDP, TrainOptions, exact_batch
from klimb.estimate.bounds import average_improvement_bound, guaranteed_fraction, improvement_bound
from klimb.estimate.certificate import certificate
from klimb.improve.acceptance import standard_error
from klimb.tabular.table import SoftmaxTable
from klimb.training.program import Program
from klimb.types import Batch, Rollout, Trajectory

FROZEN_LAKE = "FrozenLake8x8-v1"


def step_on_a_table(rule, seed: int, gamma: float):
    """(problem, old table, new table, certificate) of one step on an exact batch."""
    mdp = TabularMDP.random(seed, 5, 3, gamma)
    policy = SoftmaxTable(jax.random.normal(jax.random.key(seed), (5, 3)))
    batch = exact_batch(mdp, policy)
    moved, _, info = rule.step(jax.random.key(0), policy, rule.init(policy), batch)
    said = certificate(info, batch, gamma)
    return mdp, jax.nn.softmax(policy.logits), jax.nn.softmax(moved.logits), said, info


@pytest.mark.slow
@pytest.mark.parametrize("rule", [TRPO(max_kl=0.05), KLPenalty(num_minibatches=1)])
def test_the_lower_bound_is_kept_where_every_state_is_in_the_batch(x64, rule):
    for seed, gamma in ((0, 0.5), (1, 0.9), (2, 0.99)):
        mdp, old, new, said, info = step_on_a_table(rule, seed, gamma)
        brought = float((1 - gamma) * (mdp.objective(new) - mdp.objective(old)))
        assert float(info.surrogate_gain) != 0
        assert float(said["sampled_improvement_bound"]) <= brought + 1e-12
        variation = 0.5 * jnp.sum(jnp.abs(mdp.state_distribution(new) - mdp.state_distribution(old)))
        assert float(variation) <= float(said["state_mismatch_bound"]) <= 1
        # The bound is not negative exactly when the step is no longer than the longest with such a bound.
        assert (float(said["step_excess"]) <= 1) == (float(said["sampled_improvement_bound"]) >= 0)


@pytest.mark.slow
def test_a_tiny_step_has_a_positive_bound(x64):
    *_, said, _ = step_on_a_table(TRPO(max_kl=1e-9), 1, 0.9)
    assert float(said["sampled_improvement_bound"]) > 0
    assert float(said["step_excess"]) < 1


@pytest.mark.parametrize("gamma", [0.5, 0.99])
def test_the_excess_is_where_the_bounds_are_zero(x64, gamma):
    """A step s times as long has s times the surrogate, the worst gain and the total variation."""
    gain, worst, epsilon, mean_tv = 0.02, 0.3, 0.1, 0.04
    s = float(guaranteed_fraction(gain, worst, epsilon, mean_tv, gamma))
    left = 1 - gamma
    at_worst = float(improvement_bound(s * gain / left, s * worst, s * epsilon, gamma))
    on_average = float(average_improvement_bound(s * gain / left, s * worst, s * mean_tv / left, gamma))
    assert max(at_worst, on_average) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_a_rejected_step_promises_and_risks_nothing(x64):
    mdp = TabularMDP.random(0, 4, 2, 0.9)
    policy = SoftmaxTable(jnp.zeros((4, 2)))
    batch = exact_batch(mdp, policy)
    silent = eqx.tree_at(lambda b: b.advantage, batch, jnp.zeros_like(batch.advantage))
    _, _, info = TRPO().step(jax.random.key(0), policy, (), silent)
    said = certificate(info, silent, 0.9)
    names = ("sampled_improvement_bound", "step_excess", "state_mismatch_bound", "kl_old_new_max", "tv_max_bound")
    assert {name: float(said[name]) for name in names} == dict.fromkeys(names, 0.0)


def test_without_discount_there_is_no_bound(x64):
    *_, info = step_on_a_table(TRPO(), 0, 0.9)
    batch = exact_batch(TabularMDP.random(0, 5, 3, 0.9), SoftmaxTable(jnp.zeros((5, 3))))
    said = certificate(info, batch, 1.0)
    assert float(said["sampled_improvement_bound"]) == -np.inf
    assert float(said["state_mismatch_bound"]) == pytest.approx(1)
    assert float(said["step_excess"]) == np.inf


def batch_of(columns: np.ndarray) -> Batch:
    """A batch whose advantages are `[T, N]` numbers, of equal weight."""
    flat, zeros, flags = jnp.asarray(columns), jnp.zeros(columns.shape), jnp.zeros(columns.shape, bool)
    rollout = Rollout(zeros, flags.astype(int), zeros, zeros, flags, flags, zeros, ~flags)
    rows = zeros.reshape(-1)
    return Batch(rows, rows.astype(int), rows, flat.reshape(-1), rows, jnp.ones_like(rows), Trajectory(rollout))


def test_rows_of_one_column_are_no_independent_evidence(x64):
    """Rows that are all equal within a column tell as much as one row of it does."""
    rng = np.random.default_rng(0)
    once = rng.normal(size=(1, 50))
    single, repeated = batch_of(once), batch_of(np.repeat(once, 20, axis=0))
    expected = once.std(ddof=1) / np.sqrt(50)
    assert float(standard_error(single.advantage, single)) == pytest.approx(expected, rel=1e-12)
    assert float(standard_error(repeated.advantage, repeated)) == pytest.approx(expected, rel=1e-12)
    independent = batch_of(rng.normal(size=(400, 50)))
    assert float(standard_error(independent.advantage, independent)) == pytest.approx(20_000**-0.5, rel=0.3)


@pytest.fixture(scope="module")
def frozen_lake_steps() -> dict[str, np.ndarray]:
    """30 TRPO steps on FrozenLake: the certificate's numbers, and the exact ones of the same two policies.

    States count as often as the policy that collected visits them before an episode ends.
    """
    options = TrainOptions(env_steps=10**6, hidden=(), num_envs=256, num_steps=64)
    program = Program(RunConfig(FROZEN_LAKE, TRPO(damping=1e-3), options), klimb.make(FROZEN_LAKE))
    with jax.enable_x64(True):
        mdp = TabularMDP.from_gymnasium(FROZEN_LAKE, 1.0)
        inside = ~np.asarray(mdp.absorbing)
    read = jax.jit(lambda arrays: jax.vmap(eqx.combine(arrays, program.policy_static))(jnp.eye(64)).logits)

    def logits(state) -> np.ndarray:
        return np.asarray(read(jax.tree.map(lambda x: x[0], state.policy)), float)

    state, rows = program.initial_state(), []
    old = logits(state)
    for _ in range(30):
        state, metrics = program.advance(state, 1)
        new = logits(state)
        with jax.enable_x64(True):
            p, q = Categorical(logits=jnp.asarray(old)), Categorical(logits=jnp.asarray(new))
            rates = np.asarray(mdp.state_distribution(p.probs))
            tables = {
                "kl_old_new": np.asarray(klimb.kl_divergence(p, q)),
                "kl_new_old": np.asarray(klimb.kl_divergence(q, p)),
                "tv": np.asarray(klimb.total_variation(p, q)),
            }
        exact = {f"exact_{name}": rates @ table for name, table in tables.items()}
        exact |= {f"exact_{name}_max": table[inside].max() for name, table in tables.items()}
        rows.append({**{name: float(x[0, 0]) for name, x in metrics.items()}, **exact})
        old = new
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_old_new", "kl_new_old", "tv"])
def test_means_agree_with_the_exact_ones_within_their_standard_errors(frozen_lake_steps, name):
    """z-scores of 26 steps: of size 1, neither far too large nor far too small, and without a common bias."""
    steps = {key: values[4:] for key, values in frozen_lake_steps.items()}
    z = (steps[name] - steps[f"exact_{name}"]) / steps[f"{name}_se"]
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.5
    assert np.max(np.abs(z)) < 5
    # The errors are small enough for the agreement to mean something.
    assert np.median(steps[f"{name}_se"] / steps[f"exact_{name}"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_old_new_max", "kl_new_old_max", "tv_max"])
def test_worst_states_are_the_exact_ones_where_they_are_visited(frozen_lake_steps, name):
    ratio = frozen_lake_steps[name] / frozen_lake_steps[f"exact_{name}"]
    assert np.max(ratio) < 1 + 1e-3
    assert np.median(ratio) > 1 - 1e-3


@pytest.mark.slow
def test_bounds_bound_and_lower_bounds_stay_below(frozen_lake_steps):
    steps = frozen_lake_steps
    assert np.all(steps["tv"] <= steps["tv_bound"])
    assert np.all(steps["tv_max"] <= steps["tv_max_bound"] + 1e-6)
    assert np.all(steps["sampled_improvement_bound"] <= steps["predicted_improvement"])
    assert np.all((steps["step_excess"] <= 1) == (steps["sampled_improvement_bound"] >= 0))
    assert np.all((steps["state_mismatch_bound"] > 0) & (steps["state_mismatch_bound"] <= 1))


@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_switched_off_it_leaves_no_trace(env):
    kept, dropped = (
        set(program.source.metric_shapes(program.state_template()))
        for program in (
            Program(RunConfig(env, PPO(), TrainOptions(certificate=switch, hidden=(4,))), klimb.make(env))
            for switch in (True, False)
        )
    )
    assert kept - dropped == {
        *("kl_old_new_se", "kl_new_old_se", "tv_se", "kl_old_new_max", "kl_new_old_max", "tv_bound", "tv_max_bound"),
        *("predicted_improvement", "predicted_improvement_se", "realised_improvement", "realised_improvement_se"),
        *("sampled_improvement_bound", "step_excess", "state_mismatch_bound", "kl_normalizer"),
    }
    assert dropped < kept
