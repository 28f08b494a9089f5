"""Products with the Fisher matrix of a policy, and the solve that natural directions come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from klimb.improve.objectives import action_distribution, flatten
from klimb.policies.distributions import Distribution

Vector = Float[Array, " P"]


class Linearised(NamedTuple):
    """A policy's distributions on a batch, linearised in θ once: everything first-order comes from here.

    distribution: π_θ(·|s), `[B]`. product: v ↦ F v. pull_back: a gradient in the distributions' parameters,
    `[B]`, ↦ the gradient in θ.
    """

    distribution: Distribution
    product: Callable[[Vector], Vector]
    pull_back: Callable[[Distribution], Vector]


def linearise(
    distribution_at: Callable[[Vector], Distribution], theta: Vector, weight: Float[Array, " B"]
) -> Linearised:
    """F = Σ_s w_s J_sᵀ M_s J_s / Σw, J_s the Jacobian of the distribution's parameters, M_s their Fisher matrix.

    The Gauss-Newton form: exact (no action is sampled) and positive semi-definite by construction, unlike
    the Hessian of a sampled KL. One forward pass is stored; each product is one tangent and one cotangent
    pass over it.
    """
    distribution, push_forward = jax.linearize(distribution_at, theta)
    transpose = jax.linear_transpose(push_forward, theta)
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)

    def weigh(tree: Distribution) -> Distribution:
        return jax.tree.map(lambda x: x * jnp.reshape(share.astype(x.dtype), share.shape + (1,) * (x.ndim - 1)), tree)

    def pull_back(cotangent: Distribution) -> Vector:
        (vector,) = transpose(cotangent)
        return vector

    def product(vector: Vector) -> Vector:
        return pull_back(weigh(distribution.fisher_metric(push_forward(vector))))

    return Linearised(distribution, product, pull_back)


def fisher_vector_product(
    policy: PyTree, obs: Array, weight: Float[Array, " B"] | None = None
) -> Callable[[Vector], Vector]:
    """v ↦ F v, F = E_s E_a[∇log π ∇log πᵀ] over the rows of `obs` `[B, ...]` (weights `[B]`, default equal).

    Vectors are flat, in the order of `jax.flatten_util.ravel_pytree` of the policy's trainable arrays
    (`klimb.types.trainable_filter`). The policy is linearised here, once; keep the function that is returned.
    """
    theta, rebuild = flatten(policy)
    weight = jnp.ones(obs.shape[0], theta.dtype) if weight is None else weight
    return linearise(lambda v: action_distribution(rebuild(v), obs), theta, weight).product


class Solve(NamedTuple):
    """Result of conjugate gradient: x, the number of products used, and whether it met no curvature."""

    x: Vector
    iterations: Int[Array, ""]
    breakdown: Bool[Array, ""]


def conjugate_gradient(product: Callable[[Vector], Vector], b: Vector, *, iterations: int, tolerance: float) -> Solve:
    """x with A x ≈ b for a positive semi-definite A given by its products, from x = 0 (Hestenes & Stiefel 1952).

    Stops when ‖b − A x‖ ≤ tolerance · ‖b‖, after `iterations` products, or at a direction with pᵀA p ≤ 0
    (`breakdown`; x is then the best so far). b = 0 gives x = 0.

    Our own because a trust-region step has to know all three outcomes inside jit and vmap: `jax.scipy`'s
    reports none of them, and lineax's answers a zero operator with non-finite values.
    """
    target = jnp.square(tolerance) * jnp.vdot(b, b)

    def unfinished(carry: tuple) -> Array:
        k, _, _, _, rr, breakdown = carry
        return (k < iterations) & (rr > target) & ~breakdown

    def body(carry: tuple) -> tuple:
        k, x, r, p, rr, _ = carry
        ap = product(p)
        curvature = jnp.vdot(p, ap)
        breakdown = ~(curvature > 0)
        alpha = jnp.where(breakdown, 0, rr / jnp.where(breakdown, 1, curvature))
        x = x + alpha * p
        r = r - alpha * ap
        rr_next = jnp.vdot(r, r)
        p = r + (rr_next / rr) * p
        return k + 1, x, r, p, rr_next, breakdown

    start = (jnp.int32(0), jnp.zeros_like(b), b, b, jnp.vdot(b, b), jnp.bool_(False))
    k, x, _, _, _, breakdown = jax.lax.while_loop(unfinished, body, start)
    return Solve(x, k, breakdown)
