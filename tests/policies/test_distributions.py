"""Action distributions against SciPy, exact enumeration and exact quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from klimb.policies.distributions import Categorical, DiagGaussian, TanhGaussian

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


# --- a Gaussian squashed into a box ------------------------------------------------------------------------------

LOW, HIGH = (-1.0, 0.0, -0.3), (3.0, 10.0, 0.1)
CENTER, HALF_WIDTH = np.array([1.0, 5.0, -0.1]), np.array([2.0, 5.0, 0.2])
SQUASHED = {
    "in the middle": (0.0, 0.0),
    "to one side": (0.8, -1.0),
    "narrow at an edge": (-3.0, -2.5),
    "two peaks at the edges": (0.4, 1.2),
}
each_squashed = pytest.mark.parametrize(("mean", "log_std"), SQUASHED.values(), ids=SQUASHED)


def squashed(mean, log_std, dtype=None, low=LOW, high=HIGH):
    mean, log_std = (jnp.asarray(x, dtype) for x in np.broadcast_arrays(mean, log_std))
    return TanhGaussian(mean=mean, log_std=log_std, low=low, high=high)


def expectation(f, mean, std):
    """E f(z) over z ~ N(0, 1) by adaptive quadrature, told where the tanh of mean + std · z turns."""
    integrand = lambda z: f(z) * scipy.stats.norm.pdf(z)  # noqa: E731
    turns = np.clip([(u - mean) / std for u in (-1, 0, 1)], -11, 11)
    return scipy.integrate.quad(integrand, -12, 12, points=turns, epsabs=1e-13, limit=400)[0]


def log_sech2(u):
    """log (1 − tanh² u) = −2 log cosh u, without overflow."""
    u = np.abs(u)
    return 2 * (np.log(2) - u - np.log1p(np.exp(-2 * u)))


@each_squashed
def test_squashed_density_integrates_to_the_probability_of_every_part_of_the_box(x64, mean, log_std):
    """∫ p(a) da between two points is P(tanh⁻¹ of one < u < tanh⁻¹ of the other), over 60 parts, and 1 in all."""
    base = scipy.stats.norm(mean, np.exp(log_std))
    # Parts of equal width in u: a's own would put a whole peak into one.
    u = np.linspace(*np.clip(base.ppf([1e-7, 1 - 1e-7]), -12, 12), 61)
    edges = CENTER[0] + HALF_WIDTH[0] * np.tanh(u)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    width = np.diff(edges)[:, None] / 2
    a = edges[:-1, None] + width * (1 + nodes)
    at = jnp.arctanh((jnp.asarray(a) - CENTER[0]) / HALF_WIDTH[0])[..., None]
    density = np.exp(squashed([mean], [log_std], low=LOW[:1], high=HIGH[:1]).log_prob(at))
    integral = (density * weights * width).sum(-1)
    np.testing.assert_allclose(integral, np.diff(base.cdf(u)), atol=1e-7)
    np.testing.assert_allclose(integral.sum(), 1, atol=1e-6 + 2 * base.cdf(-12) + 2 * base.sf(12))


def test_squashed_log_prob_keeps_its_digits_where_tanh_is_one():
    """Single precision at |u| up to 60, where 1 − tanh² u is 0, against double precision; gradients too."""
    u = np.linspace(-60, 60, 241).astype(np.float32)[:, None] * np.ones(3, np.float32)
    distribution = squashed(np.full(3, 0.5), np.full(3, 3.0), jnp.float32)
    expected = (scipy.stats.norm(0.5, np.exp(3)).logpdf(u) - np.log(HALF_WIDTH) - log_sech2(u.astype(float))).sum(-1)
    np.testing.assert_allclose(
        jax.jit(TanhGaussian.log_prob)(distribution, jnp.asarray(u)), expected, rtol=1e-6, atol=1e-5
    )
    slope = jax.jit(jax.grad(lambda x: distribution.log_prob(x).sum()))(jnp.asarray(u))
    np.testing.assert_allclose(slope, (0.5 - u) / np.exp(6) + 2 * np.tanh(u), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("std", "tolerance"), [(0.3, 1e-7), (1.0, 1e-7), (2.0, 2e-4), (np.exp(2), 0.1)])
def test_squashed_entropy_is_as_close_as_it_says(x64, std, tolerance):
    """H[u] + E log da/du by adaptive quadrature at a dozen means; its gradients −2 E tanh u and 1 − 2 E[σ z tanh u]."""
    means = np.linspace(-4, 4, 12)
    row = squashed(means[:, None], np.log(std), low=(-1.0,), high=(3.0,))
    expected = scipy.stats.norm.entropy(0, std) + np.log(2.0)
    expected = [expected + expectation(lambda z, m=m: log_sech2(m + std * z), m, std) for m in means]
    entropy, slope = jax.jit(lambda d: (d.entropy(), jax.grad(lambda e: e.entropy().sum())(d)))(row)
    np.testing.assert_allclose(entropy, expected, rtol=0, atol=tolerance)
    by_mean = [expectation(lambda z, m=m: -2 * np.tanh(m + std * z), m, std) for m in means]
    by_log_std = [1 + expectation(lambda z, m=m: -2 * std * z * np.tanh(m + std * z), m, std) for m in means]
    np.testing.assert_allclose(slope.mean[:, 0], by_mean, rtol=0, atol=20 * tolerance)
    np.testing.assert_allclose(slope.log_std[:, 0], by_log_std, rtol=0, atol=20 * tolerance)


def test_squashed_entropy_is_the_mean_of_minus_log_prob():
    """Of 50 000 draws, within 4 standard errors, for leading axes and three different boxes."""
    mean, log_std = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(-1, 0.3, 6).reshape(2, 3)
    distribution = squashed(mean, log_std, jnp.float32)
    surprise = -np.asarray(jax.jit(TanhGaussian.log_prob)(distribution, draw(distribution, jax.random.key(4))), float)
    standard_error = surprise.std(0, ddof=1) / DRAWS**0.5
    entropy = jax.jit(TanhGaussian.entropy)(distribution)
    assert entropy.shape == (2,)
    assert (np.abs(entropy - surprise.mean(0)) < 4 * standard_error).all()


def test_squashed_sampling_stays_in_the_box():
    """tanh⁻¹ of what the environment gets is the Gaussian, by Kolmogorov-Smirnov; and no rounding leaves the box."""
    distribution = squashed([0.3, -1.0, 0.0], [-0.5, 0.0, -2.0], jnp.float32)
    action = draw(distribution, jax.random.key(5))
    taken = np.asarray(jax.jit(TanhGaussian.to_environment)(distribution, action), np.float64)
    assert ((taken > LOW) & (taken < HIGH)).all()
    standard = (np.arctanh((taken - CENTER) / HALF_WIDTH) - [0.3, -1.0, 0.0]) / np.exp([-0.5, 0.0, -2.0])
    for column in standard.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    rng = np.random.default_rng(0)
    low = rng.normal(0, 10, 2000).astype(np.float32)
    high = low + rng.exponential(1, 2000).astype(np.float32)
    wild = squashed(np.zeros(2000), 0.0, jnp.float32, low=tuple(map(float, low)), high=tuple(map(float, high)))
    for u in (-1e4, -9.0, 9.0, 1e4, np.inf):
        taken = np.asarray(wild.to_environment(jnp.full(2000, u, jnp.float32)))
        assert ((taken >= low) & (taken <= high)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squashed_actions_to_the_environment_and_back(dtype):
    with jax.enable_x64(dtype == "float64"):
        # Only the box matters, not the parameters: their shapes are enough.
        distribution = squashed(np.zeros(3), 0.0, dtype)
        distribution = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), distribution)
        u = jnp.asarray(np.linspace(-3, 3, 60).reshape(5, 4, 3), dtype)
        there = distribution.to_environment(u)
        assert there.dtype == u.dtype
        np.testing.assert_allclose(there, CENTER + HALF_WIDTH * np.tanh(u), rtol=0, atol=1e-6)
        np.testing.assert_allclose(distribution.from_environment(there), u, atol=1e-4 if dtype == "float32" else 1e-12)
        for edge in (LOW, HIGH, np.array(HIGH) + 1):
            at_edge = distribution.from_environment(jnp.asarray(edge, dtype))
            assert np.isfinite(at_edge).all()
            again = distribution.to_environment(at_edge)
            np.testing.assert_allclose((again - CENTER) / HALF_WIDTH, np.sign(at_edge), atol=3e-6)


@pytest.mark.parametrize("kind", [Categorical, DiagGaussian], ids=lambda kind: kind.__name__)
def test_other_actions_are_the_environments_own(kind):
    x = jnp.zeros((2, 3))
    distribution = kind(x) if kind is Categorical else kind(x, x)
    action = distribution.sample(jax.random.key(0))
    assert distribution.to_environment(action) is action
    assert distribution.from_environment(action) is action


@pytest.mark.parametrize("name", ["fisher_metric", "fisher_root"])
def test_squashed_fisher_metric_is_the_covariance_of_the_scores(x64, name):
    """Scores of the density of a by autodiff. They are quadratic in u: Gauss-Hermite quadrature of order 5 is exact."""
    mean, log_std, low, high = jnp.array([0.3, -1.0]), jnp.array([-0.5, 0.4]), LOW[:2], HIGH[:2]
    z, weight = np.polynomial.hermite_e.hermegauss(5)
    u = jnp.asarray([[mean[0] + jnp.exp(log_std[0]) * a, mean[1] + jnp.exp(log_std[1]) * b] for a in z for b in z])
    log_prob = lambda theta, u: TanhGaussian(theta[:2], theta[2:], low, high).log_prob(u)  # noqa: E731
    scores = jax.vmap(jax.grad(log_prob), (None, 0))(jnp.concatenate([mean, log_std]), u)
    covariance = np.einsum("k,ki,kj->ij", np.outer(weight, weight).ravel() / (2 * np.pi), scores, scores)
    distribution = TanhGaussian(mean, log_std, low, high)
    images = [getattr(distribution, name)(TanhGaussian(v[:2], v[2:], low, high)) for v in jnp.eye(4)]
    assert all(jax.tree.structure(image) == jax.tree.structure(distribution) for image in images)
    matrix = np.stack([np.concatenate([image.mean, image.log_std]) for image in images])
    np.testing.assert_allclose(matrix if name == "fisher_metric" else matrix @ matrix.T, covariance, atol=1e-12)
