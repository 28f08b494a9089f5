"""The walker's mistakes and the surrogate's error, against their closed forms; and both bounds."""

import numpy as np
import pytest

from klimb.theory.figures import tightrope


@pytest.mark.parametrize("epsilon", [0.01, 0.2])
def test_everything_has_its_closed_form(epsilon: float) -> None:
    found = tightrope.compute(epsilon=epsilon, horizon=60)
    steps = np.arange(1, 61)
    still_on = np.cumsum((1 - epsilon) ** steps)
    np.testing.assert_allclose(found.mistakes, steps - still_on, atol=1e-12)
    np.testing.assert_allclose(found.on_a_floor, epsilon * steps, rtol=1e-12)
    np.testing.assert_allclose(found.linear, epsilon * steps * (steps + 1) / 2, rtol=1e-12)
    # J(π) = T and J(π') = Σ (1 − ε)^{t+1}; a mistake with k steps after it loses 1 + k.
    surrogate = -epsilon * steps * (steps + 1) / 2
    np.testing.assert_allclose(found.gap, np.abs(still_on - steps - surrogate), atol=1e-10)
    drift = np.cumsum(1 - (1 - epsilon) ** (steps - 1))
    np.testing.assert_allclose(found.guarantee, 2 * epsilon * steps * drift, atol=1e-10)
    np.testing.assert_allclose(found.crude, 2 * steps * epsilon * steps * (steps - 1) / 2, atol=1e-10)


def test_mistakes_grow_with_the_square_and_stay_below_every_bound() -> None:
    found = tightrope.compute(epsilon=1e-4, horizon=200)
    assert np.all(found.mistakes <= found.linear)
    assert np.all(found.gap <= found.guarantee)
    assert np.all(found.guarantee <= found.crude)
    assert found.mistakes[199] / found.mistakes[99] == pytest.approx(4, rel=0.02)
    assert found.on_a_floor[199] / found.on_a_floor[99] == pytest.approx(2, rel=1e-9)
    # The guarantee is six times the error here, and not thousands of times.
    assert found.guarantee[199] / found.gap[199] == pytest.approx(6, rel=0.03)
