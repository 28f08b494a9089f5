"""Distributions of several parts: against the joint distribution, enumerated or integrated."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree

import klimb
from klimb.improve.divergences import total_variation_bound
from klimb.policies.distributions import Categorical, DiagGaussian, TanhGaussian
from klimb.policies.products import Columns, MultiCategorical, Product
from problems import slow_except

INF, DRAWS = np.inf, 40_000
LOGITS = np.array([[0.3, -1.0, 0.5], [1.0, 0.2, -INF], [-INF, 0.4, -0.1]])
OTHER = np.array([[-0.3, 0.4, 0.0], [0.1, 0.9, -INF], [-INF, -0.2, 0.6]])
CHOICE, VECTOR = Columns(None, True), Columns(2, False)


def multi(logits=LOGITS):
    return MultiCategorical(logits=jnp.asarray(logits))


def hybrid(shift=0.0, *, squashed=False):
    """A choice, two numbers and three choices; the first number of the box is far from its start."""
    mean, log_std = jnp.array([0.5 + shift, -0.2]), jnp.array([0.1, -0.4 + shift])
    if squashed:
        box = TanhGaussian(mean=mean, log_std=log_std, low=(-1.0, 0.0), high=(1.0, 3.0))
    else:
        box = DiagGaussian(mean=mean, log_std=log_std)
    choice = Categorical(logits=jnp.array([0.2, -0.5 + shift, 0.0, -INF]))
    return Product(
        (choice, box, multi(LOGITS + shift * np.where(np.isfinite(OTHER), OTHER, 0))),
        (CHOICE, VECTOR, Columns(3, True)),
    )


def joint(distribution):
    """Probabilities of every combination of choices, `[3, 3, 3]`."""
    p = [scipy.special.softmax(row) for row in np.asarray(distribution.logits)]
    return np.einsum("i,j,k->ijk", *p)


@pytest.fixture(autouse=True)
def double(x64):
    """In double precision."""


def test_several_choices_equal_their_joint_distribution():
    p, q = multi(), multi(OTHER)
    a, b = joint(p), joint(q)
    actions = np.array(list(itertools.product(range(3), repeat=3)))
    possible = a[tuple(actions.T)] > 0
    for action in actions[possible]:
        np.testing.assert_allclose(p.log_prob(jnp.asarray(action)), np.log(a[tuple(action)]), rtol=1e-12)
    np.testing.assert_allclose(p.entropy(), scipy.stats.entropy(a.ravel()), rtol=1e-12)
    np.testing.assert_allclose(klimb.kl_divergence(p, q), scipy.stats.entropy(a.ravel(), b.ravel()), rtol=1e-12)
    np.testing.assert_array_equal(p.mode(), [2, 0, 1])
    assert klimb.kl_divergence(p, p) == 0


def test_total_variation_of_several_parts_is_sampled_and_bounded():
    p, q = multi(), multi(OTHER)
    exact = 0.5 * np.abs(joint(p) - joint(q)).sum()
    with pytest.raises(ValueError, match="3 independent parts has no closed form: give key="):
        klimb.total_variation(p, q)
    sampled = klimb.total_variation(p, q, key=jax.random.key(0), num_samples=20_000)
    assert abs(sampled.value - exact) < 4 * sampled.standard_error < 0.02
    assert exact < total_variation_bound(klimb.kl_divergence(p, q))
    # One part alone has its closed form.
    one = [MultiCategorical(logits=x.logits[:1]) for x in (p, q)]
    alone = [Product((x,), (Columns(1, True),)) for x in one]
    expected = 0.5 * np.abs(np.subtract(*(scipy.special.softmax(x.logits[0]) for x in one))).sum()
    for pair in (one, alone):
        assert pair[0].has_closed_form_tv
        np.testing.assert_allclose(klimb.total_variation(*pair), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="3 independent parts has no closed form"):
        klimb.total_variation(hybrid(), hybrid(0.1))


@pytest.mark.parametrize("squashed", [False, True])
def test_a_product_is_the_sum_of_its_parts(squashed):
    p, q = hybrid(squashed=squashed), hybrid(0.3, squashed=squashed)
    action = jnp.array([1.0, 0.7, -0.1, 0, 1, 2])
    own = [jnp.int32(1), action[1:3], jnp.array([0, 1, 2])]
    np.testing.assert_allclose(
        p.log_prob(action), sum(part.log_prob(x) for part, x in zip(p.parts, own, strict=True)), rtol=1e-12
    )
    np.testing.assert_allclose(p.entropy(), sum(part.entropy() for part in p.parts), rtol=1e-12)
    np.testing.assert_allclose(klimb.kl_divergence(p, q), sum(map(klimb.kl_divergence, p.parts, q.parts)), rtol=1e-12)
    assert klimb.kl_divergence(p, p) == 0
    np.testing.assert_array_equal(p.mode(), [0, 0.5, -0.2, 2, 0, 1])
    taken = p.to_environment(action)
    np.testing.assert_array_equal(taken[jnp.array([0, 3, 4, 5])], action[jnp.array([0, 3, 4, 5])])
    np.testing.assert_allclose(p.from_environment(taken), action, rtol=1e-12)
    assert (np.asarray(taken[1:3]) != action[1:3]).all() == squashed


@pytest.mark.parametrize("make", slow_except([hybrid], [multi, hybrid]), ids=lambda make: make.__name__)
def test_fisher_matrix_is_the_hessian_of_the_kl(make):
    """M as a matrix, column by column, against autodiff of KL(p‖q) at q = p; and M = L Lᵀ."""
    distribution = make()
    theta, rebuild = ravel_pytree(distribution)
    free = np.isfinite(np.asarray(theta))
    columns = jnp.eye(theta.size)
    metric = jax.vmap(lambda v: ravel_pytree(distribution.fisher_metric(rebuild(v)))[0])(columns)
    root = jax.vmap(lambda v: ravel_pytree(distribution.fisher_root(rebuild(v)))[0])(columns)

    def kl(part):
        return distribution.kl_to(rebuild(jnp.asarray(theta).at[np.flatnonzero(free)].set(part)))

    hessian = jax.hessian(kl)(theta[free])
    np.testing.assert_allclose(metric[free][:, free], hessian, atol=1e-12)
    assert not metric[~free].any()
    assert not metric[:, ~free].any()
    np.testing.assert_allclose(root @ root.T, metric, atol=1e-12)


@jax.jit
def draw(distribution, key):
    return jax.vmap(distribution.sample_from)(distribution.noise(key, (DRAWS,)))


def test_samples_have_the_joint_distribution():
    """χ² of two parts at a time, which finds a dependence too; a masked choice is never drawn."""
    distribution = hybrid()
    actions = np.asarray(draw(distribution, jax.random.key(3)))
    assert actions.shape == (DRAWS, 6)
    probs = [scipy.special.softmax(np.asarray(distribution.parts[0].logits))]
    probs += [scipy.special.softmax(row) for row in np.asarray(distribution.parts[2].logits)]
    for (i, p), (j, q) in itertools.combinations(zip((0, 3, 4, 5), probs, strict=True), 2):
        counts = np.zeros((len(p), len(q)))
        np.add.at(counts, (actions[:, i].astype(int), actions[:, j].astype(int)), 1)
        expected = np.outer(p, q)
        assert not counts[expected == 0].any()
        kept = expected > 0
        assert scipy.stats.chisquare(counts[kept], DRAWS * expected[kept], sum_check=False).pvalue > 1e-4
    box = distribution.parts[1]
    standard = (actions[:, 1:3] - np.asarray(box.mean)) / np.exp(np.asarray(box.log_std))
    for column in standard.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(standard.T)[0, 1]) < 4.5 / DRAWS**0.5
    assert abs(scipy.stats.spearmanr(standard[:, 0], actions[:, 0]).statistic) < 4.5 / DRAWS**0.5


def test_actions_of_choices_alone_are_integers():
    both = Product(
        (Categorical(logits=jnp.zeros((2, 3))), multi(np.stack([LOGITS, OTHER]))), (CHOICE, Columns(3, True))
    )
    assert all(jnp.issubdtype(x.dtype, jnp.integer) for x in (both.sample(jax.random.key(0)), both.mode()))
    assert both.noise(jax.random.key(0), (7,)).shape == (7, 2, 4)
    assert hybrid().sample(jax.random.key(0)).dtype == jnp.float64


def test_what_can_not_be_compared_is_refused():
    with pytest.raises(ValueError, match="one has 3 of up to 3, the other 2 of up to 3"):
        klimb.kl_divergence(multi(), multi(LOGITS[:2]))
    shorter = Product(hybrid().parts[:2], hybrid().columns[:2])
    with pytest.raises(ValueError, match="both products must have the same parts"):
        klimb.kl_divergence(hybrid(), shorter)
    other_box = eqx.tree_at(
        lambda d: d.parts[1], hybrid(), TanhGaussian(jnp.zeros(2), jnp.zeros(2), (0.0, 0.0), (1.0, 1.0))
    )
    with pytest.raises(ValueError, match="must be in one box"):
        klimb.kl_divergence(
            other_box, eqx.tree_at(lambda d: d.parts[1], hybrid(squashed=True), hybrid(squashed=True).parts[1])
        )
