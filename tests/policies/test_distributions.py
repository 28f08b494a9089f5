"""Action distributions against SciPy, exact enumeration and exact quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from klimb.policies.distributions import Categorical, DiagGaussian

INF = np.inf
LOGITS = {
    "plain": [0.3, -1.2, 2.0, 0.0, 0.5],
    "shifted": [1000.3, 998.8, 1002.0, 1000.0, 1000.5],
    "rare": [0.0, -16.0, -40.0, -1.0, -3.0],
    "first and last masked": [-INF, 0.4, -0.3, 1.0, -INF],
    "middle masked": [0.2, -INF, -INF, 1.0, 0.1],
    "only one left": [-INF, -INF, 0.7, -INF, -INF],
}
each_logits = pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)

MEAN = np.array([[0.3, -2.0], [50.0, 0.0], [-1.0, 1e-3]])
LOG_STD = np.array([[0.0, -1.5], [3.0, 0.7], [-6.0, 5.0]])


def possible(logits):
    return np.flatnonzero(np.isfinite(logits))


@each_logits
def test_categorical_equals_scipy(x64, logits):
    distribution = Categorical(logits=jnp.asarray(logits))
    with np.errstate(invalid="ignore"):
        probs = scipy.special.softmax(logits)
    np.testing.assert_allclose(distribution.probs, probs, atol=1e-14)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(probs), atol=1e-13)
    allowed = possible(logits)
    log_prob = Categorical(logits=jnp.tile(jnp.asarray(logits), (len(allowed), 1))).log_prob(jnp.asarray(allowed))
    np.testing.assert_allclose(log_prob, scipy.special.log_softmax(np.array(logits)[allowed]), atol=1e-12)
    assert distribution.mode() == np.argmax(probs)


@each_logits
def test_categorical_gradients_are_finite_and_right(x64, logits):
    """∇ log π(a) = 1_a − p and ∂H/∂logit_b = −p_b (log p_b + H), which is 0 for a masked action."""
    probs = scipy.special.softmax(logits)
    score = jax.vmap(jax.grad(lambda x, a: Categorical(logits=x).log_prob(a)), in_axes=(None, 0))
    allowed = possible(logits)
    np.testing.assert_allclose(
        score(jnp.asarray(logits), jnp.asarray(allowed)), np.eye(len(logits))[allowed] - probs, atol=1e-13
    )
    slope = jax.grad(lambda x: Categorical(logits=x).entropy())(jnp.asarray(logits))
    log_probs = np.log(np.where(probs > 0, probs, 1))
    np.testing.assert_allclose(slope, -probs * (log_probs + scipy.stats.entropy(probs)), atol=1e-13)


def test_categorical_sampling_frequencies():
    """χ² of 100 000 draws a row; a masked action is never drawn."""
    draws, logits = 100_000, np.array([row for name, row in LOGITS.items() if name != "rare"])
    batch = Categorical(logits=jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, *logits.shape)))
    actions = np.asarray(jax.jit(Categorical.sample)(batch, jax.random.key(0)))
    assert actions.shape == (draws, len(logits))
    for row, drawn in zip(logits, actions.T, strict=True):
        allowed, counts = possible(row), np.bincount(drawn, minlength=len(row))
        assert counts[allowed].sum() == draws
        if len(allowed) > 1:
            expected = draws * scipy.special.softmax(row)[allowed]
            assert scipy.stats.chisquare(counts[allowed], expected, sum_check=False).pvalue > 1e-4
    # Two rows of one call are independent: a contingency table of the first row against the third.
    table = np.histogram2d(actions[:, 0], actions[:, 2], bins=[range(6), [1, 2, 3, 4]])[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_categorical_inverts_the_cumulative_distribution(monkeypatch):
    """Action a is taken for F(a−1) ≤ u < F(a), and at both ends of [0, 1) whatever rounding does to the total."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2000, 50)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.5] = -INF
    logits[:, 25] = 0.0  # at least one action is possible
    distribution = Categorical(logits=jnp.asarray(logits))
    last_uniform = np.float32(1 - 2.0**-23)

    def sample(uniform):
        monkeypatch.setattr(jax.random, "uniform", lambda *_: jnp.asarray(uniform, jnp.float32))
        return np.asarray(distribution.sample(jax.random.key(0)))

    probs = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    first, last = (probs > 0).argmax(-1), 49 - (probs[:, ::-1] > 0).argmax(-1)
    np.testing.assert_array_equal(sample(np.zeros(2000)), first)
    taken = sample(np.full(2000, last_uniform))
    # The last actions may have less probability together than one step of the uniform number.
    beyond = np.cumsum(probs[:, ::-1], -1)[:, ::-1]
    assert (beyond[np.arange(2000), taken] > 0).all()
    assert (probs[np.arange(2000), taken] > 0).all()
    assert (taken == last)[probs[np.arange(2000), last] > 1e-6].all()

    uniform = rng.random(2000).astype(np.float32)
    cumulative = np.cumsum(probs, -1)
    clear = np.abs(cumulative - uniform[:, None]).min(-1) > 1e-5
    expected = (cumulative <= uniform[:, None]).sum(-1)
    np.testing.assert_array_equal(sample(uniform)[clear], expected[clear])


def test_gaussian_equals_scipy(x64):
    distribution = DiagGaussian(mean=jnp.asarray(MEAN), log_std=jnp.asarray(LOG_STD))
    frozen = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    for quantile in (1e-6, 0.2, 0.5, 0.93):
        action = frozen.ppf(quantile)
        np.testing.assert_allclose(
            distribution.log_prob(jnp.asarray(action)), frozen.logpdf(action).sum(-1), rtol=1e-12
        )
    np.testing.assert_allclose(distribution.entropy(), frozen.entropy().sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(distribution.mode(), MEAN)


def test_gaussian_sampling():
    """Each dimension by Kolmogorov-Smirnov, and no correlation between any two."""
    draws = 50_000
    shape = (draws, *MEAN.shape)
    batch = DiagGaussian(
        mean=jnp.broadcast_to(jnp.asarray(MEAN, jnp.float32), shape),
        log_std=jnp.broadcast_to(jnp.asarray(LOG_STD, jnp.float32), shape),
    )
    actions = np.asarray(jax.jit(DiagGaussian.sample)(batch, jax.random.key(1)), np.float64)
    columns = ((actions - MEAN) / np.exp(LOG_STD)).reshape(draws, -1)
    for column in columns.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    correlation = np.corrcoef(columns.T)[np.triu_indices(columns.shape[1], 1)]
    assert np.abs(correlation).max() < 4.5 / draws**0.5


@each_logits
def test_categorical_fisher_metric_is_the_mean_outer_product_of_scores(x64, logits):
    probs = scipy.special.softmax(logits)
    scores = np.eye(len(logits)) - probs
    expected = np.einsum("a,ai,aj->ij", probs, scores, scores)
    distribution = Categorical(logits=jnp.asarray(logits))
    columns = [distribution.fisher_metric(Categorical(logits=row)).logits for row in jnp.eye(len(logits))]
    np.testing.assert_allclose(np.stack(columns), expected, atol=1e-15)


@pytest.mark.parametrize("row", range(len(MEAN)))
def test_gaussian_fisher_metric_is_the_mean_outer_product_of_scores(x64, row):
    """The scores are quadratic in the action, so Gauss-Hermite quadrature of order 5 is exact."""
    mean, log_std = MEAN[row], LOG_STD[row]
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    expected = np.zeros((4, 4))
    for i, j in itertools.product(range(5), repeat=2):
        z = nodes[[i, j]]
        score = np.concatenate([z / np.exp(log_std), z**2 - 1])
        expected += weights[i] * weights[j] / (2 * np.pi) * np.outer(score, score)
    distribution = DiagGaussian(mean=jnp.asarray(mean), log_std=jnp.asarray(log_std))
    columns = []
    for tangent in jnp.eye(4):
        image = distribution.fisher_metric(DiagGaussian(mean=tangent[:2], log_std=tangent[2:]))
        columns.append(np.concatenate([image.mean, image.log_std]))
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(np.stack(columns) / np.outer(scale, scale), expected / np.outer(scale, scale), atol=1e-12)
