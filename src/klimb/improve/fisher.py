"""The Fisher matrix of a policy: as products, as rows whose outer products it is, and whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from klimb.policies.distributions import Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch

Vector = Float[Array, " P"]
FisherKind = Literal["exact", "empirical"]


class Linearised(NamedTuple):
    """A policy's distributions on a batch, linearised in θ once: everything first-order comes from here.

    distribution: π_θ(·|s), `[B]`. product: v ↦ F v. pull_back: a gradient in the distributions' parameters,
    `[B]`, ↦ the gradient in θ.
    """

    distribution: Distribution
    product: Callable[[Vector], Vector]
    pull_back: Callable[[Distribution], Vector]


def linearise(
    distribution_at: Callable[[Vector], Distribution],
    theta: Vector,
    weight: Float[Array, " B"],
    *,
    action: Array | None = None,
) -> Linearised:
    """F = Σ_s w_s J_sᵀ M_s J_s / Σw, J_s the Jacobian of the distribution's parameters.

    Without `action`, M_s is the Fisher matrix of the distribution in its parameters: the Gauss-Newton form,
    exact over actions. With the sampled actions `[B, *act]`, M_s = c_s c_sᵀ with c_s the gradient of log π(a_s|s)
    in those parameters: the empirical Fisher E[∇log π ∇log πᵀ] that the lectures write. Both are positive
    semi-definite by construction, unlike the Hessian of a sampled KL. One forward pass is stored; each product
    is one tangent and one cotangent pass over it.
    """
    distribution, push_forward = jax.linearize(distribution_at, theta)
    transpose = jax.linear_transpose(push_forward, theta)
    metric = distribution.fisher_metric if action is None else _rank_one(_score(distribution, action))

    def pull_back(cotangent: Distribution) -> Vector:
        (vector,) = transpose(cotangent)
        return vector

    def product(vector: Vector) -> Vector:
        return pull_back(_each_row_times(metric(push_forward(vector)), _share(weight)))

    return Linearised(distribution, product, pull_back)


def fisher_vector_product(
    policy: PyTree, obs: Array, weight: Float[Array, " B"] | None = None, *, action: Array | None = None
) -> Callable[[Vector], Vector]:
    """v ↦ F v, F = E_s E_a[∇log π ∇log πᵀ] over the rows of `obs` `[B, ...]` (weights `[B]`, default equal).

    The expectation over actions is exact; with sampled actions `[B, *act]` it is theirs (the empirical Fisher).
    Vectors are flat, in the order of `jax.flatten_util.ravel_pytree` of the policy's trainable arrays
    (`klimb.types.trainable_filter`). The policy is linearised here, once; keep the function that is returned.
    """
    theta, rebuild = flatten(policy)
    weight = jnp.ones(obs.shape[0], theta.dtype) if weight is None else weight
    return linearise(lambda v: action_distribution(rebuild(v), obs), theta, weight, action=action).product


def fisher_rows(policy: PyTree, batch: Batch, kind: FisherKind) -> Float[Array, "R P"]:
    """U with UᵀU = F: one row a sample (empirical), or one for each distribution parameter of a sample (exact).

    For batches with fewer rows than parameters, and as the explicit matrix of small policies. R × P numbers.
    """
    theta, rebuild = flatten(policy)
    share = _share(batch.weight)

    def root(vector: Vector, row: Array, action: Array, share: Array) -> Array:
        # Linear in the distribution's parameters, with its coefficients held at the current policy.
        here = rebuild(theta)(row)
        parameters = rebuild(vector)(row)
        if kind == "exact":
            return jnp.sqrt(share) * ravel_pytree(here.fisher_root(parameters))[0]
        score = _score(jax.tree.map(lambda x: x[None], here), action[None])
        return jnp.sqrt(share) * _inner(score, jax.tree.map(lambda x: x[None], parameters))

    rows = jax.vmap(jax.jacrev(root), (None, 0, 0, 0))(theta, batch.obs, batch.action, share)
    return rows.reshape(-1, theta.size)


def _share(weight: Array) -> Array:
    return weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)


def _score(distribution: Distribution, action: Array) -> Distribution:
    """∇ log π(a_s|s) in the distributions' own parameters, `[B]`."""
    return jax.grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)


def _rank_one(score: Distribution) -> Callable[[Distribution], Distribution]:
    return lambda tangent: _each_row_times(score, _inner(score, tangent))


def _inner(a: Distribution, b: Distribution) -> Array:
    """⟨a_s, b_s⟩ over the parameters of every row, `[B]`."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=tuple(range(1, x.ndim))), a, b)
    return jax.tree.reduce(jnp.add, products)


def _each_row_times(tree: Distribution, factor: Array) -> Distribution:
    return jax.tree.map(lambda x: x * jnp.reshape(factor.astype(x.dtype), factor.shape + (1,) * (x.ndim - 1)), tree)
