"""REPS: its dual against SciPy, its fit against the closed form, its limit from the definition of the KL."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from klimb import REPS
from problems import A, S, batch_on_table, make_mdp, make_table, mean_kl, probabilities, take

FULL = {"num_minibatches": 1, "max_grad_norm": None}


@pytest.fixture
def problem(x64):
    """A policy, its batch of exact expectations, and as tables its probabilities, advantages and the rows' weights."""
    mdp, policy = make_mdp(0), make_table(1)
    batch = batch_on_table(mdp, policy)
    columns = (np.asarray(column).reshape(S, A) for column in (batch.advantage, batch.weight))
    return policy, batch, np.asarray(probabilities(policy)), *columns


def solution(advantage: np.ndarray, weight: np.ndarray, epsilon: float) -> tuple[float, float, np.ndarray]:
    """(η, g(η), p'): the minimum of the dual by SciPy, and the distribution that it belongs to."""
    p = weight / weight.sum()
    dual = lambda eta: eta * epsilon + eta * scipy.special.logsumexp(advantage / eta, b=p)  # noqa: E731
    best = scipy.optimize.minimize_scalar(
        lambda x: dual(np.exp(x)), bounds=(-6, 8), method="bounded", options={"xatol": 1e-10}
    )
    joint = p * np.exp((advantage - advantage.max()) / np.exp(best.x))
    return float(np.exp(best.x)), float(best.fun), joint / joint.sum()


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_solves_the_dual_on_every_batch(problem, epsilon):
    policy, batch, _, advantage, weight = problem
    _, _, info = take(REPS(epochs=1, **FULL), policy, batch, epsilon=epsilon)
    eta, dual, joint = solution(advantage, weight, epsilon)
    assert float(info.extra["temperature"]) == pytest.approx(eta, rel=1e-4)
    assert float(info.extra["dual"]) == pytest.approx(dual, rel=1e-9)
    p = weight / weight.sum()
    assert scipy.special.rel_entr(joint, p).sum() == pytest.approx(epsilon, rel=1e-3)
    assert float(info.extra["weight_kl"]) == pytest.approx(epsilon, rel=1e-9)
    assert float(info.extra["weight_ess"]) == pytest.approx(1 / (joint**2 / p).sum(), rel=1e-4)
    # No duality gap: g(η) is what the weighted rows gain.
    assert (joint * advantage).sum() == pytest.approx(dual, rel=1e-4)


def test_the_fit_converges_to_the_solution_and_keeps_the_limit(problem):
    """π'(a|s) = p'(s, a)/p'(s); over the weighted states the mean KL(π'‖π) is within ε."""
    policy, batch, pi, advantage, weight = problem
    new, _, info = take(REPS(epsilon=0.05, learning_rate=0.02, epochs=2500, **FULL), policy, batch)
    _, _, joint = solution(advantage, weight, 0.05)
    states = joint.sum(1)
    expected = joint / states[:, None]
    np.testing.assert_allclose(probabilities(new), expected, rtol=0, atol=3e-4)
    assert np.abs(expected - pi).max() > 0.05
    assert 0.005 < mean_kl(probabilities(new), pi, states) < 0.05
    reached = mean_kl(probabilities(new), pi, weight.sum(1) / weight.sum())
    assert float(info.kl_new_old) == pytest.approx(reached, rel=1e-9)


def test_a_limit_above_what_any_weights_reach_gives_greedy_weights(problem):
    policy, batch, _, advantage, weight = problem
    _, _, info = take(REPS(epsilon=50.0, epochs=1, **FULL), policy, batch)
    best = np.unravel_index(advantage.argmax(), (S, A))
    share = weight[best] / weight.sum()
    assert float(info.extra["weight_kl"]) == pytest.approx(-np.log(share), rel=1e-3)
    assert float(info.extra["weight_kl"]) < 50
    assert float(info.extra["weight_ess"]) == pytest.approx(share, rel=1e-3)
