"""The C-step against closed forms, brute force and its own constraint."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from klimb.guided.kl_constrained_lqr import (
    DualStatus,
    KLConstrainedControllers,
    LinearPolicy,
    TimeVaryingModel,
    solve_constrained,
)
from klimb.guided.planning.linear_gaussian import LinearGaussian

N, T, D, A = 2, 4, 3, 2
Z = D + A
compiled = eqx.filter_jit(solve_constrained)


def solve(model: TimeVaryingModel, policy: LinearPolicy, epsilon: float) -> KLConstrainedControllers:
    """One program for each precision."""
    return compiled(model, policy, jnp.asarray(epsilon, model.cost.dtype))


def random_problem(rng: np.random.Generator, *, convex: bool) -> tuple[TimeVaryingModel, LinearPolicy]:
    """Costs of random scale and curvature, correlated noise."""
    root = rng.normal(size=(N, T, Z, Z))
    curvature = root @ np.swapaxes(root, -1, -2) / Z if convex else 0.5 * (root + np.swapaxes(root, -1, -2))
    dynamics = np.concatenate([np.eye(D) + 0.3 * rng.normal(size=(N, T, D, D)), rng.normal(size=(N, T, D, A))], -1)
    scale = np.exp(2 * rng.normal())
    spread = 0.5 * rng.normal(size=(N, T, A, A)) + np.eye(A)
    model = (dynamics, scale * curvature, scale * rng.normal(size=(N, T, Z)), scale * rng.normal(size=(N, T)))
    policy = (0.3 * rng.normal(size=(N, T, A, D)), spread @ np.swapaxes(spread, -1, -2) + 0.05 * np.eye(A))
    arrays = [[jnp.asarray(x) for x in part] for part in (model, policy)]
    return TimeVaryingModel(*arrays[0], jnp.ones((N, T), bool)), LinearPolicy(*arrays[1])


def controllers(found: KLConstrainedControllers, policy: LinearPolicy) -> tuple[LinearGaussian, LinearGaussian]:
    zeros = jnp.zeros((T, D)), jnp.zeros((T, A))
    lower = jnp.asarray(np.linalg.cholesky(np.asarray(policy.covariance[0])))
    ours = LinearGaussian(zeros[0], found.actions[0], found.gains[0], found.cholesky[0])
    return ours, LinearGaussian(*zeros, policy.gains[0], lower)


def path_of(model: TimeVaryingModel, controller: LinearGaussian) -> tuple[np.ndarray, float]:
    """States under the mean actions, and what they cost, by a plain loop."""
    x, states, cost = np.zeros(D), [], 0.0
    for t in range(T):
        states.append(x)
        z = np.concatenate([x, controller.mean(t, jnp.asarray(x))])
        cost += 0.5 * z @ model.cost_zz[0, t] @ z + model.cost_z[0, t] @ z + model.cost[0, t]
        x = np.asarray(model.dynamics[0, t]) @ z
    return np.stack(states), float(cost)


@pytest.mark.usefixtures("x64")
def test_one_step_is_the_closed_form() -> None:
    """At the last time step p ∝ π̄ exp(−cost/η): precision Σ⁻¹ + C_uu/η, mean −(that)⁻¹ (c_u + C_ux ξ ...)/η."""
    model, policy = random_problem(np.random.default_rng(0), convex=True)
    found = solve(model, policy, 0.3)
    for n in range(N):
        h, c = np.asarray(model.cost_zz[n, -1]), np.asarray(model.cost_z[n, -1])
        gain, sigma, eta = np.asarray(policy.gains[n, -1]), np.asarray(policy.covariance[n, -1]), float(found.eta)
        precision = np.linalg.inv(sigma) + h[D:, D:] / eta
        np.testing.assert_allclose(found.cholesky[n, -1] @ found.cholesky[n, -1].T, np.linalg.inv(precision), rtol=1e-9)
        np.testing.assert_allclose(found.actions[n, -1], np.linalg.solve(precision, -c[D:] / eta), rtol=1e-9)
        expected = np.linalg.solve(precision, np.linalg.solve(sigma, gain) - h[D:, :D] / eta)
        np.testing.assert_allclose(found.gains[n, -1], expected, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.curvature[n, -1], h[D:, D:], rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_no_other_actions_of_the_same_kl_cost_less() -> None:
    """Brute force over the mean actions of one path: the minimum of cost + η · distance is where the C-step says."""
    model, policy = random_problem(np.random.default_rng(1), convex=True)
    found = solve(model, policy, 0.2)
    assert found.status == DualStatus.CONVERGED
    precision = np.linalg.inv(np.asarray(policy.covariance[0]))
    parts = [np.asarray(x[0]) for x in (model.dynamics, model.cost_zz, model.cost_z, policy.gains)]

    def lagrangian(flat: np.ndarray) -> float:
        x, total = np.zeros(D), 0.0
        for f, h, c, gain, weight, apart in zip(*parts, precision, flat.reshape(T, A), strict=True):
            z = np.concatenate([x, gain @ x + apart])
            total += 0.5 * z @ h @ z + c @ z + float(found.eta) * 0.5 * apart @ weight @ apart
            x = f @ z
        return total

    best = scipy.optimize.minimize(lagrangian, np.zeros(T * A), tol=1e-12).x.reshape(T, A)
    ours, reference = controllers(found, policy)
    states, _ = path_of(model, ours)
    apart = np.stack([ours.mean(t, jnp.asarray(x)) - reference.mean(t, jnp.asarray(x)) for t, x in enumerate(states)])
    np.testing.assert_allclose(apart, best, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_kl_and_the_cost_are_those_of_the_controllers() -> None:
    model, policy = random_problem(np.random.default_rng(2), convex=True)
    found = solve(model, policy, 0.5)
    kl, predicted, previous = 0.0, 0.0, 0.0
    for n in range(N):
        one = jax.tree.map(lambda x, n=n: x[n : n + 1], (model, policy))
        ours, reference = controllers(jax.tree.map(lambda x, n=n: x[n : n + 1] if x.ndim else x, found), one[1])
        states, cost = path_of(one[0], ours)
        kl += float(jnp.mean(ours.kl(reference, jnp.asarray(states)[None]))) / N
        noisier = np.asarray(ours.covariance) - np.asarray(policy.covariance[n])
        predicted += (cost + 0.5 * np.sum(np.asarray(found.curvature[n]) * noisier)) / (N * T)
        previous += path_of(one[0], reference)[1] / (N * T)
    assert kl == pytest.approx(float(found.kl), rel=1e-9)
    assert previous == pytest.approx(float(found.previous_cost), rel=1e-9)
    assert predicted == pytest.approx(float(found.predicted_cost), rel=1e-9)
    assert predicted < previous


@pytest.mark.usefixtures("x64")
def test_noise_costs_what_the_curvature_says() -> None:
    """The mean of cost and η KL to go after noise in the last action but one, by sampling from the controllers on."""
    model, policy = random_problem(np.random.default_rng(3), convex=True)
    found = solve(model, policy, 0.5)
    noise = np.random.default_rng(0).normal(size=(100_000, A)) @ np.array([[0.5, 0.2], [0.0, 0.4]])

    def to_go(noise: np.ndarray) -> np.ndarray:
        x, total, extra = np.zeros((len(noise), D)), 0.0, noise
        for t in (T - 2, T - 1):
            u = np.asarray(found.actions[0, t]) + x @ np.asarray(found.gains[0, t]).T + extra
            z = np.concatenate([x, u], axis=1)
            h, c, f = (np.asarray(part[0, t]) for part in (model.cost_zz, model.cost_z, model.dynamics))
            apart = u - x @ np.asarray(policy.gains[0, t]).T
            distance = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.asarray(policy.covariance[0, t])), apart)
            # The KL of the noise itself is the controller's own choice.
            kl = 0.0 if extra is noise else 0.5 * distance
            total = total + 0.5 * np.einsum("ni,ij,nj->n", z, h, z) + z @ c + float(found.eta) * kl
            x, extra = z @ f.T, 0.0
        return total

    average = np.mean(0.5 * (to_go(noise) + to_go(-noise))) - to_go(np.zeros((1, A)))[0]
    second = noise.T @ noise / len(noise)
    assert average == pytest.approx(0.5 * np.sum(np.asarray(found.curvature[0, T - 2]) * second), rel=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_kl_is_what_was_asked_for_or_the_status_says_why() -> None:
    rng = np.random.default_rng(4)
    etas = []
    for i in range(50):
        model, policy = random_problem(rng, convex=i % 2 == 0)
        epsilon = float(np.exp(rng.uniform(-6, 1)))
        found = solve(model, policy, epsilon)
        assert found.status == DualStatus.CONVERGED
        assert abs(float(found.kl) / epsilon - 1) <= 0.1
        assert found.failed_step == -1
        assert found.predicted_cost < found.previous_cost
        etas.append(int(found.iterations))
    assert np.mean(etas) < 12


@pytest.mark.usefixtures("x64")
def test_a_tighter_bound_takes_a_larger_multiplier() -> None:
    model, policy = random_problem(np.random.default_rng(5), convex=True)
    found = [solve(model, policy, epsilon) for epsilon in (1e-3, 1e-2, 0.1, 1.0)]
    assert np.all(np.diff([float(f.eta) for f in found]) < 0)
    assert np.all(np.diff([float(f.predicted_cost) for f in found]) < 0)
    assert all(f.status == DualStatus.CONVERGED for f in found)


@pytest.mark.slow
def test_rewards_of_any_scale_in_single_precision() -> None:
    model, policy = random_problem(np.random.default_rng(6), convex=True)
    one = solve(model, policy, 0.1)
    for scale in (1e-6, 1e6):
        scaled = eqx.tree_at(lambda m: (m.cost_zz, m.cost_z), model, (scale * model.cost_zz, scale * model.cost_z))
        found = solve(scaled, policy, 0.1)
        assert found.status == DualStatus.CONVERGED
        assert found.actions.dtype == jnp.float32
        np.testing.assert_allclose(found.actions, one.actions, rtol=1e-2, atol=1e-3)
        assert float(found.eta) == pytest.approx(scale * float(one.eta), rel=1e-2)


@pytest.mark.usefixtures("x64")
def test_a_cost_that_no_action_changes_is_slack() -> None:
    model, policy = random_problem(np.random.default_rng(7), convex=True)
    free = eqx.tree_at(lambda m: (m.cost_zz, m.cost_z), model, (0 * model.cost_zz, 0 * model.cost_z))
    found = solve(free, policy, 0.1)
    assert found.status == DualStatus.SLACK
    np.testing.assert_allclose(found.cholesky @ jnp.swapaxes(found.cholesky, -1, -2), policy.covariance, rtol=1e-4)
    np.testing.assert_array_equal(found.actions, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("what", ["cost", "covariance"])
def test_what_can_not_be_solved_names_its_time_step_and_leaves_the_policy(what: str) -> None:
    model, policy = random_problem(np.random.default_rng(8), convex=True)
    if what == "cost":
        model = eqx.tree_at(lambda m: m.cost_zz, model, model.cost_zz.at[1, 2, D, D].set(jnp.nan))
    else:
        policy = eqx.tree_at(lambda p: p.covariance, policy, policy.covariance.at[1, 2].multiply(-1))
    found = solve(model, policy, 0.1)
    assert found.status == DualStatus.NOT_POSITIVE_DEFINITE
    assert found.failed_step == 2
    np.testing.assert_array_equal(found.actions, 0)
    np.testing.assert_array_equal(found.gains, policy.gains)
    np.testing.assert_allclose(
        found.cholesky[0] @ jnp.swapaxes(found.cholesky[0], -1, -2), policy.covariance[0], rtol=1e-4
    )


@pytest.mark.usefixtures("x64")
def test_steps_that_are_not_occupied_do_not_count() -> None:
    model, policy = random_problem(np.random.default_rng(9), convex=True)
    half = model.occupied.at[:, T // 2 :].set(False)
    blank = eqx.tree_at(
        lambda m: (m.cost_zz, m.cost_z, m.occupied),
        model,
        (model.cost_zz * half[..., None, None], model.cost_z * half[..., None], half),
    )
    other = eqx.tree_at(lambda m: m.cost, blank, jnp.where(half, blank.cost, 1e3))
    other = eqx.tree_at(lambda m: m.dynamics, other, jnp.where(half[..., None, None], blank.dynamics, 3.0))
    found, same = solve(blank, policy, 0.1), solve(other, policy, 0.1)
    assert found.status == DualStatus.CONVERGED
    np.testing.assert_array_equal(found.actions[:, T // 2 :], 0)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_the_cost_of_a_policy_that_differs_in_its_last_action() -> None:
    model, policy = random_problem(np.random.default_rng(10), convex=True)
    found = solve(model, policy, 0.1)
    still = jnp.zeros((N, T, A, A))
    assert float(found.cost_of(jnp.zeros((N, T, A)), still)) == float(found.previous_cost)
    shift = np.array([0.3, -0.7])
    h, c = np.asarray(model.cost_zz[0, -1])[D:, D:], np.asarray(model.cost_z[0, -1])[D:]
    expected = float(found.previous_cost) + (0.5 * shift @ h @ shift + c @ shift) / (N * T)
    given = jnp.zeros((N, T, A)).at[0, -1].set(shift)
    assert float(found.cost_of(given, still)) == pytest.approx(expected, rel=1e-12)
    expected = float(found.previous_cost) + 0.5 * h[0, 1] * 0.2 / (N * T)
    assert float(found.cost_of(0 * given, still.at[0, -1, 0, 1].set(0.2))) == pytest.approx(expected, rel=1e-12)


def test_every_status_has_a_message() -> None:
    assert all(status.message for status in DualStatus)
