"""Divergences against SciPy, linear algebra, numerical integration and Monte Carlo."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from klimb import Batch
from klimb.improve import objectives
from klimb.improve.divergences import (
    MonteCarlo,
    kl_divergence,
    total_variation,
    total_variation_bound,
)
from klimb.policies.distributions import Categorical, DiagGaussian, TanhGaussian

INF = np.inf
kl = jax.jit(kl_divergence)
tv = jax.jit(total_variation)
bound = jax.jit(total_variation_bound)


def categorical(logits, dtype=None):
    return Categorical(logits=jnp.asarray(logits, dtype))


def gaussian(mean, log_std, dtype=None):
    mean, log_std = np.broadcast_arrays(mean, log_std)
    return DiagGaussian(mean=jnp.asarray(mean, dtype), log_std=jnp.asarray(log_std, dtype))


def squashed(mean, log_std, low=(-1.0,), high=(3.0,), dtype=None):
    base = gaussian(mean, log_std, dtype)
    return TanhGaussian(mean=base.mean, log_std=base.log_std, low=low, high=high)


def tv_integral(mean_p, std_p, mean_q, std_q):
    """½ ∫|p − q| by the trapezoid rule on a grid fine for both densities, whatever their ratio."""
    z = np.linspace(-12, 12, 200_001)
    grid = np.unique(np.concatenate([mean_p + std_p * z, mean_q + std_q * z]))
    difference = np.abs(scipy.stats.norm.pdf(grid, mean_p, std_p) - scipy.stats.norm.pdf(grid, mean_q, std_q))
    return 0.5 * np.trapezoid(difference, grid)


def tv_concentric(dimensions, ratio):
    """TV of N(0, I) and N(0, ratio² I): the densities cross on a sphere, and the rest is two χ² probabilities."""
    radius_squared = 2 * dimensions * np.log(ratio) / (1 - ratio**-2.0)
    chi2 = scipy.stats.chi2(dimensions)
    return abs(chi2.cdf(radius_squared) - chi2.cdf(radius_squared / ratio**2))


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_kl_direction_by_monte_carlo(x64, kind):
    """KL(p‖q) is the mean of log p − log q under p, not under q (MATH §8.1): within 4 standard errors of 100 000."""
    rng, draws = np.random.default_rng(0), 100_000
    if kind == "categorical":
        logits = np.array([[2.5, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
        p, q = map(categorical, logits)
        log_p, log_q = scipy.special.log_softmax(logits, axis=-1)
        difference = (log_p - log_q)[rng.choice(4, draws, p=np.exp(log_p))]
    else:
        mean, log_std = np.array([[0.0, 1.0, -1.0], [0.3, 0.5, -1.0]]), np.array([[0.0, -0.5, 0.2], [0.6, -0.5, -0.3]])
        p, q = (gaussian(mean[i], log_std[i]) for i in range(2))
        pdf = [scipy.stats.norm(mean[i], np.exp(log_std[i])) for i in range(2)]
        x = pdf[0].rvs((draws, 3), random_state=rng)
        difference = (pdf[0].logpdf(x) - pdf[1].logpdf(x)).sum(-1)
    standard_error = difference.std(ddof=1) / draws**0.5
    assert abs(float(kl(p, q)) - difference.mean()) < 4 * standard_error
    assert abs(float(kl(q, p)) - difference.mean()) > 20 * standard_error


def test_kl_categorical_equals_scipy(x64):
    rng = np.random.default_rng(1)
    p, q = rng.normal(0, 3, (2, 6, 7, 5))
    expected = scipy.stats.entropy(scipy.special.softmax(p, -1), scipy.special.softmax(q, -1), axis=-1)
    np.testing.assert_allclose(kl(categorical(p), categorical(q)), expected, rtol=1e-11)


def test_kl_gaussian_equals_the_full_covariance_formula(x64):
    """½ (tr Σ_q⁻¹Σ_p + Δᵀ Σ_q⁻¹ Δ − D + log det Σ_q/det Σ_p) with dense matrices."""
    rng = np.random.default_rng(2)
    mean, log_std = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 3))
    expected = []
    for i in range(6):
        cov_p, cov_q = (np.diag(np.exp(2 * log_std[k, i])) for k in range(2))
        shift = mean[1, i] - mean[0, i]
        log_det = np.linalg.slogdet(cov_q)[1] - np.linalg.slogdet(cov_p)[1]
        inverse = np.linalg.inv(cov_q)
        expected.append(0.5 * (np.trace(inverse @ cov_p) + shift @ inverse @ shift - 3 + log_det))
    p, q = (gaussian(mean[k], log_std[k]) for k in range(2))
    np.testing.assert_allclose(kl(p, q), expected, rtol=1e-11)


def test_kl_of_masked_actions():
    """A mask shared by both leaves the divergence of the rest; one that p puts no mass on costs nothing."""
    rest_p, rest_q = np.array([0.3, -1.0, 2.0]), np.array([1.3, 0.0, 0.2])
    p = categorical([0.3, -INF, -1.0, 2.0], jnp.float32)
    q = categorical([1.3, -INF, 0.0, 0.2], jnp.float32)
    shared = scipy.stats.entropy(scipy.special.softmax(rest_p), scipy.special.softmax(rest_q))
    np.testing.assert_allclose(kl(p, q), shared, rtol=1e-5)
    q_open = np.array([1.3, 0.8, 0.0, 0.2])
    open_probs = scipy.special.softmax(q_open)
    p_probs = np.insert(scipy.special.softmax(rest_p), 1, 0)
    np.testing.assert_allclose(
        kl(p, categorical(q_open, jnp.float32)), scipy.stats.entropy(p_probs, open_probs), rtol=1e-5
    )
    assert kl(categorical(q_open, jnp.float32), p) > 1e30  # mass where p has none: infinite in exact arithmetic
    np.testing.assert_allclose(tv(p, categorical(q_open, jnp.float32)), 0.5 * np.abs(p_probs - open_probs).sum(), 1e-5)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_kl_of_near_equal_gaussians_keeps_its_digits_in_float32(size):
    rng = np.random.default_rng(3)
    mean, log_std = rng.uniform(0.1, 0.9, (2, 20, 3)).astype(np.float32)
    mean_q, log_std_q = (x + np.float32(size) * rng.normal(size=x.shape).astype(np.float32) for x in (mean, log_std))
    p, q = gaussian(mean, log_std), gaussian(mean_q, log_std_q)
    # The textbook formula in long double, from the same rounded parameters.
    m_p, s_p, m_q, s_q = (x.astype(np.longdouble) for x in (mean, log_std, mean_q, log_std_q))
    exact = (s_q - s_p + (np.exp(2 * s_p) + (m_p - m_q) ** 2) / (2 * np.exp(2 * s_q)) - 0.5).sum(-1)
    np.testing.assert_allclose(kl(p, q), exact.astype(float), rtol=1e-5)


@pytest.mark.parametrize(("size", "rtol"), [(1e-1, 1e-5), (1e-2, 1e-4), (1e-3, 1e-3), (1e-4, 1e-2)])
def test_kl_of_near_equal_categoricals_keeps_its_digits_in_float32(size, rtol):
    """The error is that of log p − log q, about 1e-7/size; Σ p (log p − log q) would lose it all at size² < 1e-7."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(20, 4)).astype(np.float32)
    other = logits + np.float32(size) * rng.normal(size=logits.shape).astype(np.float32)
    log_p, log_q = (scipy.special.log_softmax(x.astype(np.longdouble), axis=-1) for x in (logits, other))
    exact = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(kl(categorical(logits), categorical(other)), exact.astype(float), rtol=rtol)


def floats(shape, size):
    return npst.arrays(np.float32, shape, elements=st.floats(-size, size, width=32))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(floats((2, 4, 5), 120.0), floats((2, 4, 3), 1000.0), floats((2, 4, 3), 10.0))
def test_kl_is_never_negative_and_zero_for_equal(logits, mean, log_std):
    for p, q in (
        (categorical(logits[0]), categorical(logits[1])),
        (gaussian(mean[0], log_std[0]), gaussian(mean[1], log_std[1])),
    ):
        value = np.asarray(kl(p, q))
        assert np.isfinite(value).all()
        assert (value >= 0).all()
        np.testing.assert_array_equal(kl(p, p), 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(floats((2, 4, 5), 30.0), floats((2, 4, 1), 100.0), floats((2, 4, 1), 10.0))
def test_total_variation_is_symmetric_in_the_unit_interval_and_below_its_bound(logits, mean, log_std):
    with jax.enable_x64(True):
        pairs = (
            (categorical(logits[0], float), categorical(logits[1], float)),
            (gaussian(mean[0], log_std[0], float), gaussian(mean[1], log_std[1], float)),
        )
        for p, q in pairs:
            there, back = np.asarray(tv(p, q)), np.asarray(tv(q, p))
            np.testing.assert_allclose(there, back, atol=1e-13)
            assert ((there >= 0) & (there <= 1 + 1e-15)).all()
            for divergence in (kl(p, q), kl(q, p)):
                assert (np.asarray(bound(divergence)) >= there - 1e-12).all()
            np.testing.assert_array_equal(tv(p, p), 0)


def test_the_bound_takes_the_smaller_of_two_and_is_tight_where_theory_says(x64):
    """Near-equal coins attain Pinsker's bound; far-apart distributions come within 1 by Bretagnolle-Huber."""
    step = 1e-4
    p, q = (categorical(np.log([0.5 + s, 0.5 - s])) for s in (step, -step))
    np.testing.assert_allclose(bound(kl(p, q)), tv(p, q), rtol=1e-6)
    assert bound(jnp.asarray(50.0)) <= 1
    divergence = np.geomspace(1e-6, 20, 40)
    pinsker, bretagnolle_huber = np.sqrt(divergence / 2), np.sqrt(1 - np.exp(-divergence))
    np.testing.assert_allclose(bound(jnp.asarray(divergence)), np.minimum(pinsker, bretagnolle_huber), rtol=1e-9)
    assert (pinsker < bretagnolle_huber).any()
    assert (pinsker > bretagnolle_huber).any()
    assert bound(jnp.asarray(-1e-9)) == 0  # rounding below 0 is no NaN


# --- total variation --------------------------------------------------------------------------------------------

UNIVARIATE = {
    "equal scales": (0.0, 1.0, 0.7, 1.0),
    "equal means": (0.3, 1.0, 0.3, 2.5),
    "both differ": (-1.0, 0.5, 2.0, 1.7),
    "wide against narrow": (5.0, 1.0, 5.001, 1e-3),
    "extreme ratio": (0.0, 1e3, 1e-3, 1e-3),
    "crossing near infinity": (0.0, 1.0, 0.5, 1 + 1e-6),
    "nearly the same": (0.0, 1.0, 1e-4, 1 - 1e-4),
    "disjoint": (0.0, 1.0, 40.0, 1.0),
}


def test_tv_of_univariate_gaussians_by_integration():
    """float64 to the accuracy of the integral, float32 to its own rounding; the Σ|p − q| convention would reach 2."""
    cases = np.array(list(UNIVARIATE.values()))
    expected = [tv_integral(*case) for case in cases]
    mean_p, std_p, mean_q, std_q = cases.T[..., None]
    p, q = (mean_p, np.log(std_p)), (mean_q, np.log(std_q))
    with jax.enable_x64(True):
        np.testing.assert_allclose(tv(gaussian(*p, float), gaussian(*q, float)), expected, atol=2e-8)
    np.testing.assert_allclose(tv(gaussian(*p, jnp.float32), gaussian(*q, jnp.float32)), expected, atol=3e-6)
    assert expected[-1] == pytest.approx(1)
    assert gaussian(*p, jnp.float32).has_closed_form_tv


def test_tv_of_categoricals_is_half_the_sum(x64):
    p, q = np.random.default_rng(5).normal(0, 2, (2, 8, 6))
    p[0, :2] = q[0, 2:] = -INF  # disjoint supports: 1, not 2
    expected = 0.5 * np.abs(scipy.special.softmax(p, -1) - scipy.special.softmax(q, -1)).sum(-1)
    np.testing.assert_allclose(tv(categorical(p), categorical(q)), expected, atol=1e-14)
    assert expected[0] == pytest.approx(1)


def test_tv_of_equal_scales_depends_on_the_mahalanobis_distance_alone(x64):
    """By rotation it is the one-dimensional problem along the difference of the means."""
    rng = np.random.default_rng(6)
    mean_p, mean_q, log_std = rng.normal(size=(3, 2, 2, 4))
    distance = np.sqrt((((mean_p - mean_q) / np.exp(log_std)) ** 2).sum(-1))
    expected = np.vectorize(lambda d: tv_integral(0, 1, d, 1))(distance)
    np.testing.assert_allclose(
        total_variation(gaussian(mean_p, log_std), gaussian(mean_q, log_std)), expected, atol=2e-8
    )


def monte_carlo_cases():
    scale = np.log(3.0)
    return {
        "categorical": (
            categorical([0.0, 1.0, -2.0]),
            categorical([1.0, -1.0, 0.0]),
            0.5 * np.abs(scipy.special.softmax([0, 1, -2]) - scipy.special.softmax([1, -1, 0])).sum(),
        ),
        "one dimension": (gaussian([0.0], [0.0]), gaussian([1.0], [0.5]), tv_integral(0, 1, 1, np.exp(0.5))),
        "narrow first": (gaussian(np.zeros(6), 0.0), gaussian(np.zeros(6), scale), tv_concentric(6, 3.0)),
        "wide first": (gaussian(np.zeros(6), scale), gaussian(np.zeros(6), 0.0), tv_concentric(6, 3.0)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", ["categorical", "one dimension", "narrow first", "wide first"])
def test_sampled_tv_is_unbiased_with_an_honest_standard_error(case):
    """Over 100 keys, (value − truth)/standard error has mean 0 and deviation 1, whichever of the two is the wider."""
    p, q, truth = monte_carlo_cases()[case]
    keys = jax.random.split(jax.random.key(0), 100)
    sample = jax.jit(jax.vmap(lambda key: total_variation(p, q, key=key, num_samples=1000)))
    value, standard_error = map(np.asarray, sample(keys))
    assert ((value >= 0) & (value <= 1)).all()
    z = (value - truth) / standard_error
    assert np.abs(z).max() < 4
    assert abs(z.mean()) < 0.4  # 4 standard errors of a mean of 100
    assert 0.75 < z.std() < 1.3


def test_tv_without_a_closed_form_is_never_silent():
    p, q = gaussian(np.zeros(2), 0.0, jnp.float32), gaussian(np.zeros(2), [0.0, 0.1], jnp.float32)
    assert not p.has_closed_form_tv
    with pytest.raises(ValueError, match=r"2 dimensions and unequal scales.*give key="):
        total_variation(p, q)
    with pytest.raises(ValueError, match=r"num_samples = 1 .*at least 2"):
        total_variation(p, q, key=jax.random.key(0), num_samples=1)
    assert isinstance(total_variation(p, q, key=jax.random.key(0), num_samples=2), MonteCarlo)


@pytest.mark.parametrize("divergence", [kl_divergence, total_variation])
def test_two_kinds_have_no_divergence(divergence):
    p, q = categorical([0.0, 1.0]), gaussian([0.0], [0.0], jnp.float32)
    with pytest.raises(TypeError, match="Categorical and DiagGaussian"):
        divergence(p, q)
    with pytest.raises(TypeError, match="DiagGaussian and Categorical"):
        divergence(q, p)


# --- the gradient of the total variation --------------------------------------------------------------------------


def tv_of(parameters):
    mean_p, log_std_p, mean_q, log_std_q = parameters
    return total_variation(
        DiagGaussian(mean=mean_p[None], log_std=log_std_p[None]),
        DiagGaussian(mean=mean_q[None], log_std=log_std_q[None]),
    )


tv_gradient = jax.jit(jax.grad(tv_of))


@pytest.mark.parametrize("case", UNIVARIATE)
def test_tv_gradient_of_univariate_gaussians(case):
    """Against central differences in double precision, with means in units of the smaller σ; single precision follows.

    At equal scales one crossing is at infinity, at equal means the two are symmetric.
    """
    mean_p, std_p, mean_q, std_q = UNIVARIATE[case]
    parameters = np.array([mean_p, np.log(std_p), mean_q, np.log(std_q)])
    unit, h = np.array([min(std_p, std_q), 1, min(std_p, std_q), 1]), 1e-7
    with jax.enable_x64(True):
        value = jax.jit(tv_of)
        steps = h * np.diag(unit)
        expected = [(value(jnp.asarray(parameters + s)) - value(jnp.asarray(parameters - s))) / (2 * h) for s in steps]
        exact = unit * tv_gradient(jnp.asarray(parameters))
    np.testing.assert_allclose(exact, expected, rtol=0, atol=5e-6)
    single = unit * tv_gradient(jnp.asarray(parameters, jnp.float32))
    assert np.isfinite(single).all()
    # 1 + 1e-6 and 1 − 1e-4 are known to a tenth and to a thousandth in single precision.
    np.testing.assert_allclose(single, exact, rtol=0, atol=2e-2 if case == "nearly the same" else 1e-4)


@pytest.mark.slow
def test_tv_gradient_has_its_closed_forms(x64):
    """Equal scales: TV = 2 Φ(m/2) − 1. Equal means: the χ² probabilities. To the last digits, values and gradients."""
    m, ratio = np.array([1e-6, 0.1, 1.0, 5.0]), np.array([1.0001, 1.5, 20.0])
    value, gradient = jax.vmap(jax.value_and_grad(tv_of))(jnp.stack([m, 0 * m, 0 * m, 0 * m], axis=1))
    np.testing.assert_allclose(value, scipy.special.erf(m / 8**0.5), atol=1e-15)
    density = scipy.stats.norm.pdf(m / 2)
    np.testing.assert_allclose(
        gradient, np.stack([density, -m / 2 * density, -density, -m / 2 * density], 1), atol=1e-14
    )
    zero = 0 * ratio
    value, gradient = jax.vmap(jax.value_and_grad(tv_of))(
        jnp.stack([zero + 0.3, np.log(ratio), zero + 0.3, zero], axis=1)
    )
    np.testing.assert_allclose(value, [tv_concentric(1, r) for r in ratio], atol=1e-12)
    near = np.sqrt(2 * np.log(ratio) / (1 - ratio**-2.0))
    wide, narrow = 2 * near / ratio * scipy.stats.norm.pdf(near / ratio), -2 * near * scipy.stats.norm.pdf(near)
    np.testing.assert_allclose(gradient, np.stack([zero, wide, zero, narrow], axis=1), atol=1e-11)


@pytest.mark.parametrize("difference", [1e-9, 1e-8, 1e-7, 1e-6])
def test_tv_gradient_outlives_the_rounding_of_the_value(difference):
    """In single precision so small a total variation may come out as 0; its slope is φ(0) a σ still."""
    slope = tv_gradient(jnp.array([difference, 0.0, 0.0, 0.0], jnp.float32))
    np.testing.assert_allclose(slope, scipy.stats.norm.pdf(0) * np.array([1, 0, -1, 0]), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_tv_gradient_at_equality_is_zero(precision):
    """For one dimension, squashed or not, and for several of equal scales, where it is the means that may move."""
    with jax.enable_x64(precision == "float64"):
        mean, log_std = jnp.array([[0.3], [-40.0], [0.0]], precision), jnp.array([[0.1], [-8.0], [5.0]], precision)
        for make in (gaussian, squashed):
            fixed = make(mean, log_std, dtype=precision)
            for slope in jax.tree.leaves(jax.jit(jax.grad(lambda p, q=fixed: total_variation(p, q).sum()))(fixed)):
                np.testing.assert_array_equal(slope, 0)
        several = lambda m: total_variation(DiagGaussian(m, log_std.T), DiagGaussian(mean.T, log_std.T)).sum()  # noqa: E731
        np.testing.assert_array_equal(jax.grad(several)(mean.T), 0)
        assert np.abs(jax.grad(several)(mean.T + 0.1 * jnp.exp(log_std.T))).max() > 0.1


# --- Gaussians squashed into a box --------------------------------------------------------------------------------


def test_kl_of_squashed_gaussians_by_monte_carlo(x64):
    """E_p[log p(a) − log q(a)] with the densities of a, in SciPy, from 100 000 draws of p: within 4 standard errors."""
    rng, draws = np.random.default_rng(7), 100_000
    mean, log_std = np.array([[0.5, -1.0], [0.0, -0.6]]), np.array([[-0.5, 0.0], [0.1, -0.4]])
    low, high = (-1.0, 0.0), (3.0, 10.0)
    p, q = (squashed(mean[i], log_std[i], low, high) for i in range(2))
    center, half_width = np.array([1.0, 5.0]), np.array([2.0, 5.0])
    a = center + half_width * np.tanh(rng.normal(mean[0], np.exp(log_std[0]), (draws, 2)))

    def log_density(i):
        x = (a - center) / half_width
        return (
            scipy.stats.norm(mean[i], np.exp(log_std[i])).logpdf(np.arctanh(x)) - np.log(half_width * (1 - x**2))
        ).sum(-1)

    difference = log_density(0) - log_density(1)
    standard_error = difference.std(ddof=1) / draws**0.5
    assert abs(float(kl(p, q)) - difference.mean()) < 4 * standard_error
    assert abs(float(kl(q, p)) - difference.mean()) > 20 * standard_error


@pytest.mark.slow
def test_tv_of_squashed_gaussians_by_integration_over_the_box(x64):
    """½ ∫ |p(a) − q(a)| da over the box, on a grid that is fine at its edges."""
    cases = [(0.0, 0.0, 0.7, 0.0), (0.5, -1.0, -0.3, 0.2), (1.5, -0.5, 1.5, -1.5)]
    x = np.tanh(np.linspace(-14, 14, 400_001))
    x = x[np.abs(x) < 1]
    for mean_p, log_std_p, mean_q, log_std_q in cases:
        pdf = [
            scipy.stats.norm.pdf(np.arctanh(x), m, np.exp(s)) / (2 * (1 - x**2))
            for m, s in ((mean_p, log_std_p), (mean_q, log_std_q))
        ]
        expected = 0.5 * np.trapezoid(np.abs(pdf[0] - pdf[1]), 1 + 2 * x)
        p, q = squashed([mean_p], [log_std_p]), squashed([mean_q], [log_std_q])
        np.testing.assert_allclose(tv(p, q), expected, atol=1e-6)
        sampled = total_variation(p, q, key=jax.random.key(0))
        assert abs(sampled.value - expected) < 4 * sampled.standard_error
    assert p.has_closed_form_tv


def test_squashed_gaussians_without_a_divergence_say_why():
    p = squashed(np.zeros(1), 0.0, dtype=jnp.float32)
    q = squashed(np.zeros(1), 0.0, high=(2.5,), dtype=jnp.float32)
    for divergence in (kl_divergence, total_variation):
        with pytest.raises(ValueError, match=r"not in \(-1.0,\) to \(3.0,\) and \(-1.0,\) to \(2.5,\)"):
            divergence(p, q)
        with pytest.raises(TypeError, match="TanhGaussian and DiagGaussian"):
            divergence(p, p.base)
    wide = [squashed(np.zeros(2), s, (0.0, 0.0), (1.0, 1.0), jnp.float32) for s in (0.0, 0.1)]
    assert not wide[0].has_closed_form_tv
    with pytest.raises(ValueError, match="give key="):
        total_variation(*wide)


def test_sampled_tv_is_measured_against_the_old_policy(x64):
    """Whoever collected the batch: 0 for a policy that has not moved, and unbiased for one that has."""
    rows, dimensions = 200_000, 3
    rng = np.random.default_rng(0)
    old, new, behaviour = (
        gaussian(np.broadcast_to(mean, (rows, dimensions)), np.full((rows, dimensions), log_std))
        for mean, log_std in ((0.0, 0.0), (0.3, 0.1), (0.2, 0.2))
    )
    action = behaviour.mean + jnp.exp(behaviour.log_std) * rng.normal(size=(rows, dimensions))
    number = jnp.zeros(rows)
    batch = Batch(number, action, behaviour.log_prob(action), number, number, jnp.ones(rows))
    np.testing.assert_array_equal(objectives.divergence("tv", old, old, batch), 0)
    sampled = batch.mean(objectives.divergence("tv", old, new, batch))
    own = old.mean + rng.normal(size=(rows, dimensions))
    reference = 0.5 * np.abs(np.expm1(new.log_prob(own) - old.log_prob(own)))
    error = np.hypot(reference.std(), np.std(objectives.divergence("tv", old, new, batch))) / np.sqrt(rows)
    assert abs(float(sampled) - reference.mean()) < 4 * error
    assert reference.mean() > 0.1
