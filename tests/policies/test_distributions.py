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

INF, DRAWS = np.inf, 50_000
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


@jax.jit
def draw(distribution, key):
    """50 000 actions for each row, as a collector draws them: the noise of all of them at once."""
    return jax.vmap(distribution.sample_from)(distribution.noise(key, (DRAWS,)))


def test_categorical_sampling_frequencies():
    """χ² of every row; a masked action is never drawn, and rows and draws are independent of each other."""
    logits = np.array([row for name, row in LOGITS.items() if name != "rare"])
    actions = np.asarray(draw(Categorical(logits=jnp.asarray(logits, jnp.float32)), jax.random.key(0)))
    assert actions.shape == (DRAWS, len(logits))
    for row, drawn in zip(logits, actions.T, strict=True):
        allowed, counts = possible(row), np.bincount(drawn, minlength=len(row))
        assert counts[allowed].sum() == DRAWS
        if len(allowed) > 1:
            expected = DRAWS * scipy.special.softmax(row)[allowed]
            assert scipy.stats.chisquare(counts[allowed], expected, sum_check=False).pvalue > 1e-4
    # The first row against the third, which has actions 1 to 3, and against its own next draw.
    for first, second in ((actions[:, 0], actions[:, 2]), (actions[:-1, 0], actions[1:, 0])):
        table = np.zeros((5, 5))
        np.add.at(table, (first, second), 1)
        assert scipy.stats.chi2_contingency(table[:, table.any(0)]).pvalue > 1e-4


def test_categorical_inverts_the_cumulative_distribution():
    """Action a is taken for F(a−1) ≤ u < F(a), and at both ends of [0, 1) whatever rounding does to the total."""
    rng, rows = np.random.default_rng(0), 2000
    logits = rng.normal(0, 3, (rows, 50)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.5] = -INF
    logits[:, 25] = 0.0  # at least one action is possible
    probs = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    distribution = Categorical(logits=jnp.asarray(logits))

    def taken(uniform):
        return np.asarray(jax.jit(Categorical.sample_from)(distribution, jnp.asarray(uniform, jnp.float32)))

    first, last = (probs > 0).argmax(-1), 49 - (probs[:, ::-1] > 0).argmax(-1)
    np.testing.assert_array_equal(taken(np.zeros(rows)), first)
    action = taken(np.full(rows, 1 - 2.0**-23))
    assert (probs[np.arange(rows), action] > 0).all()
    # Less probability than a step of the uniform number may be passed over.
    assert (action == last)[probs[np.arange(rows), last] > 1e-6].all()

    uniform = rng.random(rows).astype(np.float32)
    cumulative = np.cumsum(probs, -1)
    clear = np.abs(cumulative - uniform[:, None]).min(-1) > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(taken(uniform)[clear], (cumulative <= uniform[:, None]).sum(-1)[clear])


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
    """Each dimension by Kolmogorov-Smirnov, and no correlation between any two, nor with the next draw."""
    distribution = DiagGaussian(mean=jnp.asarray(MEAN, jnp.float32), log_std=jnp.asarray(LOG_STD, jnp.float32))
    actions = np.asarray(draw(distribution, jax.random.key(1)), np.float64)
    columns = ((actions - MEAN) / np.exp(LOG_STD)).reshape(DRAWS, -1)
    for column in columns.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    columns = np.concatenate([columns[:-1], columns[1:]], axis=1)
    correlation = np.corrcoef(columns.T)[np.triu_indices(columns.shape[1], 1)]
    assert np.abs(correlation).max() < 4.5 / DRAWS**0.5


@pytest.mark.parametrize("kind", [Categorical, DiagGaussian], ids=lambda kind: kind.__name__)
def test_one_sample_is_made_from_one_draw_of_noise(kind):
    """`sample` has the leading axes of the parameters, and its key decides it, not the parameters."""
    rows = (jnp.zeros((2, 3, 4)), jnp.linspace(-1, 1, 24).reshape(2, 3, 4))
    distribution, other = (kind(x) if kind is Categorical else kind(x, x) for x in rows)
    key = jax.random.key(2)
    np.testing.assert_array_equal(distribution.sample(key), distribution.sample_from(distribution.noise(key)))
    np.testing.assert_array_equal(distribution.noise(key, (5,)), other.noise(key, (5,)))
    assert distribution.noise(key, (5,)).shape[:3] == (5, 2, 3)
    assert distribution.sample(key).shape == distribution.mode().shape
    assert (distribution.sample(key) != distribution.sample(jax.random.key(3))).any()


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
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(np.stack(columns) / scale, expected / scale, atol=1e-12)
