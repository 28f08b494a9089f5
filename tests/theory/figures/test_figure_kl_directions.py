"""Both fits of one Gaussian to two modes, against moments, perturbations and a second quadrature."""

import numpy as np
import pytest

from klimb.theory.figures import kl_directions
from klimb.theory.figures.kl_directions import KLDirections, forward_kl, reverse_gradient, reverse_kl


@pytest.fixture(scope="module")
def fits() -> KLDirections:
    return kl_directions.compute()


def nearby(fit: np.ndarray) -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 17)[:-1]
    return [fit + size * np.array([np.cos(a), np.sin(a)]) for size in (1e-3, 0.05, 0.3) for a in angle]


def test_forward_fit_has_the_moments_of_the_mixture(fits: KLDirections) -> None:
    x, p = kl_directions.GRID, fits.mixture.density(kl_directions.GRID)
    mean = np.trapezoid(p * x, x)
    variance = np.trapezoid(p * (x - mean) ** 2, x)
    np.testing.assert_allclose(fits.forward, [mean, np.sqrt(variance)], rtol=1e-10)
    assert all(forward_kl(fits.mixture, other) > fits.forward_kl for other in nearby(fits.forward))


def test_reverse_fits_are_local_minima_at_the_modes(fits: KLDirections) -> None:
    assert len(fits.reverse) == 2
    assert fits.reverse_kl[0] < fits.reverse_kl[1]
    for fit, kl in zip(fits.reverse, fits.reverse_kl, strict=True):
        np.testing.assert_allclose(reverse_gradient(fits.mixture, fit), 0, atol=1e-6)
        assert all(reverse_kl(fits.mixture, other) > kl for other in nearby(fit) if other[1] < 1.2)
    modes = sorted(fits.reverse[:, 0])
    np.testing.assert_allclose(modes, np.sort(fits.mixture.mean), atol=0.2)


def test_reverse_gradient_is_the_central_difference(fits: KLDirections) -> None:
    fit, h = np.array([0.4, 1.3]), 1e-5
    shift = np.array([h, 0])
    by_mean = reverse_kl(fits.mixture, fit + shift) - reverse_kl(fits.mixture, fit - shift)
    by_log_std = reverse_kl(fits.mixture, fit * [1, np.exp(h)]) - reverse_kl(fits.mixture, fit * [1, np.exp(-h)])
    np.testing.assert_allclose(
        reverse_gradient(fits.mixture, fit), [by_mean / (2 * h), by_log_std / (2 * h)], rtol=1e-7
    )


def test_quadrature_agrees_with_samples(fits: KLDirections) -> None:
    rng = np.random.default_rng(0)
    mean, std = fits.reverse[0]
    x = mean + std * rng.normal(size=200_000)
    values = kl_directions.log_gaussian(x, mean, std) - fits.mixture.log_density(x)
    assert abs(values.mean() - fits.reverse_kl[0]) < 4 * values.std() / np.sqrt(len(x))


def test_forward_covers_and_reverse_seeks(fits: KLDirections) -> None:
    assert np.all(fits.forward[1] > 2 * fits.reverse[:, 1])
    low, high = fits.forward[0] - fits.forward[1], fits.forward[0] + fits.forward[1]
    assert low < fits.mixture.mean[0] + fits.mixture.std[0]
    assert high > fits.mixture.mean[1] - fits.mixture.std[1]
    # Whatever sits on one mode of weight w alone pays log(1/w).
    np.testing.assert_allclose(fits.reverse_kl, -np.log(np.sort(fits.mixture.weight)[::-1]), atol=0.05)
