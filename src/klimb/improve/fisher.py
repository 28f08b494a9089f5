"""The Fisher matrix F of a policy: as Fisher-vector products, and as a factor U with F = UᵀU."""

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
from klimb.types import Batch, Sequences

Vector = Float[Array, " P"]
FisherKind = Literal["exact", "empirical"]


class Linearised(NamedTuple):
    """A policy's distributions on a batch, linearised in θ once. Gradients and Fisher-vector products share it.

    distribution: π_θ(·|s), `[B]`. product: v ↦ F v. pull_back: a gradient with respect to the distributions'
    parameters, `[B]`, ↦ the gradient with respect to θ.
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

    Without `action`, M_s is the Fisher matrix of the distribution in its own parameters: the Gauss-Newton form,
    exact over actions. With `action`, M_s = c_s c_sᵀ, c_s the gradient of log π(a_s|s) with respect to those
    parameters: the empirical Fisher matrix E[∇log π ∇log πᵀ]. Both are positive semi-definite by construction, unlike
    the Hessian of a sampled KL. One forward pass is stored; each product takes one tangent and one cotangent pass.

    distribution_at: θ ↦ the distributions `[B]`. theta: the parameters to linearise at.
    weight: w_s ≥ 0 of every row. action: the sampled actions `[B, *act]`; None for the expectation over all actions.
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
    policy: PyTree, obs: Array | Sequences, weight: Float[Array, " B"] | None = None, *, action: Array | None = None
) -> Callable[[Vector], Vector]:
    """v ↦ F v, F = E_s E_a[∇log π ∇log πᵀ].

    Vectors are flat, in the order of `jax.flatten_util.ravel_pytree` of the policy's trainable arrays
    (`klimb.policies.parameters.trainable_filter`). The policy is linearised once per call of this function: reuse
    the function that is returned.

    policy: a callable pytree. obs: `[B, *obs]`, or sequences of B rows for one with memory. weight: of every
    observation, ≥ 0; None for equal weights. action: sampled actions `[B, *act]` for the empirical Fisher matrix; None
    for the exact expectation over actions.
    """
    theta, rebuild = flatten(policy)
    if weight is None:
        weight = jnp.ones(len(obs.obs if isinstance(obs, Sequences) else obs), theta.dtype)
    return linearise(lambda v: action_distribution(rebuild(v), obs), theta, weight, action=action).product


def fisher_rows(policy: PyTree, batch: Batch, kind: FisherKind) -> Float[Array, "R P"]:
    """U with UᵀU = F: one row per sample (empirical), or one per sample and distribution parameter (exact).

    For batches with fewer rows than parameters, and for the explicit matrix of small policies. R × P numbers. With
    memory every step's derivatives are those through all steps before it in its sequence.

    policy: a callable pytree. batch: the samples with their weights.
    kind: exact for the expectation over all actions, empirical for the sampled actions.
    """
    theta, rebuild = flatten(policy)
    share = _share(batch.weight)
    if isinstance(batch.obs, Sequences):
        return _rows_of_sequences(policy, batch, batch.obs, kind)

    def root(vector: Vector, obs: Array, action: Array, share: Array) -> Array:
        """The function of θ whose Jacobian at the policy's θ is one sample's part of U.

        It is linear in the distribution's parameters; its coefficients are those of the given policy.

        vector: θ. obs, action: of one sample. share: the sample's weight as a fraction of the sum of weights.
        """
        current = rebuild(theta)(obs)
        parameters = rebuild(vector)(obs)
        if kind == "exact":
            return jnp.sqrt(share) * ravel_pytree(current.fisher_root(parameters))[0]
        score = _score(jax.tree.map(lambda x: x[None], current), action[None])
        return jnp.sqrt(share) * _inner(score, jax.tree.map(lambda x: x[None], parameters))

    rows = jax.vmap(jax.jacrev(root), (None, 0, 0, 0))(theta, batch.obs, batch.action, share)
    return rows.reshape(-1, theta.size)


def _rows_of_sequences(policy: PyTree, batch: Batch, sequences: Sequences, kind: FisherKind) -> Float[Array, "R P"]:
    """`fisher_rows` of a policy with memory, one sequence after the other."""
    theta, rebuild = flatten(policy)
    share = _share(batch.weight)

    def of_one(number: Array) -> Array:
        """number: of the sequence."""
        rows = sequences.rows_of(number[None])
        obs, action, weight = sequences.take(rows), batch.action[rows], share[rows]
        current = action_distribution(policy, obs)

        def roots(vector: Vector) -> Array:
            parameters = action_distribution(rebuild(vector), obs)
            if kind == "exact":
                values = jax.vmap(lambda now, moved: ravel_pytree(now.fisher_root(moved))[0])(current, parameters)
            else:
                values = _inner(_score(current, action), parameters)[:, None]
            return jnp.sqrt(weight)[:, None] * values

        return jax.jacrev(roots)(theta)

    rows = jax.lax.map(of_one, jnp.arange(sequences.count))
    return rows.reshape(-1, theta.size)


def _share(weight: Array) -> Array:
    return weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)


def _score(distribution: Distribution, action: Array) -> Distribution:
    """∇ log π(a_s|s) with respect to the distributions' own parameters, `[B]`."""
    return jax.grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)


def _rank_one(score: Distribution) -> Callable[[Distribution], Distribution]:
    return lambda tangent: _each_row_times(score, _inner(score, tangent))


def _inner(a: Distribution, b: Distribution) -> Array:
    """⟨a_s, b_s⟩ over the parameters of every row, `[B]`."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=tuple(range(1, x.ndim))), a, b)
    return jax.tree.reduce(jnp.add, products)


def _each_row_times(tree: Distribution, factor: Array) -> Distribution:
    return jax.tree.map(lambda x: x * jnp.reshape(factor.astype(x.dtype), factor.shape + (1,) * (x.ndim - 1)), tree)
