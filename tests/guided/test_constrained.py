"""Constrained guided policy search: the penalised step, the multiplier's dual step, and what it learns."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb.guided.constrained import ConstrainedSearch
from klimb.guided.kl_constrained_lqr import DualStatus, solve_constrained, solve_penalised
from klimb.guided.local_models import LocalModels
from klimb.types import Status
from linear_quadratic_task import ENVIRONMENT, batch_of, collect, policy_of, returns, step

RULE = ConstrainedSearch(LocalModels(), epsilon=0.1, epochs=10, minibatch_size=120, learning_rate=3e-3)


@pytest.fixture(scope="module")
def problem():
    policy = policy_of(0)
    rollout = collect(jax.random.key(0), policy)
    return eqx.filter_jit(LocalModels().problem)(policy, batch_of(rollout))


@pytest.mark.slow
def test_the_penalised_minimum_is_the_constrained_one_at_its_multiplier(problem) -> None:
    constrained = jax.jit(solve_constrained)(problem.model, problem.policy, 0.1)
    penalised = jax.jit(solve_penalised)
    same = penalised(problem.model, problem.policy, constrained.eta, 0.1)
    assert constrained.status == same.status == DualStatus.CONVERGED
    for name in ("actions", "gains", "cholesky", "kl", "predicted_cost", "previous_cost"):
        np.testing.assert_allclose(getattr(same, name), getattr(constrained, name), rtol=1e-3, atol=1e-4)
    kls = [float(penalised(problem.model, problem.policy, constrained.eta * f, 0.1).kl) for f in (0.5, 1, 2, 8)]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] > 1.5 * kls[1] > 2 * kls[2]


@pytest.mark.slow
def test_a_multiplier_for_which_there_is_no_minimum_is_told(problem) -> None:
    concave = dataclasses.replace(problem.model, cost_zz=-10 * jnp.ones_like(problem.model.cost_zz))
    found = jax.jit(solve_penalised)(concave, problem.policy, 1e-3, 0.1)
    assert found.status == DualStatus.NOT_POSITIVE_DEFINITE
    assert found.failed_step >= 0
    np.testing.assert_array_equal(found.actions, 0)
    assert found.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_multiplier_takes_one_step_of_ascent_on_the_dual() -> None:
    policy = policy_of(0)
    batch = batch_of(collect(jax.random.key(0), policy))
    # At first the constraint itself is solved: no step of the multiplier is known to be good.
    _, first, info = step(RULE, policy, RULE.init(policy), batch)
    kl, eta = float(info.extra["local_kl"]), float(info.extra["eta"])
    assert kl == pytest.approx(0.1, rel=0.11)
    assert float(first.multiplier) == pytest.approx(eta * (kl / 0.1) ** 0.5, rel=1e-4)
    # Then the multiplier is what it was left at, and the KL what follows from it.
    large = first._replace(multiplier=jnp.float32(4 * eta))
    _, second, info = step(RULE, policy, large, batch)
    kl = float(info.extra["local_kl"])
    assert float(info.extra["eta"]) == pytest.approx(4 * eta, rel=1e-5)
    assert kl < 0.05
    assert float(second.multiplier) == pytest.approx(4 * eta * (kl / 0.1) ** 0.5, rel=1e-4)
    assert second.multiplier < large.multiplier


@pytest.mark.slow
def test_it_learns_while_the_constraint_is_met_in_the_long_run() -> None:
    policy = policy_of(0)
    assert returns(policy, 100) < -100
    state, kls = RULE.init(policy), []
    for i in range(30):
        policy, state, info = step(RULE, policy, state, batch_of(collect(jax.random.key(i), policy)))
        assert info.status == Status.ACCEPTED
        kls.append(float(info.extra["local_kl"]))
    assert returns(policy, 100) > -12
    # Costs go on falling, by orders of magnitude in all, and the multiplier follows half a step behind.
    assert all(0.03 < kl < 0.12 for kl in kls[-15:])
    assert 0.05 < np.mean(kls[-15:]) < 0.11


def test_it_is_said_of_the_environment_what_is_recorded() -> None:
    exact = ConstrainedSearch(LocalModels("simulator", environment=ENVIRONMENT)).traits
    assert (exact.records_env_state, exact.records_derivatives) == (True, False)
    recorded = ConstrainedSearch(LocalModels("simulator", look_ahead=5)).traits
    assert (recorded.records_env_state, recorded.records_derivatives) == (False, True)
    assert {"value_r2", "simulator_steps"} <= set(recorded.metrics)
    assert "value_r2" not in exact.metrics
