"""The benchmarks run by hand, so what they import from klimb is looked up here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backward_passes
import gpu
import ideas_page
import units
from klimb.environments.control.cartpole import CartPole
from klimb.environments.control.linear_quadratic import LinearQuadratic
from results_file import read_results
from rewards import OtherRewards

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.relative_to(BENCHMARKS).as_posix()
)
def test_what_benchmarks_import_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "klimb":
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [], node.module


def rewards_of_an_episode(env, action, limit: int = 50) -> list[float]:
    """The rewards of one action taken until the episode ends."""
    key = jax.random.key(0)
    state, _ = env.reset(key)
    rewards = []
    for _ in range(limit):
        after = env.step(key, state, action)
        state = after.state
        rewards.append(float(after.reward))
        if after.terminated | after.truncated:
            return rewards
    raise AssertionError("the episode does not end")


@pytest.mark.parametrize(
    ("task", "action"), [(CartPole(), jnp.int32(1)), (LinearQuadratic(max_episode_steps=5), jnp.array([0.3, -1.0]))]
)
def test_other_rewards_add_up_to_the_return_of_the_task_times_the_scale(task, action):
    """Of an episode that is terminated, and of one that is truncated."""
    own = rewards_of_an_episode(task, action)
    assert len(own) >= 5
    np.testing.assert_allclose(rewards_of_an_episode(OtherRewards(task, 0.01), action), 0.01 * np.array(own), rtol=1e-6)
    *before, last = rewards_of_an_episode(OtherRewards(task, 100, sparse=True), action)
    assert before == [0.0] * (len(own) - 1)
    assert last == pytest.approx(100 * sum(own), rel=1e-5)


def test_other_units_are_seen_and_change_nothing_else():
    metres, centimetres = LinearQuadratic(), units.InUnits(per_metre=100.0)
    key, force = jax.random.key(3), jnp.array([0.3, -1.0])
    (state, obs), (seen, scaled) = metres.reset(key), centimetres.reset(key)
    after, after_scaled = metres.step(key, state, force), centimetres.step(key, seen, force)
    for own, other in ((obs, scaled), (after.obs, after_scaled.obs)):
        np.testing.assert_allclose(other, own * np.array([100, 100, 1, 1]), rtol=1e-6)
    assert after_scaled.reward == after.reward
    policy = units.at_rest(centimetres.observations, centimetres.actions, key)
    assert not policy(scaled).mode().any()


@pytest.mark.slow
def test_the_best_return_is_that_of_the_best_sequence_of_forces():
    """The cost of four steps is quadratic in the eight forces: its minimum from each axis of the starts."""
    task = LinearQuadratic(max_episode_steps=4)

    def cost(forces, start):
        total, state = 0.0, start
        for force in forces.reshape(4, 2):
            total, state = total + task.cost(state, force), task.dynamics(state, force)
        return total

    still, best = jnp.zeros(8), 0.0
    for start in jnp.sqrt(jnp.array(task.initial_covariance)):
        gradient, curvature = jax.grad(cost)(still, start), jax.hessian(cost)(still, start)
        best -= cost(-jnp.linalg.solve(curvature, gradient), start)
    assert units.best_return(task) == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize("part", ideas_page.WRITERS)
def test_the_page_on_ideas_shows_what_was_measured(part):
    shown = "\n".join(ideas_page.WRITERS[part](read_results("ideas")[part]))
    assert f"<!-- {part} -->\n{shown}\n<!-- end of {part} -->" in ideas_page.PAGE.read_text()


@pytest.mark.slow
def test_four_ways_to_a_gradient_are_one_gradient_and_only_one_of_them_holds_all_rows():
    few, many = (backward_passes.measure(rows, turns=1) for rows in (16, 64))
    for result in (few, many):
        assert max(result["largest_difference"].values()) < 1e-5
        assert result["intermediate_bytes"]["all rows, vmap"] >= 4 * result["rows"] * result["parameters"]
        assert result["intermediate_bytes"][backward_passes.ONE_PASS] < 4 * result["rows"] * result["parameters"] / 4
    held = [result["intermediate_bytes"]["row by row, compiled"] for result in (few, many)]
    assert held[0] == held[1]


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs_here_with_small_sizes():
    row = gpu.Row("jax:CartPole-v1", "ppo", 4096, 16).small()
    found = gpu.in_a_process(row)
    assert set(found) == {"alone", "acting", "training", "compile_seconds", "mean_kl", "peak_mib"}
    assert min(found["alone"], found["acting"], found["training"], found["peak_mib"]) > 0
    assert found["mean_kl"] > 0


def test_the_page_of_gpus_claims_only_what_was_measured():
    page = gpu.PAGE.read_text(encoding="utf-8")
    measured = read_results("gpu")
    if not measured:
        assert page.count(gpu.NOTHING) == 3
        assert gpu.page_with(page, {}, None) == page
    row = gpu.COLUMNS[0]
    found = {"alone": 9000, "acting": 800, "training": 70, "compile_seconds": 6.5, "mean_kl": 0.01, "peak_mib": 1234}
    filled = gpu.page_with(page, {row.name: found, "jax:CartPole-v1, ppo, 64 × 64": found}, "a device")
    assert "Measured on a device:" in filled
    assert "| `jax:CartPole-v1`, trpo, 512 × 64 | 9,000 | 800 | 70 | 1,234 MiB | 6.5 s |" in filled
