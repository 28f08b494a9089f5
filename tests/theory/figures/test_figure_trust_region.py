"""The curves along the natural gradient, and TRPO's own step on them."""

import numpy as np
import pytest

from klimb.theory.figures import trust_region
from klimb.theory.figures.trust_region import TrustRegion


@pytest.fixture(scope="module")
def curves() -> TrustRegion:
    return trust_region.compute()


@pytest.mark.slow
def test_surrogate_and_improvement_start_with_one_slope(curves: TrustRegion) -> None:
    assert curves.length[0] == 0
    # Forward differences of second order.
    h = curves.length[1]
    for gain in (curves.surrogate, curves.improvement):
        slope = (-3 * gain[0] + 4 * gain[1] - gain[2]) / (2 * h)
        assert slope == pytest.approx(curves.slope, rel=1e-3)
        assert gain[0] == pytest.approx(0, abs=1e-12)
    assert np.abs(curves.surrogate - curves.improvement)[-1] > 0.1 * curves.surrogate[-1]


def test_guarantee_is_below_the_improvement(curves: TrustRegion) -> None:
    assert np.all(curves.guarantee <= curves.improvement + 1e-12)
    assert curves.guarantee.max() > 0


def test_kl_starts_as_the_quadratic(curves: TrustRegion) -> None:
    near = curves.length[1:4]
    np.testing.assert_allclose(curves.kl[1:4], curves.max_kl * near**2, rtol=0.02)


def test_accepted_step_lies_on_the_curves_within_the_limit(curves: TrustRegion) -> None:
    length, *gains, kl = curves.accepted
    assert 0 < kl <= curves.max_kl
    assert length <= curves.limit + 1e-4
    for gain, curve in zip(
        (*gains, kl), (curves.surrogate, curves.improvement, curves.guarantee, curves.kl), strict=True
    ):
        assert gain == pytest.approx(np.interp(length, curves.length, curve), rel=1e-3)
    # This one had to turn back: the full step leaves the trust region.
    assert np.interp(1, curves.length, curves.kl) > curves.max_kl
    assert length < 1
