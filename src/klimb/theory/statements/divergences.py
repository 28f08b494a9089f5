"""§4: KL and its curvature on tables; KL, total variation and fits of Gaussians against quadrature."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.improve.divergences import kl_divergence, total_variation, total_variation_bound
from klimb.policies.distributions import Categorical, DiagGaussian
from klimb.theory.statements.statement import Problem, Section, Sides

DIVERGENCES = Section("4")
GAUSSIANS = Section("4")


@DIVERGENCES.equal("KL", "KL(p‖q) = Σ p (log p − log q), both directions, every state")
def kl_of_tables(p: Problem) -> Sides:
    old, new = Categorical(logits=p.logits), Categorical(logits=p.new_logits)

    def by_definition(a: Categorical, b: Categorical) -> Array:
        """KL(a‖b)."""
        return jnp.sum(jnp.where(a.probs > 0, a.probs * (a.log_probs - b.log_probs), 0), axis=-1)

    left = jnp.stack([kl_divergence(old, new), kl_divergence(new, old)])
    return left, jnp.stack([by_definition(old, new), by_definition(new, old)])


@DIVERGENCES.at_most("KL is not negative", "0 ≤ KL(p‖q), and 0 = KL(p‖p)")
def kl_not_negative(p: Problem) -> Sides:
    old, new = Categorical(logits=p.logits), Categorical(logits=p.new_logits)
    zero = jnp.zeros(len(p.logits))
    return jnp.stack([zero, zero, kl_divergence(old, old)]), jnp.stack(
        [kl_divergence(old, new), kl_divergence(new, old), zero]
    )


@DIVERGENCES.equal("total variation", "TV = ½ Σ|p − q| = the largest difference in probability of any set of actions")
def total_variation_of_tables(p: Problem) -> Sides:
    variation = total_variation(Categorical(logits=p.logits), Categorical(logits=p.new_logits))
    assert not isinstance(variation, tuple)
    return variation, jnp.sum(jnp.maximum(p.new - p.pi, 0), axis=-1)


@DIVERGENCES.equal("curvature, old to new", "d²/dt² KL(π_θ‖π_{θ+tδ}) = δᵀFδ at t = 0: KL ≈ ½ δᵀFδ")
def kl_curvature_old_new(p: Problem) -> Sides:
    return _curvature(p, lambda old, new: kl_divergence(old, new)), _quadratic_form(p)


@DIVERGENCES.equal("curvature, new to old", "d²/dt² KL(π_{θ+tδ}‖π_θ) = δᵀFδ at t = 0: the same")
def kl_curvature_new_old(p: Problem) -> Sides:
    return _curvature(p, lambda old, new: kl_divergence(new, old)), _quadratic_form(p)


@DIVERGENCES.equal("Fisher matrix", "F from Fisher-vector products = E[∇log π ∇log πᵀ], every entry")
def fisher_matrix_entries(p: Problem) -> Sides:
    batch = p.batch
    scores = jax.jacobian(lambda logits: jax.nn.log_softmax(logits).ravel())(p.logits).reshape(p.logits.size, -1)
    return p.fisher, scores.T @ (batch.weight[:, None] * scores)


class Gaussians(eqx.Module):
    """Pairs (p, q) of Gaussians in one dimension, `[pairs]` each, and one pair (wide_p, wide_q) in D dimensions."""

    p: DiagGaussian
    q: DiagGaussian
    wide_p: DiagGaussian
    wide_q: DiagGaussian

    @classmethod
    def examples(cls) -> Gaussians:
        """Pairs with near and far means, equal and unequal scales, and a narrow one inside a wide one."""
        mean_p, std_p = jnp.array([0.0, 0.0, 1.0, -1.0, 0.0]), jnp.array([1.0, 1.0, 0.5, 2.0, 0.2])
        mean_q, std_q = jnp.array([1.0, 0.1, 1.0, 1.5, 0.05]), jnp.array([1.0, 1.1, 2.0, 0.3, 1.0])
        one = [(mean[:, None], jnp.log(std)[:, None]) for mean, std in ((mean_p, std_p), (mean_q, std_q))]
        several = ((jnp.zeros(3), jnp.zeros(3)), (jnp.array([0.3, -0.2, 0.1]), jnp.array([0.1, -0.2, 0.3])))
        return cls(*(DiagGaussian(mean=mean, log_std=log_std) for mean, log_std in (*one, *several)))


@GAUSSIANS.equal("KL of Gaussians", "the closed form = ∫ p (log p − log q), both directions")
def kl_of_gaussians(g: Gaussians) -> Sides:
    def integral(a: DiagGaussian, b: DiagGaussian) -> Array:
        """∫ a (log a − log b)."""
        return _integrate(lambda x: jnp.exp(_log_density(a, x)) * (_log_density(a, x) - _log_density(b, x)))

    left = jnp.stack([kl_divergence(g.p, g.q), kl_divergence(g.q, g.p)])
    return left, jnp.stack([integral(g.p, g.q), integral(g.q, g.p)])


@GAUSSIANS.equal("total variation of Gaussians", "the closed form = ½ ∫|p − q|, equal and unequal scales")
def total_variation_of_gaussians(g: Gaussians) -> Sides:
    variation = total_variation(g.p, g.q)
    assert not isinstance(variation, tuple)
    difference = lambda x: jnp.abs(jnp.exp(_log_density(g.p, x)) - jnp.exp(_log_density(g.q, x)))  # noqa: E731
    return variation, 0.5 * _integrate(difference)


@GAUSSIANS.at_most("several dimensions", "sampled TV − 5 standard errors ≤ the bounds from either KL")
def total_variation_in_several_dimensions(g: Gaussians) -> Sides:
    sampled = total_variation(g.wide_p, g.wide_q, key=jax.random.key(0), num_samples=16384)
    assert isinstance(sampled, tuple)
    kls = jnp.stack([kl_divergence(g.wide_p, g.wide_q), kl_divergence(g.wide_q, g.wide_p)])
    low = sampled.value - 5 * sampled.standard_error
    return jnp.stack([low, low]), total_variation_bound(kls)


@GAUSSIANS.equal("forward fit", "the Gaussian q of minimal KL(p‖q) has the mean and the variance of the mixture p")
def forward_kl_fit(g: Gaussians) -> Sides:
    weights, means, stds = jnp.array([0.4, 0.6]), jnp.array([-2.0, 1.5]), jnp.array([0.5, 0.8])
    parts = DiagGaussian(mean=means[:, None], log_std=jnp.log(stds)[:, None])
    mean = weights @ means
    std = jnp.sqrt(weights @ (jnp.square(stds) + jnp.square(means)) - jnp.square(mean))

    def divergence(parameters: Array) -> Array:
        fit = DiagGaussian(mean=parameters[:1], log_std=parameters[1:])

        def integrand(x: Array) -> Array:
            mixture = weights @ jnp.exp(_log_density(parts, x))
            return mixture * (jnp.log(mixture) - fit.log_prob(x[:, None]))

        return _integrate(integrand)

    return jax.grad(divergence)(jnp.stack([mean, jnp.log(std)])), jnp.zeros(2)


def _log_density(distribution: DiagGaussian, x: Float[Array, " n"]) -> Float[Array, "pairs n"]:
    """log p(x) of every distribution at every x."""
    return jax.vmap(lambda d: d.log_prob(x[:, None]))(distribution)


def _integrate(integrand: Callable[[Array], Array]) -> Array:
    """A Riemann sum, so fine that the error at the kinks of |p − q| is below 1e-9."""
    x, step = jnp.linspace(-30, 30, 2**20 + 1, retstep=True)
    return jnp.sum(integrand(x), axis=-1) * step


def _curvature(p: Problem, divergence: Callable[[Categorical, Categorical], Array]) -> Float[Array, ""]:
    """The second derivative, along δ, of the mean divergence from the old policy."""
    weight = p.states

    def along(t: Array) -> Array:
        moved = Categorical(logits=p.logits + t * p.direction)
        return weight @ divergence(Categorical(logits=p.logits), moved)

    return jax.jacfwd(jax.jacfwd(along))(jnp.zeros(()))


def _quadratic_form(p: Problem) -> Float[Array, ""]:
    """δᵀFδ."""
    delta = p.direction.ravel()
    return delta @ p.fisher @ delta
