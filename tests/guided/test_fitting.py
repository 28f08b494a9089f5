"""The fitted model of an unknown environment: exact where it can be, indifferent to padding, sane with few rows."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.guided.fitting import Dynamics, Regions
from klimb.guided.paths import Paths
from klimb.guided.regression import positive_part, ridge_regression, solve_positive
from klimb.types import Rollout

T, N, D, A = 12, 9, 3, 2
RNG = np.random.default_rng(0)
F = np.concatenate([np.eye(D) + 0.2 * RNG.normal(size=(D, D)), RNG.normal(size=(D, A))], axis=1)
OFFSET = RNG.normal(size=D)
C = RNG.normal(size=(D + A, D + A))
C = C + C.T
fit = eqx.filter_jit(lambda rollout, strength: Dynamics.fit(Paths.of(rollout), strength=strength))


def rollout_of(rng: np.random.Generator, dtype: str = "float64") -> Rollout:
    """Scattered states with units apart by factors of a hundred, a linear system and a quadratic reward."""
    obs = rng.normal(size=(T, N, D)) * [0.1, 1.0, 10.0] + [5.0, 0.0, -3.0]
    action = rng.normal(size=(T, N, A))
    z = np.concatenate([obs, action], axis=-1)
    reward = -0.5 * np.einsum("tni,ij,tnj->tn", z, C, z) + 2.0
    flag = np.zeros((T, N), bool)
    arrays = (obs, action, np.zeros((T, N)), reward, flag, flag, z @ F.T + OFFSET, ~flag)
    return Rollout(*(jnp.asarray(x, dtype if x.dtype != bool else bool) for x in arrays))


@pytest.mark.usefixtures("x64")
def test_a_linear_system_and_a_quadratic_reward_are_recovered() -> None:
    rollout = rollout_of(np.random.default_rng(1))
    model = fit(rollout, 1e-12)
    z = jnp.array([4.9, 0.3, 2.0, -0.4, 0.7])
    np.testing.assert_allclose(model.slope(z)[:D], F - np.eye(D, D + A), atol=1e-6)
    np.testing.assert_allclose(model.slope(z)[D], -C @ z, atol=1e-5)
    np.testing.assert_allclose(model.quadratic.hessian[D], -C, atol=1e-6)
    np.testing.assert_allclose(model.quadratic.hessian[:D], 0, atol=1e-6)
    np.testing.assert_allclose(model(z), [*(F @ z + OFFSET - z[:D]), 2 - 0.5 * z @ C @ z], atol=1e-5)
    np.testing.assert_allclose(model.r2, 1, atol=1e-9)


@pytest.mark.slow
def test_padding_and_the_ends_of_episodes() -> None:
    rollout = rollout_of(np.random.default_rng(1), "float32")
    dirty = eqx.tree_at(lambda r: r.valid, rollout, rollout.valid.at[4, 2].set(False).at[:, 5].set(False))
    dirty = eqx.tree_at(lambda r: r.truncated, dirty, dirty.truncated.at[6].set(True))
    hole = ~dirty.valid
    poisoned = eqx.tree_at(
        lambda r: (r.obs, r.action, r.reward, r.successor),
        dirty,
        (
            *(jnp.where(hole[..., None], jnp.nan, x) for x in (dirty.obs, dirty.action)),
            jnp.where(hole, jnp.nan, dirty.reward),
            jnp.where(hole[..., None], jnp.nan, dirty.next_obs),
        ),
    )
    clean, same = fit(dirty, 1e-3), fit(poisoned, 1e-3)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    other = fit(rollout, 1e-3)
    assert np.abs(np.asarray(clean.quadratic.hessian - other.quadratic.hessian)).max() > 0


def kinked(z: np.ndarray) -> np.ndarray:
    """Two regions with other slopes each, of the first coordinate's sign."""
    return np.where(z[:, :1] > 0, z @ [[1.0], [2.0]] + 3, z @ [[-1.0], [0.5]])


@pytest.mark.usefixtures("x64")
def test_regions_find_slopes_that_differ_from_place_to_place() -> None:
    rng = np.random.default_rng(5)
    z = np.concatenate([rng.normal(size=(300, 2)) * 0.5 + [sign * 3, 0] for sign in (-1, 1)])
    weight = np.ones(len(z))
    weight[::7] = 0
    y = np.where(weight[:, None] > 0, kinked(z), 1e6)
    model = jax.jit(Regions.fit, static_argnums=3)(jnp.asarray(z), jnp.asarray(y), jnp.asarray(weight), 2)
    np.testing.assert_allclose(np.sort(np.exp(model.log_weight)), 0.5, atol=0.02)
    np.testing.assert_allclose(model.slope(jnp.array([3.0, 0.2])), [[1, 2]], atol=0.2)
    np.testing.assert_allclose(model.slope(jnp.array([-3.0, 0.2])), [[-1, 0.5]], atol=0.2)
    np.testing.assert_allclose(model(jnp.array([3.0, 0.0])), [6], atol=0.3)
    one = jax.jit(Regions.fit, static_argnums=3)(jnp.asarray(z), jnp.asarray(y), jnp.asarray(weight), 1)
    assert abs(float(one.slope(jnp.array([3.0, 0.2]))[0, 1]) - 2) > 0.5


@pytest.mark.slow
def test_regions_add_what_the_quadratic_model_leaves_unexplained() -> None:
    rng = np.random.default_rng(6)
    rollout = rollout_of(rng, "float32")
    kink = jnp.abs(rollout.obs[..., 1:2] - 0.3) * jnp.array([0.0, 2.0, 0.0])
    rollout = eqx.tree_at(lambda r: r.successor, rollout, rollout.successor + kink)
    alone, both = (jax.jit(Dynamics.fit, static_argnums=1)(Paths.of(rollout), count) for count in (0, 4))
    assert both.r2[1] > alone.r2[1]
    np.testing.assert_array_equal(both.quadratic.r2, alone.r2)
    z = jnp.concatenate([rollout.obs[0, 0], rollout.action[0, 0]])
    np.testing.assert_allclose(both.slope(z), both.quadratic.slope(z) + both.regions.slope(z), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_ridge_regression_equals_the_normal_equations() -> None:
    rng = np.random.default_rng(2)
    x, y, w = rng.normal(size=(40, 5)) * 3 + 1, rng.normal(size=(40, 2)), rng.uniform(size=40)
    w[:7] = 0
    found = jax.jit(ridge_regression)(jnp.asarray(x), jnp.asarray(y), jnp.asarray(w), 0.3)
    p = w / w.sum()
    mean_x, mean_y = p @ x, p @ y
    scale = np.sqrt(p @ (x - mean_x) ** 2)
    standard = (x - mean_x) / scale
    solution = np.linalg.solve((p[:, None] * standard).T @ standard + 0.3 * np.eye(5), (p[:, None] * standard).T @ y)
    np.testing.assert_allclose(found.coefficients, solution / scale[:, None], rtol=1e-9)
    np.testing.assert_allclose(found.constant, mean_y - mean_x @ found.coefficients, rtol=1e-9)
    rest = y - found.constant - x @ found.coefficients
    np.testing.assert_allclose(found.r2, 1 - p @ rest**2 / (p @ (y - mean_y) ** 2), rtol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_and_constant_columns_stay_finite(rows: int) -> None:
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32).at[:, 2].set(7.0).at[:, 5].set(0.0)
    weight = jnp.asarray(np.arange(4) < rows, jnp.float32)
    found = jax.jit(ridge_regression)(x, x[:, :2], weight, 1e-3)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in found)
    np.testing.assert_array_equal(found.coefficients[jnp.array([2, 5])], 0)


@pytest.mark.usefixtures("x64")
def test_solving_and_positive_parts_agree_with_lapack() -> None:
    rng = np.random.default_rng(4)
    root = rng.normal(size=(3, 60, 60))
    matrix, right = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(60), rng.normal(size=(3, 60, 2))
    found = jax.jit(jax.vmap(solve_positive))(jnp.asarray(matrix), jnp.asarray(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)
    symmetric = root[0] + root[0].T
    values, vectors = np.linalg.eigh(symmetric)
    expected = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(jax.jit(positive_part)(jnp.asarray(symmetric)), expected, atol=1e-9)
    np.testing.assert_array_equal(positive_part(jnp.zeros((3, 3))), 0)
