"""Local models along paths: exact on a linear-quadratic task, whether fitted, differentiated or recorded."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.linear_quadratic import LinearQuadratic
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import ConfigError
from klimb.guided.fitting import QuadraticModel
from klimb.guided.local_models import LocalModels, LocalProblem, differentiate, expand
from klimb.guided.paths import Paths
from klimb.policies.actions import Box
from klimb.policies.networks import NetworkPolicy
from klimb.types import Batch, Derivatives, Rollout, Trajectory

T, N = 12, 9
A, B = np.array([[1.1, 0.2], [0.0, 0.9]]), np.array([[0.3, 0.0], [0.1, 0.3]])
Q, R = np.diag([1.0, 0.5]), 0.1 * np.eye(2)
ENVIRONMENT = LinearQuadratic.of(A, B, Q, R, max_episode_steps=T)
ACTIONS = Box((-50.0, -50.0), (50.0, 50.0))


@pytest.fixture(scope="module")
def policy() -> NetworkPolicy:
    policy = NetworkPolicy(2, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(8,), initial_log_std=-0.7, key=jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, policy)


@pytest.fixture(scope="module")
def batch(policy: NetworkPolicy) -> Batch:
    collector = CompiledCollector(ENVIRONMENT, N, T, records_env_state=True)
    rollout = eqx.filter_jit(lambda key: collector.collect(key, policy, collector.init(key))[1])(jax.random.key(1))
    return batch_of(rollout)


def batch_of(rollout: Rollout) -> Batch:
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    zeros, weight = jnp.zeros_like(rows.reward), rows.valid.astype(rows.reward.dtype)
    # The value of every state is xᵀ diag(−1, −2) x + x₀.
    value = -jnp.square(rows.obs) @ jnp.array([1.0, 2.0]) + rows.obs[:, 0]
    return Batch(rows.obs, rows.action, rows.log_prob, zeros, value, weight, Trajectory(rollout))


@eqx.filter_jit
def problem(models: LocalModels, policy: NetworkPolicy, batch: Batch) -> LocalProblem:
    return models.problem(policy, batch)


@pytest.mark.slow
def test_a_linear_quadratic_task_is_the_same_fitted_and_differentiated(policy: NetworkPolicy, batch: Batch) -> None:
    fitted = problem(LocalModels(), policy, batch)
    exact = problem(LocalModels("simulator", environment=ENVIRONMENT), policy, batch)
    np.testing.assert_allclose(exact.model.dynamics[1, 3], np.hstack([A, B]), atol=1e-6)
    for name in ("dynamics", "cost_zz", "cost_z", "cost"):
        ours, theirs = getattr(fitted.model, name), getattr(exact.model, name)
        np.testing.assert_allclose(ours, theirs, atol=3e-2 * float(jnp.max(jnp.abs(theirs))))
    np.testing.assert_allclose(fitted.policy.gains, exact.policy.gains, atol=1e-6)
    assert fitted.metrics["model_r2"] > 0.999
    assert exact.metrics["simulator_steps"] == 0


@pytest.mark.slow
def test_recorded_derivatives_are_used_as_they_are(policy: NetworkPolicy, batch: Batch) -> None:
    """A simulator whose state is x = S obs, with units of its own."""
    rollout, scale = batch.trajectory.rollout, np.array([[10.0, 0.0], [3.0, 0.5]])
    exact = differentiate(ENVIRONMENT, rollout)
    inverse = np.linalg.inv(scale)
    to_z = np.block([[inverse, np.zeros((2, 2))], [np.zeros((2, 2)), np.eye(2)]])
    recorded = Derivatives(
        scale @ exact.dynamics @ to_z, exact.obs @ inverse, exact.next_obs @ to_z, exact.reward @ to_z
    )
    with_record = batch_of(dataclasses.replace(rollout, derivatives=recorded))
    models = LocalModels("simulator", look_ahead=4)
    found = problem(models, policy, with_record)
    same = problem(dataclasses.replace(models, environment=ENVIRONMENT), policy, batch)
    np.testing.assert_allclose(found.model.dynamics, scale @ same.model.dynamics @ to_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.model.cost_z, same.model.cost_z @ to_z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.model.cost_zz, to_z.T @ same.model.cost_zz @ to_z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.policy.gains, same.policy.gains @ inverse, rtol=1e-4, atol=1e-5)
    assert found.metrics["simulator_steps"] == T * N * 5


@pytest.mark.slow
def test_what_comes_after_the_look_ahead_is_worth_its_value(policy: NetworkPolicy, batch: Batch) -> None:
    ahead = problem(LocalModels("simulator", look_ahead=1, environment=ENVIRONMENT), policy, batch)
    assert ahead.metrics["value_r2"] > 0.999
    np.testing.assert_array_equal(ahead.model.dynamics, 0)

    def cost(z: jax.Array) -> jax.Array:
        x, u = z[:2], z[2:]
        after = A @ x + B @ u
        return -ENVIRONMENT.reward(x, u, after) + jnp.square(after) @ jnp.array([1.0, 2.0]) - after[0]

    for n, t in ((0, 0), (4, 7), (8, T - 1)):
        z = jnp.concatenate([ahead.paths.state[n, t], ahead.paths.action[n, t]])
        np.testing.assert_allclose(ahead.model.cost_z[n, t], jax.grad(cost)(z), rtol=2e-2, atol=5e-2)
        np.testing.assert_allclose(ahead.model.cost_zz[n, t], jax.hessian(cost)(z), atol=0.25)  # the ridge's bias


def test_where_paths_end(batch: Batch) -> None:
    rollout = batch.trajectory.rollout
    flags = rollout.terminated.at[2, 0].set(True), rollout.truncated.at[5, 0].set(True).at[3, 1].set(True)
    rollout = eqx.tree_at(lambda r: (r.terminated, r.truncated), rollout, flags)
    rollout = eqx.tree_at(lambda r: r.valid, rollout, rollout.valid.at[8, 2].set(False))
    whole, cut = Paths.of(rollout), Paths.of(rollout, 5)
    assert not whole.outlook.any()
    steps = np.arange(T)
    np.testing.assert_array_equal(whole.continues[0], ~np.isin(steps, (2, 5, T - 1)))
    np.testing.assert_array_equal(cut.continues[0], ~np.isin(steps, (2, 4, 5, 9, T - 1)))
    np.testing.assert_array_equal(cut.outlook[0], np.isin(steps, (4, 5, 9, T - 1)))  # not where the task has ended
    np.testing.assert_array_equal(cut.outlook[1], np.isin(steps, (3, 4, 9, T - 1)))
    np.testing.assert_array_equal(cut.outlook[2], np.isin(steps, (4, 7, 9, T - 1)))
    assert not cut.continues[2, 7:9].any()


def test_derivatives_of_classic_control_follow_its_clipping() -> None:
    environment = Pendulum()
    x, u = jnp.array([[[0.4, -1.0]], [[0.4, -1.0]]]), jnp.array([[[0.5]], [[3.0]]])
    flag, number = jnp.zeros((2, 1), bool), jnp.zeros((2, 1))
    obs = jax.vmap(jax.vmap(environment.observe))(x)
    rollout = Rollout(obs, u, number, number, flag, flag, obs, ~flag, env_state=x)
    found = jax.jit(lambda r: differentiate(environment, r))(rollout)
    expected = jax.jacfwd(lambda z: environment.dynamics(z[:2], z[2:]))(jnp.array([0.4, -1.0, 0.5]))
    np.testing.assert_allclose(found.dynamics[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.obs[0, 0], jax.jacfwd(environment.observe)(x[0, 0]), rtol=1e-5)
    np.testing.assert_allclose(
        found.next_obs[0, 0],
        jax.jacfwd(environment.observe)(environment.dynamics(x[0, 0], u[0, 0])) @ expected,
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_array_equal(found.dynamics[1, 0, :, 2], 0)  # beyond the bound
    assert found.dynamics[0, 0, 1, 2] > 0


@pytest.mark.slow
def test_the_expansion_keeps_the_convex_part_only() -> None:
    rng = np.random.default_rng(1)
    z = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32)
    saddle = np.diag([1.0, -1.0, 2.0, 2.0])
    y = -0.5 * jnp.einsum("bi,ij,bj->b", z, saddle, z)[:, None]
    model = jax.jit(QuadraticModel.fit)(z, y, jnp.ones(60))
    curvature = model.convex_cost()
    np.testing.assert_allclose(curvature, np.diag([1.0, 0.0, 2.0, 2.0]), atol=0.05)
    flag = jnp.ones((1, 2), bool)
    paths = Paths(z[None, :2, :2], z[None, :2, 2:], jnp.zeros((1, 2, 2)), jnp.zeros((1, 2)), flag, flag, ~flag)
    ones, sees = jnp.ones((1, 2, 2, 4)), jnp.broadcast_to(3 * jnp.eye(2), (1, 2, 2, 2))
    slopes = Derivatives(ones, sees, ones, ones[..., 0, :])
    found = expand(paths, slopes, curvature, None)
    np.testing.assert_allclose(found.cost_zz[0, 0], np.diag([9.0, 0.0, 2.0, 2.0]), atol=0.5)
    np.testing.assert_array_equal(found.cost_z, -1)


def test_a_policy_is_linearised_where_it_acts(policy: NetworkPolicy, batch: Batch) -> None:
    found = problem(LocalModels(), policy, batch)
    obs, step = found.paths.state[3, 4], jnp.array([0.0, 1e-2])
    difference = (policy(obs + step).mean - policy(obs - step).mean) / 2e-2
    np.testing.assert_allclose(found.policy.gains[3, 4, :, 1], difference, rtol=1e-2, atol=1e-5)
    std = np.exp(-0.7)
    np.testing.assert_allclose(found.policy.covariance[3, 4], np.diag([std**2, std**2]), rtol=1e-5)


def test_a_rollout_without_derivatives_is_refused(policy: NetworkPolicy, batch: Batch) -> None:
    with pytest.raises(ConfigError, match=r"this one has none \(derivatives=None\)"):
        LocalModels("simulator").problem(policy, batch)
